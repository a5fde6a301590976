// SPDX-License-Identifier: MIT
// The two-dimensional copy of both host backends.
#include <lpo/backend/cpu/copy.hpp>
#include <lpo/backend/reference/copy.hpp>

#include "parity.hpp"

using namespace parity;

namespace {

template <class Device, class T>
std::vector<T> run(index_t rows, index_t width, index_t source_row, index_t target_row, bool accumulate, int threads) {
  lpo::Context<Device> context(threads);
  const auto source = random_values<T>(rows * source_row, 1);
  auto target = random_values<T>(rows * target_row, 2);
  lpo::kernel::CopyRows<Device>::run(context, rows, width, source.data(), source_row, target.data(), target_row,
                                     accumulate);
  return target;
}

}  // namespace

TEST_CASE("reference copy_rows moves a column block") {
  const double source[] = {1, 2, 3, 4, 5, 6};
  double target[] = {0, 0, 0, 10, 10, 10, 20, 20, 20};
  lpo::Context<lpo::Reference> context(1);
  lpo::kernel::CopyRows<lpo::Reference>::run(context, 3, 2, source, 2, target + 1, 3, false);
  CHECK(std::vector<double>(target, target + 9) == std::vector<double>{0, 1, 2, 10, 3, 4, 20, 5, 6});
  lpo::kernel::CopyRows<lpo::Reference>::run(context, 3, 1, source + 1, 2, target, 3, true);
  CHECK(std::vector<double>(target, target + 9) == std::vector<double>{2, 1, 2, 14, 3, 4, 26, 5, 6});
}

TEST_CASE_TEMPLATE("cpu copy_rows agrees with the reference", T, LPO_STORAGE_TYPES) {
  const index_t shapes[][4] = {{0, 3, 3, 3},    {3, 0, 1, 1},       {1, 1, 1, 1},         {5, 7, 7, 9},
                               {5, 17, 20, 17}, {300, 40, 40, 104}, {1000, 129, 129, 129}};
  for (const auto& s : shapes)
    for (bool accumulate : {false, true}) {
      CAPTURE(s[0]);
      CAPTURE(s[1]);
      CAPTURE(accumulate);
      const auto expected = run<lpo::Reference, T>(s[0], s[1], s[2], s[3], accumulate, 1);
      const auto one = run<lpo::Cpu, T>(s[0], s[1], s[2], s[3], accumulate, 1);
      CHECK(difference(one, expected, 1.0) <= (accumulate ? unit<T> : 0.0));
      CHECK(same_bits(one, run<lpo::Cpu, T>(s[0], s[1], s[2], s[3], accumulate, 3)));
    }
}
