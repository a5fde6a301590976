// SPDX-License-Identifier: MIT
// Evaluation: every operation against std in double, for every storage type, layout, broadcast and width.
#include <lpo/tensor/evaluate.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/testing/near.hpp>
#include <lpo/testing/random_tensor.hpp>

#include "../error_text.hpp"

using lpo::Context;
using lpo::Cpu;
using lpo::Extents;
using lpo::index_t;
using lpo::Reference;
using lpo::Tensor;
using lpo::View;
using lpo::testing::random_tensor;

namespace {

double number(float x) { return static_cast<double>(x); }
double number(double x) { return x; }
double number(lpo::half x) { return static_cast<double>(static_cast<float>(x)); }
double number(lpo::bfloat16 x) { return static_cast<double>(static_cast<float>(x)); }

/// Relative rounding error of storing a value of type T.
template <class T>
double rounding() {
  if (std::is_same_v<T, double>) return 1e-15;
  if (std::is_same_v<T, float>) return 3e-7;
  return std::is_same_v<T, lpo::half> ? 0.0005 : 0.004;
}

double sigmoid_of(double x) { return 1 / (1 + std::exp(-x)); }

/// Largest |found - exact| / max(|exact|, 0.1) over x, with every element computed from the stored inputs.
template <class T, class Device, class Lazy, class Exact>
double worst(const Tensor<T, 1, Device>& x, const Tensor<T, 1, Device>& z, Lazy&& lazy, Exact&& exact) {
  Context<Device> context(1);
  Tensor<T, 1, Device> y(x.extents());
  evaluate(&context, y.view(), lazy(x, z));
  double error = 0;
  for (index_t i = 0; i < x.size(); ++i) {
    const double e = exact(number(x(i)), number(z(i)));
    const double d = std::fabs(number(y(i)) - e) / std::max(std::fabs(e), 0.1);
    error = std::max(error, std::isfinite(d) ? d : 1e30);
  }
  return error;
}

template <class T, class Device>
void check_operations() {
  // 83 elements: packs of 16, 8 and 4 lanes all leave a tail.
  const auto x = random_tensor<T, Device>(Extents<1>{83}, 1, 2.0), z = random_tensor<T, Device>(Extents<1>{83}, 2, 2.0);
  auto p = random_tensor<T, Device>(Extents<1>{83}, 3);
  for (T& v : p.span()) v = static_cast<T>(static_cast<lpo::compute_t<T>>(std::fabs(number(v)) + 0.05));
  // Half a unit of the storage type, and a few float roundings inside.
  const double bound = rounding<T>() + (std::is_same_v<lpo::compute_t<T>, double> ? 0.0 : 6e-7);
  // x * (1 + erf(x / sqrt 2)) / 2 cancels where x is negative: the error is a rounding of x itself.
  const double cancelled = bound + 50 * std::numeric_limits<lpo::compute_t<T>>::epsilon();
#define LPO_CHECK_OP_WITHIN(limit, input, lazy, exact)  \
  CHECK_MESSAGE((worst(                                 \
                     input, z,                          \
                     [](const auto& a, const auto& b) { \
                       (void)b;                         \
                       return lazy;                     \
                     },                                 \
                     [](double a, double b) {           \
                       (void)b;                         \
                       return exact;                    \
                     }) <= limit),                      \
                #lazy)
#define LPO_CHECK_OP(input, lazy, exact) LPO_CHECK_OP_WITHIN(bound, input, lazy, exact)
  LPO_CHECK_OP(x, a + b, a + b);
  LPO_CHECK_OP(x, a - b, a - b);
  LPO_CHECK_OP(x, a * b, a * b);
  LPO_CHECK_OP(x, b / (a * a + 1), b / (a * a + 1));
  LPO_CHECK_OP(x, maximum(a, b), std::fmax(a, b));
  LPO_CHECK_OP(x, minimum(a, b), std::fmin(a, b));
  LPO_CHECK_OP(x, maximum(a, 0.5), std::fmax(a, 0.5));
  LPO_CHECK_OP(x, minimum(-0.25, a), std::fmin(-0.25, a));
  LPO_CHECK_OP(x, clamp(a, -1, 1.5), std::fmin(std::fmax(a, -1), 1.5));
  LPO_CHECK_OP(x, 2 - a, 2 - a);
  LPO_CHECK_OP(x, a / 4 + 1.5f, a / 4 + 1.5);
  LPO_CHECK_OP(p, 3 / a, 3 / a);
  LPO_CHECK_OP(x, -a, -a);
  LPO_CHECK_OP(x, exp(a), std::exp(a));
  LPO_CHECK_OP(p, log(a), std::log(a));
  LPO_CHECK_OP(p, sqrt(a), std::sqrt(a));
  LPO_CHECK_OP(x, square(a), a * a);
  LPO_CHECK_OP(x, abs(a), std::fabs(a));
  LPO_CHECK_OP(x, relu(a), std::fmax(a, 0));
  LPO_CHECK_OP(x, sigmoid(a), sigmoid_of(a));
  LPO_CHECK_OP(x, silu(a), a * sigmoid_of(a));
  LPO_CHECK_OP(x, tanh(a), std::tanh(a));
  LPO_CHECK_OP_WITHIN(cancelled, x, gelu(a), 0.5 * a * std::erfc(-a / std::sqrt(2.0)));
  LPO_CHECK_OP(x, quick_gelu(a), a * sigmoid_of(1.702 * a));
  LPO_CHECK_OP(x, softplus(a), std::log1p(std::exp(a)));
#undef LPO_CHECK_OP
#undef LPO_CHECK_OP_WITHIN
}

/// Reads an element of a view with NumPy's rule, aligning axes from the innermost outwards.
template <class T, int Rank, class Device, int OutRank>
double read(const View<T, Rank, Device>& view, const index_t (&at)[OutRank]) {
  index_t offset = 0;
  for (int axis = 0; axis < Rank; ++axis)
    if (view.extents[axis] != 1) offset += at[axis + OutRank - Rank] * view.strides[axis];
  return number(view.data[offset]);
}

/// Compares target = lazy(a, b) with exact(a, b) element by element.
template <class T, class A, class B, int Rank, class Device, class Lazy, class Exact>
double worst_broadcast(const View<T, Rank, Device>& target, const A& a, const B& b, Lazy&& lazy, Exact&& exact) {
  Context<Device> context(2);
  evaluate(&context, target, lazy(a, b));
  double error = 0;
  for (index_t flat = 0; flat < target.size(); ++flat) {
    index_t at[Rank], rest = flat;
    for (int axis = Rank - 1; axis >= 0; --axis) {
      at[axis] = rest % target.extents[axis];
      rest /= target.extents[axis];
    }
    const double d = std::fabs(read(target, at) - exact(read(a, at), read(b, at)));
    error = std::max(error, std::isfinite(d) ? d : 1e30);
  }
  return error;
}

constexpr auto lazy_sum = [](const auto& a, const auto& b) { return a * 2 + a * b; };
constexpr auto lazy_splat = [](const auto& a, const auto& b) { return a * 2 + a * bcast_last(b); };
constexpr auto exact_sum = [](double a, double b) { return a * 2 + a * b; };

template <int Rank>
Tensor<float, Rank> randn(const Extents<Rank>& extents, std::uint64_t seed) {
  return random_tensor<float, Cpu>(extents, seed);
}

}  // namespace

TEST_CASE("every operation on Cpu, float") { check_operations<float, Cpu>(); }
TEST_CASE("every operation on Cpu, double") { check_operations<double, Cpu>(); }
TEST_CASE("every operation on Cpu, bfloat16") { check_operations<lpo::bfloat16, Cpu>(); }
TEST_CASE("every operation on Cpu, half") { check_operations<lpo::half, Cpu>(); }
TEST_CASE("every operation on Reference, double") { check_operations<double, Reference>(); }
TEST_CASE("every operation on Reference, half") { check_operations<lpo::half, Reference>(); }

TEST_CASE("broadcasts of every kind, at odd widths") {
  for (const index_t c : {1, 2, 3, 7, 16, 17, 33, 100}) {
    CAPTURE(c);
    const auto x = randn(Extents<4>{2, 3, 4, c}, 1);
    auto y = Tensor<float, 4>::zeros(x.extents());
    const auto check = [&](const auto& s) {
      return worst_broadcast(y.view(), x.view(), s.view(), lazy_sum, exact_sum);
    };
    CHECK(check(randn(Extents<4>{2, 3, 4, c}, 2)) < 2e-6);
    CHECK(check(randn(Extents<1>{c}, 3)) < 2e-6);
    CHECK(check(randn(Extents<2>{4, c}, 4)) < 2e-6);
    CHECK(check(randn(Extents<3>{3, 1, c}, 5)) < 2e-6);
    CHECK(check(randn(Extents<4>{2, 1, 1, c}, 6)) < 2e-6);
    CHECK(check(randn(Extents<4>{1, 3, 1, c}, 7)) < 2e-6);
    CHECK(check(randn(Extents<4>{1, 1, 1, c}, 8)) < 2e-6);
    const auto splat = [&](const auto& s) {
      return worst_broadcast(y.view(), x.view(), s.view(), lazy_splat, exact_sum);
    };
    CHECK(splat(randn(Extents<4>{2, 3, 4, 1}, 9)) < 2e-6);
    CHECK(splat(randn(Extents<4>{2, 1, 1, 1}, 10)) < 2e-6);
    CHECK(splat(randn(Extents<3>{3, 4, 1}, 11)) < 2e-6);
    CHECK(splat(randn(Extents<1>{1}, 12)) < 2e-6);
  }
}

TEST_CASE("both operands grow, and the lower rank may stand on the left") {
  const auto a = randn(Extents<3>{4, 1, 5}, 1);
  const auto b = randn(Extents<4>{2, 1, 3, 5}, 2);
  auto y = Tensor<float, 4>::zeros({2, 4, 3, 5});
  CHECK(worst_broadcast(y.view(), a.view(), b.view(), lazy_sum, exact_sum) < 2e-6);
  const auto e = a + b;
  CHECK(e.extents == Extents<4>{2, 4, 3, 5});
}

TEST_CASE("strided operands and targets") {
  const auto wide = randn(Extents<3>{4, 6, 40}, 1);
  auto target = Tensor<float, 3>::full({4, 6, 64}, 7);
  const auto a = wide.view().slice(2, 3, 36), b = wide.view().slice(2, 7, 40);
  const auto y = target.view().slice(2, 5, 38);
  CHECK(worst_broadcast(y, a, b, lazy_sum, exact_sum) < 2e-6);
  CHECK(target(3, 5, 4) == 7.0f);
  CHECK(target(3, 5, 38) == 7.0f);
  const auto rows = target.view().slice(1, 1, 4);
  CHECK(worst_broadcast(rows.slice(2, 0, 33), a.slice(1, 0, 3), b.slice(1, 3, 6), lazy_sum, exact_sum) < 2e-6);
}

TEST_CASE("permuted operands and targets") {
  const auto x = randn(Extents<4>{2, 3, 4, 5}, 1);
  const auto z = randn(Extents<4>{2, 5, 3, 4}, 2);
  auto y = Tensor<float, 4>::zeros({2, 5, 3, 4});
  CHECK(worst_broadcast(y.view(), x.view().permute({0, 3, 1, 2}), z.view(), lazy_sum, exact_sum) < 2e-6);
  auto t = Tensor<float, 4>::zeros({2, 3, 4, 5});
  CHECK(worst_broadcast(t.view().permute({0, 3, 1, 2}), z.view(), x.view().permute({0, 3, 1, 2}), lazy_sum, exact_sum) <
        2e-6);
}

TEST_CASE("long rows are cut, and threads do not change a bit") {
  const auto x = randn(Extents<2>{3, 70001}, 1), z = randn(Extents<2>{3, 70001}, 2);
  const auto s = randn(Extents<2>{3, 1}, 3);
  auto y = Tensor<float, 2>::zeros(x.extents());
  CHECK(worst_broadcast(y.view(), x.view(), z.view(), lazy_sum, exact_sum) < 4e-6);
  CHECK(worst_broadcast(y.view().slice(1, 1, 70001), x.view().slice(1, 0, 70000), z.view().slice(1, 1, 70001), lazy_sum,
                        exact_sum) < 4e-6);
  Context<Cpu> one(1), three(3);
  auto a = Tensor<float, 2>::zeros(x.extents()), b = Tensor<float, 2>::zeros(x.extents());
  evaluate(&one, a.view(), silu(x * z) + bcast_last(s));
  evaluate(&three, b.view(), silu(x * z) + bcast_last(s));
  CHECK(std::equal(a.span().begin(), a.span().end(), b.span().begin()));
}

TEST_CASE("empty tensors are evaluated to nothing") {
  const auto x = randn(Extents<3>{2, 0, 5}, 1);
  const auto s = randn(Extents<1>{5}, 2);
  const Tensor y = x * s + 1;
  CHECK(y.extents() == Extents<3>{2, 0, 5});
  const auto none = randn(Extents<2>{3, 0}, 3);
  const auto column = randn(Extents<2>{3, 1}, 4);
  const Tensor z = none + bcast_last(column);
  CHECK(z.extents() == Extents<2>{3, 0});
}

TEST_CASE("extents that do not broadcast") {
  const auto x = randn(Extents<3>{2, 3, 5}, 1);
  const auto y = randn(Extents<3>{2, 4, 5}, 2);
  const auto s = randn(Extents<3>{2, 3, 1}, 3);
  CHECK(error_text<lpo::ShapeError>([&] { x + y; }) == "[operator+] extents [2, 3, 5] and [2, 4, 5] do not broadcast");
  CHECK(error_text<lpo::ShapeError>([&] { x* s; }) ==
        "[operator*] innermost axes of [2, 3, 5] and [2, 3, 1] differ; write bcast_last(x) to broadcast a size-1 "
        "innermost axis");
  CHECK(error_text<lpo::ShapeError>([&] { maximum(s, x); }) ==
        "[maximum] innermost axes of [2, 3, 1] and [2, 3, 5] differ; write bcast_last(x) to broadcast a size-1 "
        "innermost axis");
  CHECK(error_text<lpo::ShapeError>([&] { bcast_last(x); }) ==
        "[bcast_last] innermost axis of [2, 3, 5] must have size 1");
  // A splat mark does not survive a sum with a leaf that is not marked.
  CHECK(error_text<lpo::ShapeError>([&] { (bcast_last(s) + s) * x; }).find("innermost axes") != std::string::npos);
  const Tensor fine = (bcast_last(s) * 2 + 1) * x;
  CHECK(fine.extents() == x.extents());
}

TEST_CASE("a statement of forty operations") {
  const auto x = randn(Extents<1>{21}, 1);
  const auto ten = [](const auto& e) { return e + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1 + 1; };
  const Tensor y = ten(ten(ten(ten(x))));
  CHECK(y(20) == doctest::Approx(x(20) + 40));
}
