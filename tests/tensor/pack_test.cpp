// SPDX-License-Identifier: MIT
// Packs: loads and stores of every 16-bit pattern equal the scalar conversions, lane sums and choices.
#include <lpo/tensor/wide_pack.hpp>

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

using lpo::Pack;
using lpo::pack_width;
using lpo::detail::LaneTraits;
using lpo::detail::WidePack;

/// Loads all 65536 patterns by packs V and compares with the scalar conversion.
template <class V, class T>
int differing_loads() {
  constexpr int width = LaneTraits<V>::width;
  int different = 0;
  for (std::uint32_t start = 0; start < 65536; start += width) {
    T stored[width];
    float loaded[width];
    for (int lane = 0; lane < width; ++lane)
      stored[lane].bits = static_cast<std::uint16_t>(start + static_cast<std::uint32_t>(lane));
    lpo::detail::store_lanes(loaded, lpo::detail::load_lanes<V>(stored));
    for (int lane = 0; lane < width; ++lane) {
      const float scalar = static_cast<float>(stored[lane]);
      if (!(loaded[lane] == scalar) && !(std::isnan(loaded[lane]) && std::isnan(scalar))) ++different;
    }
  }
  return different;
}

/// Stores floats whose lower bits sit around every rounding boundary, by packs V and by scalars.
template <class V, class T>
int differing_stores() {
  constexpr int width = LaneTraits<V>::width;
  int different = 0;
  for (std::uint32_t high = 0; high < 65536; ++high) {
    static constexpr std::uint32_t low[] = {0x0000, 0x0001, 0x0fff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x3000,
                                            0x5000, 0x7000, 0x7fff, 0x8000, 0x8001, 0x9000, 0xf000, 0xffff};
    for (int start = 0; start < 16; start += width) {
      float values[width];
      T stored[width];
      for (int lane = 0; lane < width; ++lane)
        values[lane] = std::bit_cast<float>(high << 16 | low[(start + lane) % 16]);
      lpo::detail::store_lanes(stored, lpo::detail::load_lanes<V>(values));
      for (int lane = 0; lane < width; ++lane) {
        const T scalar(values[lane]);
        if (stored[lane].bits != scalar.bits &&
            !(std::isnan(static_cast<float>(stored[lane])) && std::isnan(static_cast<float>(scalar))))
          ++different;
      }
    }
  }
  return different;
}

}  // namespace

TEST_CASE_TEMPLATE("every bfloat16 and half loads as the scalar conversion says", V, Pack, WidePack<32>, WidePack<64>) {
  CHECK(differing_loads<V, lpo::bfloat16>() == 0);
  CHECK(differing_loads<V, lpo::half>() == 0);
}

TEST_CASE_TEMPLATE("stores round as the scalar conversion does, at every boundary", V, Pack, WidePack<32>,
                   WidePack<64>) {
  CHECK(differing_stores<V, lpo::bfloat16>() == 0);
  CHECK(differing_stores<V, lpo::half>() == 0);
}

TEST_CASE("sums, maxima and choices over lanes") {
  float x[pack_width];
  float sum = 0;
  for (int lane = 0; lane < pack_width; ++lane) sum += x[lane] = static_cast<float>(lane * lane - 3 * lane);
  const lpo::Pack pack = lpo::detail::load_pack(x);
  CHECK(lpo::detail::sum_lanes(pack) == sum);
  CHECK(lpo::detail::max_lanes(pack) == x[pack_width - 1]);
  float y[pack_width];
  lpo::detail::store_pack(y, lpo::detail::select(pack < lpo::Pack{}, -pack, pack));
  for (int lane = 0; lane < pack_width; ++lane) CHECK(y[lane] == std::fabs(x[lane]));
  lpo::detail::store_pack(y, lpo::detail::square_root(pack * pack));
  for (int lane = 0; lane < pack_width; ++lane) CHECK(y[lane] == std::fabs(x[lane]));
  lpo::detail::store_pack(y, lpo::detail::broadcast_lanes<lpo::Pack>(2.5f));
  CHECK(y[pack_width - 1] == 2.5f);
}

TEST_CASE("scalars load and store through every storage type") {
  const lpo::half h(0.3f);
  CHECK(lpo::detail::load_lanes<double>(&h) == static_cast<double>(static_cast<float>(h)));
  lpo::bfloat16 b;
  lpo::detail::store_lanes(&b, 1.01);
  CHECK(static_cast<float>(b) == 1.0078125f);
  double d;
  lpo::detail::store_lanes(&d, 0.1);
  CHECK(d == 0.1);
}
