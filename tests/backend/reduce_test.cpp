// SPDX-License-Identifier: MIT
// Row sums, column sums and sums of squares of both host backends.
#include <lpo/backend/cpu/reduce.hpp>
#include <lpo/backend/reference/reduce.hpp>

#include "parity.hpp"

using namespace parity;

namespace {

template <class T>
struct Sums {
  std::vector<T> rows, columns, more;
  double squares = 0;
};

template <class Device, class T>
Sums<T> run(index_t rows, index_t width, int threads) {
  lpo::Context<Device> context(threads);
  const auto x = random_values<T>(rows * width, 1);
  Sums<T> sums;
  sums.rows = random_values<T>(rows, 2);
  sums.columns = random_values<T>(width, 3);
  sums.more = random_values<T>(width, 4);
  using lpo::kernel::Reduce;
  Reduce<Device>::row_sums(context, rows, width, x.data(), sums.rows.data());
  Reduce<Device>::column_sums(context, rows, width, x.data(), sums.columns.data(), false);
  Reduce<Device>::column_sums(context, rows, width, x.data(), sums.more.data(), true);
  sums.squares = Reduce<Device>::sum_of_squares(context, rows * width, x.data());
  return sums;
}

}  // namespace

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

TEST_CASE_TEMPLATE("cpu sums agree with the reference", T, LPO_STORAGE_TYPES) {
  const index_t shapes[][2] = {{0, 3},   {3, 0},    {1, 1},     {7, 5},      {5, 33},
                               {40, 64}, {33, 200}, {3000, 96}, {1, 100001}, {70001, 3}};
  for (const auto& s : shapes) {
    CAPTURE(s[0]);
    CAPTURE(s[1]);
    const auto expected = run<lpo::Reference, T>(s[0], s[1], 1);
    const auto one = run<lpo::Cpu, T>(s[0], s[1], 1);
    const auto root = [](index_t n) { return std::sqrt(static_cast<double>(n) + 1.0); };
    CHECK(difference(one.rows, expected.rows, root(s[1])) < tolerance<T>(s[1]));
    CHECK(difference(one.columns, expected.columns, root(s[0])) < tolerance<T>(s[0]));
    CHECK(difference(one.more, expected.more, root(s[0])) < tolerance<T>(s[0]));
    CHECK(one.squares == doctest::Approx(expected.squares).epsilon(1e-12));
    const auto three = run<lpo::Cpu, T>(s[0], s[1], 3);
    CHECK(same_bits(one.rows, three.rows));
    CHECK(same_bits(one.columns, three.columns));
    CHECK(same_bits(one.more, three.more));
    CHECK(one.squares == three.squares);
  }
}

TEST_CASE("squares neither overflow nor vanish in float") {
  lpo::Context<lpo::Cpu> context(1);
  std::vector<float> x(100, 1e25f);
  CHECK(lpo::kernel::Reduce<lpo::Cpu>::sum_of_squares(context, 100, x.data()) == doctest::Approx(1e52).epsilon(1e-6));
  std::fill(x.begin(), x.end(), 1e-25f);
  CHECK(lpo::kernel::Reduce<lpo::Cpu>::sum_of_squares(context, 100, x.data()) == doctest::Approx(1e-48).epsilon(1e-6));
}
