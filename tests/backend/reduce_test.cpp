// SPDX-License-Identifier: MIT
// Row sums, column sums and sums of squares of both host backends.
#include <lpo/backend/cpu/reduce.hpp>
#include <lpo/backend/reference/reduce.hpp>

#include <backend/reduce_cases.hpp>

using namespace reduce_cases;

TEST_CASE("reference sums of 1 to 6") {
  const double x[] = {1, 2, 3, 4, 5, 6};
  double rows[2], columns[3] = {10, 10, 10};
  lpo::Context<lpo::Reference> context(1);
  using lpo::kernel::Reduce;
  Reduce<lpo::Reference>::row_sums(context, 2, 3, x, rows);
  CHECK(rows[0] == 6);
  CHECK(rows[1] == 15);
  Reduce<lpo::Reference>::column_sums(context, 2, 3, x, columns, true);
  CHECK(columns[0] == 15);
  CHECK(columns[2] == 19);
  CHECK(Reduce<lpo::Reference>::sum_of_squares(context, 6, x) == 91);
}

TEST_CASE_TEMPLATE("cpu sums agree with the reference", T, LPO_STORAGE_TYPES) { compare_sums<lpo::Cpu, T>(); }

TEST_CASE("squares neither overflow nor vanish in float") {
  lpo::Context<lpo::Cpu> context(1);
  std::vector<float> x(100, 1e25f);
  CHECK(lpo::kernel::Reduce<lpo::Cpu>::sum_of_squares(context, 100, x.data()) == doctest::Approx(1e52).epsilon(1e-6));
  std::fill(x.begin(), x.end(), 1e-25f);
  CHECK(lpo::kernel::Reduce<lpo::Cpu>::sum_of_squares(context, 100, x.data()) == doctest::Approx(1e-48).epsilon(1e-6));
}
