// SPDX-License-Identifier: MIT
// Winograd's convolution against the Reference device, on every shape that it can make, whether it pays there or not; its
// matrices against the definition of a filter; and its rounding errors against those of the direct sum.
#include <lpo/backend/cpu/conv2d.hpp>
#include <lpo/backend/reference/conv2d.hpp>

#include "conv2d_cases.hpp"

using namespace parity;
using namespace conv2d_cases;
using lpo::Context, lpo::Cpu, lpo::Reference;
using lpo::detail::Winograd, lpo::detail::WinogradParts, lpo::detail::WinogradShape;

namespace {

/// 3 x 3, stride 1, whole packs of channels: those of all convolutions, and some whose tiles or parts are cut.
std::vector<Conv2dShape> filters() {
  std::vector<Conv2dShape> list;
  for (const Conv2dShape& s : shapes())
    if (s.kernel_h == 3 && s.kernel_w == 3 && s.stride == 1 && s.c % 16 == 0 && s.o % 16 == 0) list.push_back(s);
  list.push_back(shape(0, 4, 4, 16, 32, 3, 1, 1, 1));
  list.push_back(shape(1, 1, 1, 16, 16, 3, 1, 1, 1));
  list.push_back(shape(2, 13, 22, 48, 80, 3, 1, 1, 1));
  list.push_back(shape(1, 4, 4, 144, 80, 3, 1, 1, 1));
  list.push_back(shape(3, 6, 3, 16, 16, 3, 1, 2, 2));
  list.push_back({1, 9, 5, 32, 48, 3, 3, 1, 0, 2, 1, 0});  // other padding along each side
  return list;
}

template <class T>
Results<T> run_winograd(Context<Cpu>& context, const Conv2dShape& s, const WinogradParts& parts) {
  const index_t outputs = s.n * s.out_h() * s.out_w() * s.o, inputs = s.n * s.h * s.w * s.c, weights = s.o * 9 * s.c;
  const auto x = random_values<T>(inputs, 1), weight = random_values<T>(weights, 2), bias = random_values<T>(s.o, 3),
             dy = random_values<T>(outputs, 4);
  Results<T> r{std::vector<T>(dy.size()), std::vector<T>(x.size()), random_values<T>(inputs, 5),
               std::vector<T>(weight.size()), random_values<T>(weights, 6), random_values<T>(s.o, 7)};
  if (s.n == 0) r.y[0] = r.dx[0] = T(0.0f);
  lpo::detail::winograd_forward(context, s, x.data(), weight.data(), bias.data(), r.y.data(), parts);
  lpo::detail::winograd_backward_data(context, s, dy.data(), weight.data(), r.dx.data(), false, parts);
  lpo::detail::winograd_backward_data(context, s, dy.data(), weight.data(), r.dx_more.data(), true, parts);
  lpo::detail::winograd_backward_weights(context, s, x.data(), dy.data(), r.dweight.data(), false, parts);
  lpo::detail::winograd_backward_weights(context, s, x.data(), dy.data(), r.dweight_more.data(), true, parts);
  lpo::kernel::Reduce<Cpu>::column_sums(context, s.n * s.out_h() * s.out_w(), s.o, dy.data(), r.dbias.data(), true);
  return r;
}

/// The root mean square of the errors over that of what is expected, in units of float's rounding.
double roundings(const std::vector<float>& values, const std::vector<double>& expected) {
  double errors = 0, squares = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    errors += std::pow(static_cast<double>(values[i]) - expected[i], 2);
    squares += expected[i] * expected[i];
  }
  return std::sqrt(errors / squares) * 0x1p24;
}

}  // namespace

TEST_CASE("one dimension of Winograd's transforms filters a line, and their transposes are its gradients") {
  // y_i = sum_u d_(i + u) g_u; <dy, y> gives both gradients of the product in the middle.
  const double d[6] = {0.5, -1.25, 2, 3.5, -0.75, 1}, g[3] = {1.5, -2, 0.25}, dy[4] = {1, -0.5, 2, 0.125};
  double v[6], u[6], m[6], y[4], dm[6], du[6], dg[3];
  Winograd::Image::apply(d, v);
  Winograd::Filter::apply(g, u);
  for (int i = 0; i < 6; ++i) m[i] = u[i] * v[i];
  Winograd::Result::apply(m, y);
  for (int i = 0; i < 4; ++i) CHECK(y[i] == doctest::Approx(d[i] * g[0] + d[i + 1] * g[1] + d[i + 2] * g[2]).epsilon(1e-6));
  Winograd::ResultGradient::apply(dy, dm);
  for (int i = 0; i < 6; ++i) du[i] = dm[i] * v[i];
  Winograd::FilterGradient::apply(du, dg);
  for (int u3 = 0; u3 < 3; ++u3) {
    double expected = 0;
    for (int i = 0; i < 4; ++i) expected += dy[i] * d[i + u3];
    CHECK(dg[u3] == doctest::Approx(expected).epsilon(1e-6));
  }
}

TEST_CASE_TEMPLATE("Winograd's convolution agrees with the reference, in any parts and on any threads", T, float, lpo::bfloat16,
                   lpo::half) {
  for (const Conv2dShape& s : filters()) {
    CAPTURE(s.n);
    CAPTURE(s.h);
    CAPTURE(s.w);
    CAPTURE(s.c);
    CAPTURE(s.o);
    CAPTURE(s.pad_top);
    Context<Reference> reference(1);
    Context<Cpu> one_thread(1), three_threads(3);
    const auto whole = run_winograd<T>(one_thread, s, WinogradParts::of(one_thread));
    check_close(s, whole, run<Reference, T>(reference, s), 4.0);  // of operands, twice, of sums and of results
    check_same_bits(whole, run_winograd<T>(three_threads, s, WinogradParts::of(three_threads)));
    check_same_bits(whole, run_winograd<T>(one_thread, s, {20000, 1}));
  }
}

TEST_CASE("rounding errors of Winograd's convolution are those of a few roundings, of the direct one of fewer") {
  Context<Reference> reference(1);
  Context<Cpu> context(2);
  const auto parts = WinogradParts::of(context);
  const Conv2dShape s = shape(1, 16, 16, 192, 64, 3, 1, 1, 1);
  const auto x = random_values<float>(s.h * s.w * s.c, 1), weight = random_values<float>(s.o * 9 * s.c, 2);
  const auto bias = random_values<float>(s.o, 3), dy = random_values<float>(s.h * s.w * s.o, 4);
  const auto exactly = [](const std::vector<float>& values) { return std::vector<double>(values.begin(), values.end()); };
  const auto exact_x = exactly(x), exact_weight = exactly(weight), exact_bias = exactly(bias), exact_dy = exactly(dy);
  std::vector<double> y(dy.size()), dx(x.size()), dweight(weight.size());
  using Exact = lpo::kernel::Conv2d<Reference>;
  Exact::forward(reference, s, exact_x.data(), exact_weight.data(), exact_bias.data(), y.data());
  Exact::backward_data(reference, s, exact_dy.data(), exact_weight.data(), dx.data(), false);
  Exact::backward_weights(reference, s, exact_x.data(), exact_dy.data(), dweight.data(), false, static_cast<double*>(nullptr),
                          false);
  std::vector<float> result(y.size());
  lpo::detail::conv2d_forward<float>(context, s, x.data(), weight.data(), bias.data(), result.data());
  const double direct_y = roundings(result, y);
  lpo::detail::winograd_forward(context, s, x.data(), weight.data(), bias.data(), result.data(), parts);
  const double fast_y = roundings(result, y);
  result.resize(dx.size());
  lpo::detail::winograd_backward_data(context, s, dy.data(), weight.data(), result.data(), false, parts);
  const double fast_dx = roundings(result, dx);
  result.resize(dweight.size());
  lpo::detail::winograd_backward_weights(context, s, x.data(), dy.data(), result.data(), false, parts);
  const double fast_dweight = roundings(result, dweight);
  MESSAGE("errors in units of 2^-24: y ", direct_y, " directly and ", fast_y, ", dx ", fast_dx, ", dweight ", fast_dweight);
  CHECK(direct_y < 7);  // 3.3 with fused multiply-adds, 5.1 without
  CHECK(fast_y < 30);
  CHECK(fast_dx < 30);
  CHECK(fast_dweight < 30);
}

TEST_CASE("Winograd's convolution spreads a number that is not finite over 5 x 5 outputs at most, of its image") {
  Context<Cpu> context(1);
  const auto parts = WinogradParts::of(context);
  const Conv2dShape s = shape(2, 12, 12, 16, 16, 3, 1, 1, 1);
  const index_t image = s.h * s.w;
  const auto weight = random_values<float>(s.o * 9 * s.c, 1), bias = random_values<float>(s.o, 2);
  const auto finite = random_values<float>(s.n * image * s.c, 3);
  std::vector<float> y(static_cast<std::size_t>(s.n * image * s.o)), expected = y;
  lpo::detail::winograd_forward(context, s, finite.data(), weight.data(), bias.data(), expected.data(), parts);
  for (const float value : {std::nanf(""), HUGE_VALF})
    for (index_t pixel = 0; pixel < image; ++pixel) {
      auto x = finite;
      x[static_cast<std::size_t>(pixel * s.c + 1)] = value;
      lpo::detail::winograd_forward(context, s, x.data(), weight.data(), bias.data(), y.data(), parts);
      index_t reached = 0, missed = 0, elsewhere = 0;
      for (index_t at = 0; at < s.n * image; ++at) {
        const index_t o = at * s.o + at % s.o;
        const bool near = at < image && std::abs(at / s.w - pixel / s.w) <= 1 && std::abs(at % s.w - pixel % s.w) <= 1;
        const bool changed = y[static_cast<std::size_t>(o)] != expected[static_cast<std::size_t>(o)];
        reached += changed;
        missed += near && std::isfinite(y[static_cast<std::size_t>(o)]);
        elsewhere += at >= image && changed;
      }
      CAPTURE(pixel);
      CHECK(reached <= 25);
      CHECK(missed == 0);
      CHECK(elsewhere == 0);
    }
}

TEST_CASE("products of Winograd's convolution take no more memory than its images, however many its output channels") {
  const Conv2dShape s = shape(1, 64, 64, 16, 512, 3, 1, 1, 1);
  const auto x = random_values<float>(s.h * s.w * s.c, 1), weight = random_values<float>(s.o * 9 * s.c, 2);
  std::vector<float> y(static_cast<std::size_t>(s.h * s.w * s.o));
  Context<Cpu> context(1);
  const WinogradParts parts = {index_t{1} << 20, index_t{1} << 20};
  lpo::detail::winograd_forward(context, s, x.data(), weight.data(), static_cast<const float*>(nullptr), y.data(), parts);
  CHECK(context.scratch().peak_bytes() < std::size_t{8} << 20);  // with parts by their images alone, 16 MiB of products
}
