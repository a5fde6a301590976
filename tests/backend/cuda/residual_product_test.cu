// SPDX-License-Identifier: MIT
// The projection onto a residual on a CUDA device against sums in double on the host; zeros in its low-rank term.
#include <lpo/backend/cuda/residual_product.cuh>

#include <doctest/doctest.h>

#include <cmath>

#include <backend/on_device.hpp>
#include <backend/parity.hpp>

using lpo::Cuda;
using lpo::index_t;

namespace {

template <class T>
void compare(index_t rows, index_t in, index_t out, index_t rank, bool bias, index_t gap = 0) {
  CAPTURE(rows);
  CAPTURE(in);
  CAPTURE(out);
  CAPTURE(rank);
  lpo::Context<Cuda> context;
  const index_t x_row = in + gap;
  const auto x = parity::random_values<T>(rows * x_row, 1), w = parity::random_values<T>(out * in, 2),
             b = parity::random_values<T>(out, 3), z = parity::random_values<T>(rows * out, 4),
             inner = parity::random_values<T>(rows * rank, 5), up = parity::random_values<T>(out * rank, 6);
  const std::vector<T> zeros(up.size(), T{}), unset(static_cast<std::size_t>(rows * out), static_cast<T>(-77.0f));
  const auto dx = lpo_test::on_device<Cuda>(x), dw = lpo_test::on_device<Cuda>(w), db = lpo_test::on_device<Cuda>(b),
             dz = lpo_test::on_device<Cuda>(z), di = lpo_test::on_device<Cuda>(inner),
             du = lpo_test::on_device<Cuda>(up), d0 = lpo_test::on_device<Cuda>(zeros);
  const auto y = lpo_test::on_device<Cuda>(unset), plain = lpo_test::on_device<Cuda>(unset),
             with_zeros = lpo_test::on_device<Cuda>(unset);
  lpo::kernel::ResidualProductParams<T> p;
  p.rows = rows, p.in = in, p.out = out;
  p.x = dx.data(), p.x_row = x_row, p.weight = dw.data(), p.bias = bias ? db.data() : nullptr, p.addend = dz.data();
  if (!lpo::detail::has_hopper_body(lpo::detail::residual_product_kernel<T, 128>)) {
    MESSAGE("skipped: needs a Hopper GPU and code for sm_90a");
    return;
  }
  p.y = plain.data();
  lpo::kernel::ResidualProduct<Cuda>::run(context, p);
  p.rank = rank, p.inner = di.data(), p.up = du.data(), p.y = y.data();
  lpo::kernel::ResidualProduct<Cuda>::run(context, p);
  p.up = d0.data(), p.y = with_zeros.data();
  lpo::kernel::ResidualProduct<Cuda>::run(context, p);
  context.synchronize();
  const auto got = lpo_test::to_host(y), without = lpo_test::to_host(plain), zeroed = lpo_test::to_host(with_zeros);
  double worst = 0, worst_plain = 0;
  bool same = true;
  const auto at = [](const std::vector<T>& values, index_t i) {
    return parity::as_double(values[static_cast<std::size_t>(i)]);
  };
  const double size = std::sqrt(static_cast<double>(in + rank));
  for (index_t row = 0; row < rows; ++row)
    for (index_t j = 0; j < out; ++j) {
      double sum = at(z, row * out + j) + (bias ? at(b, j) : 0.0), low = 0;
      for (index_t k = 0; k < in; ++k) sum += at(x, row * x_row + k) * at(w, j * in + k);
      for (index_t k = 0; k < rank; ++k) low += at(inner, row * rank + k) * at(up, j * rank + k);
      const auto error = [&](double value, double wanted) {
        return std::fabs(value - wanted) / (size + std::fabs(wanted));
      };
      worst_plain = std::max(worst_plain, error(at(without, row * out + j), sum));
      worst = std::max(worst, error(at(got, row * out + j), sum + low));
      same = same && without[static_cast<std::size_t>(row * out + j)].bits ==
                         zeroed[static_cast<std::size_t>(row * out + j)].bits;
    }
  CHECK(worst <= parity::unit<T>);
  CHECK(worst_plain <= parity::unit<T>);
  CHECK(same);
}

}  // namespace

TEST_CASE_TEMPLATE("cuda residual product agrees with sums in double", T, lpo::bfloat16, lpo::half) {
  compare<T>(1, 8, 8, 8, true);
  compare<T>(3, 16, 24, 16, false, 8);
  compare<T>(256, 64, 160, 64, true);
  compare<T>(257, 72, 168, 72, true);
  compare<T>(1200, 320, 320, 16, true);
  compare<T>(9000, 64, 640, 8, true, 16);  // more tiles than multiprocessors
}

TEST_CASE("cuda residual product leaves other operands to others") {
  lpo::Context<Cuda> context;
  const auto x = lpo_test::on_device<Cuda>(parity::random_values<lpo::bfloat16>(64, 1));
  lpo::kernel::ResidualProductParams<lpo::bfloat16> p;
  p.rows = 2, p.in = 8, p.out = 8, p.x = x.data(), p.x_row = 8, p.weight = x.data(), p.addend = x.data();
  CHECK_FALSE(lpo::kernel::ResidualProduct<Cuda>::can_run(context, p));  // too few tiles
  p.rows = 100000;
  p.in = 12;
  CHECK_FALSE(lpo::kernel::ResidualProduct<Cuda>::can_run(context, p));  // rows of 24 bytes
}
