// SPDX-License-Identifier: MIT
// The product with a gate on a CUDA device against sums and gelu in double on the host, with and without value and
// gate.
#include <lpo/backend/cuda/gated_product.cuh>

#include <doctest/doctest.h>

#include <cmath>
#include <limits>

#include <backend/on_device.hpp>
#include <backend/parity.hpp>

using lpo::Cuda;
using lpo::index_t;

namespace {

template <class T>
T rounded(double value) {
  return static_cast<T>(static_cast<lpo::compute_t<T>>(value));
}

template <class T>
void compare(index_t rows, index_t in, index_t hidden, bool bias, index_t gap) {
  CAPTURE(rows);
  CAPTURE(in);
  CAPTURE(hidden);
  lpo::Context<Cuda> context;
  const index_t x_row = in + gap;
  const auto x = parity::random_values<T>(rows * x_row, 1), w = parity::random_values<T>(2 * hidden * in, 2),
             b = parity::random_values<T>(2 * hidden, 3);
  const auto dx = lpo_test::on_device<Cuda>(x), dw = lpo_test::on_device<Cuda>(w), db = lpo_test::on_device<Cuda>(b);
  const std::vector<T> unset(static_cast<std::size_t>(rows * hidden), rounded<T>(-77)),
      unset_both(unset.size() * 2, rounded<T>(-77));
  const auto out = lpo_test::on_device<Cuda>(unset), again = lpo_test::on_device<Cuda>(unset),
             both = lpo_test::on_device<Cuda>(unset_both);
  lpo::kernel::GatedProductParams<T> p;
  p.rows = rows, p.in = in, p.hidden = hidden;
  p.x = dx.data(), p.x_row = x_row, p.weight = dw.data(), p.bias = bias ? db.data() : nullptr;
  if (!lpo::kernel::GatedProduct<Cuda>::can_run(context, p)) {
    MESSAGE("skipped: needs a Hopper GPU and code for sm_90a");
    return;
  }
  p.out = out.data();
  lpo::kernel::GatedProduct<Cuda>::run(context, p);
  p.out = again.data(), p.both = both.data();
  lpo::kernel::GatedProduct<Cuda>::run(context, p);
  context.synchronize();
  const auto got = lpo_test::to_host(out), with_both = lpo_test::to_host(again), halves = lpo_test::to_host(both);
  double worst_half = 0, worst = 0;
  bool same = true;
  for (index_t row = 0; row < rows; ++row)
    for (index_t j = 0; j < hidden; ++j) {
      const auto product = [&](index_t column) {
        double sum = bias ? parity::as_double(b[static_cast<std::size_t>(column)]) : 0;
        for (index_t k = 0; k < in; ++k)
          sum += parity::as_double(x[static_cast<std::size_t>(row * x_row + k)]) *
                 parity::as_double(w[static_cast<std::size_t>(column * in + k)]);
        return sum;
      };
      const auto half_at = [&](index_t column) {
        return parity::as_double(halves[static_cast<std::size_t>(row * 2 * hidden + column)]);
      };
      const double size = std::sqrt(static_cast<double>(in));
      for (const index_t column : {j, hidden + j})
        worst_half = std::max(worst_half,
                              std::fabs(half_at(column) - product(column)) / (size + std::fabs(product(column))));
      // From the value and the gate that were stored: one rounding, and gelu.
      const double gate = half_at(hidden + j), gelu = gate * 0.5 * std::erfc(-gate / std::sqrt(2.0));
      const double wanted = half_at(j) * gelu;
      const double found = parity::as_double(got[static_cast<std::size_t>(row * hidden + j)]);
      worst = std::max(worst, std::fabs(found - wanted) / (0x1p-14 + std::fabs(wanted)));  // half's least normal number
      same = same && got[static_cast<std::size_t>(row * hidden + j)].bits ==
                         with_both[static_cast<std::size_t>(row * hidden + j)].bits;
    }
  CHECK(worst_half <= parity::unit<T>);
  CHECK(worst <= 0.5 * parity::unit<T> + 4e-5);
  CHECK(same);
}

}  // namespace

TEST_CASE_TEMPLATE("cuda gated product agrees with sums and gelu in double", T, lpo::bfloat16, lpo::half) {
  compare<T>(1, 8, 8, true, 0);
  compare<T>(3, 16, 24, false, 8);
  compare<T>(128, 64, 160, true, 0);
  compare<T>(129, 72, 168, true, 0);
  compare<T>(300, 320, 1280, true, 0);
  compare<T>(700, 128, 520, true, 16);
  compare<T>(700, 40, 2560, true, 0);    // 192 tiles: some of 132 multiprocessors' warpgroups have one
  compare<T>(1300, 72, 2568, false, 0);  // 363 tiles: a second turn
}

TEST_CASE_TEMPLATE("cuda gated product passes on what is not finite and large gates", T, lpo::bfloat16, lpo::half) {
  constexpr index_t hidden = 8;
  constexpr double infinity = std::numeric_limits<double>::infinity();
  lpo::Context<Cuda> context;
  std::vector<T> b(2 * hidden, rounded<T>(2));
  const double gates[hidden] = {std::numeric_limits<double>::quiet_NaN(), infinity, 20, -20, 0, 1, -1, -3};
  for (index_t j = 0; j < hidden; ++j) b[static_cast<std::size_t>(hidden + j)] = rounded<T>(gates[j]);
  const std::vector<T> zeros(2 * hidden * 8, rounded<T>(0));
  const auto x = lpo_test::on_device<Cuda>(zeros), w = lpo_test::on_device<Cuda>(zeros), bias = lpo_test::on_device<Cuda>(b),
             out = lpo_test::on_device<Cuda>(zeros);
  lpo::kernel::GatedProductParams<T> p;
  p.rows = 1, p.in = 8, p.hidden = hidden;
  p.x = x.data(), p.x_row = 8, p.weight = w.data(), p.bias = bias.data(), p.out = out.data();
  if (!lpo::kernel::GatedProduct<Cuda>::can_run(context, p)) {
    MESSAGE("skipped: needs a Hopper GPU and code for sm_90a");
    return;
  }
  lpo::kernel::GatedProduct<Cuda>::run(context, p);
  context.synchronize();
  const auto got = lpo_test::to_host(out);
  CHECK(std::isnan(parity::as_double(got[0])));
  CHECK(parity::as_double(got[1]) == infinity);
  const double wanted[hidden] = {0, 0, 40, 0, 0, 1.6826894921370859, -0.31731050786291415, -0.0080993881897805597};  // 2 x Phi(x)
  for (std::size_t j = 2; j < hidden; ++j)
    CHECK(std::fabs(parity::as_double(got[j]) - wanted[j]) <= (0.5 * parity::unit<T> + 4e-5) * std::fabs(wanted[j]));
}

TEST_CASE("cuda gated product leaves other operands to others") {
  lpo::Context<Cuda> context;
  const auto x = lpo_test::on_device<Cuda>(parity::random_values<lpo::bfloat16>(64, 1));
  lpo::kernel::GatedProductParams<lpo::bfloat16> p;
  p.rows = 2, p.in = 12, p.hidden = 8, p.x = x.data(), p.x_row = 16, p.weight = x.data();
  CHECK_FALSE(lpo::kernel::GatedProduct<Cuda>::can_run(context, p));  // rows of 24 bytes
  const auto y = lpo_test::on_device<Cuda>(parity::random_values<float>(64, 1));
  lpo::kernel::GatedProductParams<float> q;
  q.rows = 2, q.in = 8, q.hidden = 8, q.x = y.data(), q.x_row = 8, q.weight = y.data();
  CHECK_FALSE(lpo::kernel::GatedProduct<Cuda>::can_run(context, q));
}
