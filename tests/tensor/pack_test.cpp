// SPDX-License-Identifier: MIT
// Packs: loads and stores of every 16-bit pattern equal the scalar conversions, lane sums and choices.
#include <lpo/tensor/pack.hpp>

#include <doctest/doctest.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

using lpo::pack_width;

/// Loads all 65536 patterns by packs and compares with the scalar conversion.
template <class T>
int differing_loads() {
  int different = 0;
  for (std::uint32_t start = 0; start < 65536; start += pack_width) {
    T stored[pack_width];
    float loaded[pack_width];
    for (int lane = 0; lane < pack_width; ++lane)
      stored[lane].bits = static_cast<std::uint16_t>(start + static_cast<std::uint32_t>(lane));
    lpo::detail::store_pack(loaded, lpo::detail::load_pack(stored));
    for (int lane = 0; lane < pack_width; ++lane) {
      const float scalar = static_cast<float>(stored[lane]);
      if (!(loaded[lane] == scalar) && !(std::isnan(loaded[lane]) && std::isnan(scalar))) ++different;
    }
  }
  return different;
}

/// Stores floats whose lower bits sit around every rounding boundary, by packs and by scalars.
template <class T>
int differing_stores() {
  int different = 0;
  for (std::uint32_t high = 0; high < 65536; ++high) {
    static constexpr std::uint32_t low[] = {0x0000, 0x0001, 0x0fff, 0x1000, 0x1001, 0x1fff, 0x2000, 0x3000,
                                            0x5000, 0x7000, 0x7fff, 0x8000, 0x8001, 0x9000, 0xf000, 0xffff};
    for (int start = 0; start < 16; start += pack_width) {
      float values[pack_width];
      T stored[pack_width];
      for (int lane = 0; lane < pack_width; ++lane)
        values[lane] = std::bit_cast<float>(high << 16 | low[(start + lane) % 16]);
      lpo::detail::store_pack(stored, lpo::detail::load_pack(values));
      for (int lane = 0; lane < pack_width; ++lane) {
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

TEST_CASE("every bfloat16 and half loads as the scalar conversion says") {
  CHECK(differing_loads<lpo::bfloat16>() == 0);
  CHECK(differing_loads<lpo::half>() == 0);
}

TEST_CASE("stores round as the scalar conversion does, at every boundary") {
  CHECK(differing_stores<lpo::bfloat16>() == 0);
  CHECK(differing_stores<lpo::half>() == 0);
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
