// SPDX-License-Identifier: MIT
// The truncated SVD against numpy's singular values, and on matrices of known rank.
#include <lpo/backend/cpu/truncated_svd.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include "golden_file.hpp"

using namespace lpo;

namespace {

/// Squared Frobenius norm of a - U diag(s) V^T.
double squared_error(const std::vector<double>& a, index_t rows, index_t columns, const TruncatedSvd& svd) {
  const index_t rank = static_cast<index_t>(svd.values.size());
  double sum = 0;
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0; j < columns; ++j) {
      double d = a[static_cast<std::size_t>(i * columns + j)];
      for (index_t k = 0; k < rank; ++k)
        d -= svd.left[static_cast<std::size_t>(i * rank + k)] * svd.values[static_cast<std::size_t>(k)] *
             svd.right[static_cast<std::size_t>(k * columns + j)];
      sum += d * d;
    }
  return sum;
}

/// Largest deviation of the inner products of `count` vectors from those of an orthonormal set; `step` within a vector.
double deviation(const std::vector<double>& v, index_t count, index_t length, index_t step, index_t vector_step) {
  double worst = 0;
  for (index_t a = 0; a < count; ++a)
    for (index_t b = 0; b < count; ++b) {
      double dot = 0;
      for (index_t i = 0; i < length; ++i)
        dot += v[static_cast<std::size_t>(a * vector_step + i * step)] *
               v[static_cast<std::size_t>(b * vector_step + i * step)];
      worst = std::max(worst, std::fabs(dot - (a == b ? 1.0 : 0.0)));
    }
  return worst;
}

std::vector<double> transposed(const std::vector<double>& a, index_t rows, index_t columns) {
  std::vector<double> t(a.size());
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0; j < columns; ++j)
      t[static_cast<std::size_t>(j * rows + i)] = a[static_cast<std::size_t>(i * columns + j)];
  return t;
}

}  // namespace

TEST_CASE("the truncated SVD's error is the tail of numpy's singular values") {
  const auto file = golden::open("svd");
  struct Case {
    const char* name;
    index_t rank;
    double tolerance;  ///< relative, on the error's square
  };
  // Direct for high ranks, iterated for low ones; a flat spectrum is the worst there is for that.
  for (const Case c : {Case{"wide", 1, 1e-5}, Case{"wide", 5, 1e-9}, Case{"wide", 24, 1e-9}, Case{"falling", 4, 1e-5},
                       Case{"falling", 40, 1e-9}, Case{"flat", 4, 1e-4}, Case{"flat", 30, 1e-9}})
    for (const bool turn : {false, true}) {
      CAPTURE(c.name);
      CAPTURE(c.rank);
      CAPTURE(turn);
      const std::string key = std::string("matrix/") + c.name;
      index_t rows = file.info(key).shape[0], columns = file.info(key).shape[1];
      auto a = file.read_vector<double>(key);
      if (turn) a = transposed(a, rows, columns), std::swap(rows, columns);
      const auto expected = file.read_vector<double>(std::string("values/") + c.name);
      const auto svd = truncated_svd(a.data(), rows, columns, c.rank);
      double tail = 0, total = 0;
      for (std::size_t k = 0; k < expected.size(); ++k) {
        total += expected[k] * expected[k];
        if (k >= static_cast<std::size_t>(c.rank)) tail += expected[k] * expected[k];
      }
      const double error = squared_error(a, rows, columns, svd);
      CHECK(error >= tail - 1e-9 * total);  // Eckart and Young: nothing of this rank is nearer
      CHECK(error <= tail * (1 + c.tolerance) + 1e-12 * total);
      for (std::size_t k = 0; k < svd.values.size(); ++k)
        CHECK(svd.values[k] == doctest::Approx(expected[k]).epsilon(std::sqrt(c.tolerance) * 0.1));
      CHECK(deviation(svd.left, c.rank, rows, c.rank, 1) < 1e-9);
      CHECK(deviation(svd.right, c.rank, columns, 1, columns) < 1e-7);
    }
}

TEST_CASE("a matrix of low rank is recovered exactly, larger ranks add zeros") {
  const index_t rows = 150, columns = 110;
  std::vector<double> a(static_cast<std::size_t>(rows * columns));
  for (index_t i = 0; i < rows; ++i)
    for (index_t j = 0; j < columns; ++j)
      a[static_cast<std::size_t>(i * columns + j)] =
          std::sin(0.1 * static_cast<double>(i)) * std::cos(0.2 * static_cast<double>(j)) +
          1e-3 * std::sin(0.3 * static_cast<double>(i)) * std::sin(0.5 * static_cast<double>(j));
  double total = 0;
  for (const double value : a) total += value * value;
  for (const index_t rank : {2, 3, 60}) {
    const auto svd = truncated_svd(a.data(), rows, columns, rank);
    CHECK(squared_error(a, rows, columns, svd) < 1e-24 * total);
    for (std::size_t k = 2; k < svd.values.size(); ++k) CHECK(svd.values[k] < 1e-7 * svd.values[0]);
  }
  CHECK(truncated_svd(a.data(), rows, columns, 2).values == truncated_svd(a.data(), rows, columns, 2).values);
}

TEST_CASE("the truncated SVD of one number, of zeros, and of a wrong rank") {
  const double number = -3.0;
  const auto one = truncated_svd(&number, 1, 1, 1);
  CHECK(one.values == std::vector<double>{3.0});
  CHECK(one.left[0] * one.right[0] == -1.0);
  const std::vector<double> zeros(6, 0.0);
  const auto nothing = truncated_svd(zeros.data(), 2, 3, 2);
  CHECK(nothing.values == std::vector<double>{0.0, 0.0});
  for (const double value : nothing.right) CHECK(value == 0.0);
  CHECK_THROWS_AS(truncated_svd(zeros.data(), 2, 3, 3), ValueError);
  CHECK_THROWS_AS(truncated_svd(zeros.data(), 2, 3, 0), ValueError);
}
