// SPDX-License-Identifier: MIT
// Philox normals: the same bits on both host backends, at any offset and for any number of threads.
#include <lpo/backend/cpu/random.hpp>
#include <lpo/backend/reference/random.hpp>

#include "parity.hpp"

using namespace parity;

namespace {

template <class Device, class T>
std::vector<T> run(index_t count, std::uint64_t first, int threads, float mean = 0.25f, float deviation = 2.0f) {
  lpo::Context<Device> context(threads);
  std::vector<T> x(static_cast<std::size_t>(count));
  lpo::kernel::RandomNormal<Device>::fill(context, count, x.data(), mean, deviation, 7, 11, 13, first);
  return x;
}

}  // namespace

TEST_CASE("reference normals are the numbers of philox_fill_normal") {
  float expected[64];
  lpo::philox_fill_normal(lpo::RandomKey{7, 11, 13}, expected, 64);
  const auto x = run<lpo::Reference, float>(50, 9, 1, 0.0f, 1.0f);
  for (std::size_t i = 0; i < x.size(); ++i) CHECK(x[i] == expected[i + 9]);
}

TEST_CASE_TEMPLATE("cpu normals have the bits of the reference", T, LPO_STORAGE_TYPES) {
  for (index_t count : {0, 1, 3, 4, 5, 1000, 20001})
    for (std::uint64_t first : {std::uint64_t{0}, std::uint64_t{1}, std::uint64_t{6}, std::uint64_t{1} << 40}) {
      CAPTURE(count);
      CAPTURE(first);
      const auto expected = run<lpo::Reference, T>(count, first, 1);
      CHECK(same_bits(run<lpo::Cpu, T>(count, first, 1), expected));
      CHECK(same_bits(run<lpo::Cpu, T>(count, first, 3), expected));
    }
}

TEST_CASE("moments of the normals") {
  const auto x = run<lpo::Cpu, double>(200000, 0, 1);
  double mean = 0, square = 0;
  for (double value : x) mean += value / 200000;
  for (double value : x) square += (value - mean) * (value - mean) / 200000;
  CHECK(std::fabs(mean - 0.25) < 5 * 2.0 / std::sqrt(200000.0));
  CHECK(std::fabs(std::sqrt(square) - 2.0) < 5 * 2.0 / std::sqrt(400000.0));
}
