// SPDX-License-Identifier: MIT
// Sums on a CUDA device against the reference.
#include <lpo/backend/cuda/reduce.cuh>

#include <backend/reduce_cases.hpp>

using namespace reduce_cases;

TEST_CASE_TEMPLATE("cuda sums agree with the reference", T, LPO_STORAGE_TYPES) { compare_sums<lpo::Cuda, T>(); }

TEST_CASE("cuda column sums of more rows than a grid has blocks to share out: 8.4 million") {
  auto context = test_context<lpo::Cuda>(1);
  const lpo::index_t rows = 65535 * 128 + 1;
  std::vector<lpo::half> values(static_cast<std::size_t>(rows));
  values.back() = lpo::half(1.0f), values[7] = lpo::half(2.0f);
  const auto x = on_device<lpo::Cuda>(values), y = on_device<lpo::Cuda>(std::vector<lpo::half>(1));
  lpo::kernel::Reduce<lpo::Cuda>::column_sums(context, rows, 1, x.data(), y.data(), false);
  CHECK(static_cast<float>(to_host(y).front()) == 3.0f);
}
