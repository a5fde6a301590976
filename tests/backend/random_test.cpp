// SPDX-License-Identifier: MIT
// Philox normals: the same bits on both host backends, at any offset and for any number of threads.
#include <lpo/backend/cpu/random.hpp>
#include <lpo/backend/reference/random.hpp>

#include <backend/random_cases.hpp>

using namespace random_cases;

TEST_CASE("reference normals are the numbers of philox_fill_normal") {
  float expected[64];
  lpo::philox_fill_normal(lpo::RandomKey{7, 11, 13}, expected, 64);
  const auto x = run<lpo::Reference, float>(50, 9, 1, 0.0f, 1.0f);
  for (std::size_t i = 0; i < x.size(); ++i) CHECK(x[i] == expected[i + 9]);
}

TEST_CASE_TEMPLATE("cpu normals have the bits of the reference", T, LPO_STORAGE_TYPES) { compare_normals<lpo::Cpu, T>(); }

TEST_CASE("moments of the normals") {
  const auto x = run<lpo::Cpu, double>(200000, 0, 1);
  double mean = 0, square = 0;
  for (double value : x) mean += value / 200000;
  for (double value : x) square += (value - mean) * (value - mean) / 200000;
  CHECK(std::fabs(mean - 0.25) < 5 * 2.0 / std::sqrt(200000.0));
  CHECK(std::fabs(std::sqrt(square) - 2.0) < 5 * 2.0 / std::sqrt(400000.0));
}
