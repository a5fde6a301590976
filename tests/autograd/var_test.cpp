// SPDX-License-Identifier: MIT
// Gradients of fused statements: every operation, repeated and constant leaves, every kind of broadcast, slices,
// reshapes.
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/reference/elementwise.hpp>

#include "support.hpp"

namespace {

/// Values in [-2, 2] that keep away from 0, where relu, abs and maximum have a corner.
Tensor<double, 2, Reference> away_from_zero(const Extents<2>& extents, std::uint64_t seed) {
  auto x = randn(extents, seed);
  for (double& v : x.span()) v = std::copysign(0.2 + std::fmin(std::fabs(v), 1.8), v);
  return x;
}

Tensor<double, 2, Reference> positive(const Extents<2>& extents, std::uint64_t seed) {
  auto x = randn(extents, seed);
  for (double& v : x.span()) v = 0.3 + std::fabs(v);
  return x;
}

}  // namespace

TEST_CASE("gradients of unary operations") {
  auto x = away_from_zero({3, 7}, 1);
  auto p = positive({3, 7}, 2);
  const auto check = [&](auto&& f, auto& input) {
    check_gradients([&](auto&, const auto& v) { return Var(f(v)); }, std::tie(input));
  };
  SUBCASE("negate") {
    check([](const auto& v) { return -v; }, x);
  }
  SUBCASE("exp") {
    check([](const auto& v) { return exp(v); }, x);
  }
  SUBCASE("log") {
    check([](const auto& v) { return log(v); }, p);
  }
  SUBCASE("sqrt") {
    check([](const auto& v) { return sqrt(v); }, p);
  }
  SUBCASE("square") {
    check([](const auto& v) { return square(v); }, x);
  }
  SUBCASE("abs") {
    check([](const auto& v) { return abs(v); }, x);
  }
  SUBCASE("relu") {
    check([](const auto& v) { return relu(v); }, x);
  }
  SUBCASE("sigmoid") {
    check([](const auto& v) { return sigmoid(v); }, x);
  }
  SUBCASE("silu") {
    check([](const auto& v) { return silu(v); }, x);
  }
  SUBCASE("tanh") {
    check([](const auto& v) { return tanh(v); }, x);
  }
  SUBCASE("gelu") {
    check([](const auto& v) { return gelu(v); }, x);
  }
  SUBCASE("quick_gelu") {
    check([](const auto& v) { return quick_gelu(v); }, x);
  }
  SUBCASE("softplus") {
    check([](const auto& v) { return softplus(v); }, x);
  }
  SUBCASE("clamp") {
    check([](const auto& v) { return clamp(v, -1.05, 1.15); }, x);
  }
}

TEST_CASE("gradients of binary operations, with Vars and numbers on either side") {
  auto x = away_from_zero({3, 7}, 1), y = away_from_zero({3, 7}, 2);
  const auto check = [&](auto&& f) {
    check_gradients([&](auto&, const auto& a, const auto& b) { return Var(f(a, b)); }, std::tie(x, y));
  };
  SUBCASE("add") {
    check([](const auto& a, const auto& b) { return 2 + a + b + 0.5f; });
  }
  SUBCASE("subtract") {
    check([](const auto& a, const auto& b) { return (3.0 - a) - (b - 1); });
  }
  SUBCASE("multiply") {
    check([](const auto& a, const auto& b) { return 2 * a * (b * 3); });
  }
  SUBCASE("divide") {
    check([](const auto& a, const auto& b) { return a / b + 1 / a + b / 4; });
  }
  SUBCASE("maximum") {
    check([](const auto& a, const auto& b) { return maximum(a, b) * maximum(b, 0.11); });
  }
  SUBCASE("minimum") {
    check([](const auto& a, const auto& b) { return minimum(a, b) * minimum(0.13, a); });
  }
}

TEST_CASE("a corner gives its whole gradient to the first argument") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto values = Tensor<double, 1, Reference>::full(Extents<1>{3}, 2.0);
  auto other = values.clone();
  const auto a = variable(tape, values), b = variable(tape, other);
  const Var y = maximum(a, b) + 10 * minimum(a, b);
  backward(y, View<const double, 1, Reference>(Tensor<double, 1, Reference>::full({3}, 1.0)));
  CHECK(read_gradient(a)(1) == 11.0);
  CHECK(read_gradient(b)(1) == 0.0);
}

TEST_CASE("repeated leaves, constants and several consumers share one gradient") {
  auto x = randn(Extents<2>{4, 9}, 1);
  auto s = randn(Extents<2>{4, 9}, 2);
  const auto fixed = randn(Extents<2>{4, 9}, 3);
  SUBCASE("one statement") {
    check_gradients([](auto&, const auto& a, const auto& b) { return Var(silu(a * (1 + b) + b) * a + a * a * b); },
                    std::tie(x, s));
  }
  SUBCASE("a constant on the tape, a plain tensor and a temporary") {
    check_gradients(
        [&](auto&, const auto& a, const auto& c) { return Var(a * c + fixed * a + a * Tensor(fixed * 0.5) + fixed); },
        std::tie(x, fixed));
  }
  SUBCASE("several statements: the first writer stores, the others add") {
    check_gradients(
        [](auto&, const auto& a, const auto& b) {
          const Var h = a * b;
          const Var g = tanh(h) + h;
          const Var k = h * g + a;
          return Var(k + g * h + h);
        },
        std::tie(x, s));
  }
  SUBCASE("a value that nothing reads") {
    check_gradients(
        [](auto&, const auto& a, const auto& b) {
          const Var unused = exp(a * b);
          (void)unused;
          return Var(a * b);
        },
        std::tie(x, s));
  }
}

TEST_CASE("gradients of broadcast leaves are sums") {
  auto x = randn(Extents<4>{2, 3, 2, 5}, 1);
  const auto check = [&](auto& s) {
    check_gradients([](auto&, const auto& a, const auto& b) { return Var(silu(a * b) + b * b); }, std::tie(x, s));
  };
  SUBCASE("[c]") {
    auto s = randn(Extents<1>{5}, 2);
    check(s);
  }
  SUBCASE("[w, c]") {
    auto s = randn(Extents<2>{2, 5}, 2);
    check(s);
  }
  SUBCASE("[n, 1, 1, c]") {
    auto s = randn(Extents<4>{2, 1, 1, 5}, 2);
    check(s);
  }
  SUBCASE("[1, h, 1, c]") {
    auto s = randn(Extents<4>{1, 3, 1, 5}, 2);
    check(s);
  }
  SUBCASE("[h, 1, c] of lower rank") {
    auto s = randn(Extents<3>{3, 1, 5}, 2);
    check(s);
  }
  SUBCASE("both sides broadcast each other") {
    auto a = randn(Extents<4>{2, 1, 2, 5}, 3), b = randn(Extents<4>{1, 3, 1, 5}, 4);
    check_gradients([](auto&, const auto& u, const auto& v) { return Var(u * v + tanh(u - v)); }, std::tie(a, b));
  }
}

TEST_CASE("gradients of leaves repeated along the innermost axis") {
  auto x = randn(Extents<3>{2, 3, 5}, 1);
  SUBCASE("[..., 1]") {
    auto s = randn(Extents<3>{2, 3, 1}, 2);
    check_gradients([](auto&, const auto& a, const auto& b) { return Var(a * bcast_last(b) + sigmoid(bcast_last(b))); },
                    std::tie(x, s));
  }
  SUBCASE("[n, 1, 1]") {
    auto s = randn(Extents<3>{2, 1, 1}, 2);
    check_gradients([](auto&, const auto& a, const auto& b) { return Var(silu(a + bcast_last(b))); }, std::tie(x, s));
  }
  SUBCASE("[1]") {
    auto s = randn(Extents<1>{1}, 2);
    check_gradients([](auto&, const auto& a, const auto& b) { return Var(a * bcast_last(b)); }, std::tie(x, s));
  }
  SUBCASE("with [c] in the same statement") {
    auto s = randn(Extents<3>{2, 3, 1}, 2);
    auto c = randn(Extents<1>{5}, 3);
    check_gradients([](auto&, const auto& a, const auto& b, const auto& w) { return Var((a - bcast_last(b)) * w + w); },
                    std::tie(x, s, c));
  }
  SUBCASE("an innermost axis of one element, the leaf marked and unmarked in one statement") {
    auto one = randn(Extents<2>{4, 1}, 4);
    check_gradients([](auto&, const auto& a) { return Var(bcast_last(a) * a + exp(a)); }, std::tie(one));
    auto single = randn(Extents<2>{1, 1}, 5);
    check_gradients([](auto&, const auto& a) { return Var(bcast_last(a) * a + exp(bcast_last(a))); }, std::tie(single));
  }
  SUBCASE("outer product of a value with itself") {
    auto v = randn(Extents<2>{4, 1}, 6);
    check_gradients(
        [](auto&, const auto& a) {
          return Var(bcast_last(a) * a.reshape(Extents<2>{1, 4}) + bcast_last(a));
        },
        std::tie(v));
  }
}

TEST_CASE("gradients through slices and reshapes") {
  auto x = randn(Extents<3>{2, 4, 6}, 1);
  SUBCASE("gated halves of one projection") {
    check_gradients([](auto&, const auto& a) { return Var(a.slice(2, 0, 3) * gelu(a.slice(2, 3, 6))); }, std::tie(x));
  }
  SUBCASE("a slice of a slice, and a part that nothing reads") {
    check_gradients([](auto&, const auto& a) { return Var(square(a.slice(1, 1, 4).slice(1, 1, 3).slice(2, 2, 3))); },
                    std::tie(x));
  }
  SUBCASE("overlapping slices of one value in one statement") {
    check_gradients([](auto&, const auto& a) { return Var(a.slice(1, 0, 3) * a.slice(1, 1, 4)); }, std::tie(x));
    check_gradients([](auto&, const auto& a) { return Var(a.slice(2, 0, 5) * a.slice(2, 1, 6)); }, std::tie(x));
  }
  SUBCASE("a slice and the whole") {
    check_gradients([](auto&, const auto& a) { return Var(a.slice(0, 1, 2) * a + a.slice(1, 2, 3)); }, std::tie(x));
    check_gradients(
        [](auto&, const auto& a) {
          const Var h = tanh(a);
          const Var first = h.slice(1, 0, 1) * 2;  // written last in backward, after the whole
          const Var rest = h * h;
          return Var(rest * first);
        },
        std::tie(x));
  }
  SUBCASE("a broadcast slice") {
    check_gradients([](auto&, const auto& a) { return Var(a * a.slice(0, 0, 1).slice(1, 3, 4)); }, std::tie(x));
    check_gradients([](auto&, const auto& a) { return Var(a * bcast_last(a.slice(2, 5, 6))); }, std::tie(x));
  }
  SUBCASE("reshape") {
    check_gradients(
        [](auto&, const auto& a) {
          const Var h = a.reshape(Extents<2>{8, 6}) * 2;
          return Var(
              h.reshape(Extents<3>{2, 4, 6}) * a +
              h.slice(0, 2, 6).reshape(Extents<4>{2, 2, 1, 6}).slice(0, 1, 2).reshape(Extents<2>{2, 6}).slice(0, 0, 1));
        },
        std::tie(x));
  }
  SUBCASE("the result itself is a slice") {
    Context<Reference> context;
    Tape<Reference> tape(context);
    const auto v = variable(tape, x);
    const Var h = 3 * v;
    const auto part = h.slice(2, 1, 3);
    const auto cotangent = randn(part.extents(), 9);
    backward(part, cotangent.view());
    const auto gradient = read_gradient(v);
    CHECK(gradient(1, 2, 0) == 0.0);
    CHECK(gradient(1, 2, 1) == 3 * cotangent(1, 2, 0));
    CHECK(gradient(1, 2, 2) == 3 * cotangent(1, 2, 1));
    CHECK(gradient(1, 2, 3) == 0.0);
  }
}

TEST_CASE("Cpu in float agrees with Reference in double") {
  const auto x = randn(Extents<3>{5, 7, 37}, 1), y = randn(Extents<3>{5, 7, 37}, 2);
  const auto group = randn(Extents<3>{5, 1, 37}, 4), inner = randn(Extents<3>{5, 7, 1}, 5);
  const auto row = randn(Extents<1>{37}, 3);
  const auto statement = [](auto&, const auto& a, const auto& b, const auto& r, const auto& g, const auto& s) {
    return Var(silu(a * (1 + g) + r) * b + gelu(b) * bcast_last(s) - tanh(a) / (2 + square(b)));
  };
  check_parity(3e-6, statement, x, y, row, group, inner);
  const auto sliced = [](auto&, const auto& a) {
    return Var(a.slice(2, 0, 18) * gelu(a.slice(2, 19, 37)) + a.slice(2, 3, 21));
  };
  check_parity(3e-6, sliced, x);
}

TEST_CASE("gradients in bfloat16 and half are those of the rounded values") {
  const auto run = []<class T>(T) {
    Context<Cpu> context(1);
    Tape<Cpu> tape(context);
    auto a = lpo::testing::random_tensor<T, Cpu>(Extents<2>{6, 21}, 1);
    auto w = lpo::testing::random_tensor<T, Cpu>(Extents<1>{21}, 2);
    const auto x = variable(tape, a);
    const auto s = variable(tape, w);
    const Var y = silu(x * s);
    static_assert(std::is_same_v<typename decltype(y)::value_type, T>);
    const auto ones = Tensor<T, 2, Cpu>::full(y.extents(), 1);
    backward(y, ones.view());
    const auto gx = read_gradient(x);
    const auto gs = read_gradient(s);
    double worst = 0;
    for (index_t c = 0; c < 21; ++c) {
      double sum = 0;
      for (index_t r = 0; r < 6; ++r) {
        const double xv = lpo::testing::detail::number(a(r, c)), sv = lpo::testing::detail::number(w(c)), z = xv * sv;
        const double gate = 1 / (1 + std::exp(-z)), slope = gate * (1 + z * (1 - gate));
        worst = std::fmax(worst,
                          std::fabs(lpo::testing::detail::number(gx(r, c)) - slope * sv) / std::fmax(1, std::fabs(sv)));
        sum += slope * xv;
      }
      worst = std::fmax(worst, std::fabs(lpo::testing::detail::number(gs(c)) - sum) / std::fmax(1, std::fabs(sum)));
    }
    return worst;
  };
  CHECK(run(lpo::bfloat16(0.0f)) < 0.005);  // half a unit in the last of 8 bits
  CHECK(run(lpo::half(0.0f)) < 0.0006);
}

TEST_CASE("one thread and three give the same bits") {
  const auto bits = [](int threads) {
    Context<Cpu> context(threads);
    Tape<Cpu> tape(context);
    auto a = lpo::testing::random_tensor<float, Cpu>(Extents<3>{4, 400, 96}, 1);
    auto b = lpo::testing::random_tensor<float, Cpu>(Extents<1>{96}, 2);
    auto c = lpo::testing::random_tensor<float, Cpu>(Extents<3>{4, 400, 1}, 3);
    const auto x = variable(tape, a);
    const auto r = variable(tape, b);
    const auto s = variable(tape, c);
    const Var h = silu(x * r) * bcast_last(s);
    const Var y = h.slice(1, 0, 399) * h.slice(1, 1, 400);  // overlapping slices: rows depend on each other
    backward(y, View<const float, 3, Cpu>(y.data(), y.extents()));
    return std::make_tuple(read_gradient(x), read_gradient(r), read_gradient(s));
  };
  const auto one = bits(1), three = bits(3);
  const auto same = [](const auto& u, const auto& v) {
    return std::equal(u.span().begin(), u.span().end(), v.span().begin());
  };
  CHECK(same(std::get<0>(one), std::get<0>(three)));
  CHECK(same(std::get<1>(one), std::get<1>(three)));
  CHECK(same(std::get<2>(one), std::get<2>(three)));
}

TEST_CASE("overlapping slices are walked by one thread, disjoint ones by all") {
  const auto cross = [](const Extents<2>& whole, int axis, index_t width, index_t a, index_t b) {
    Tensor<float, 2, Cpu> x(whole);
    const auto first = x.view().slice(axis, a, a + width), second = x.view().slice(axis, b, b + width);
    lpo::detail::Leaf leaves[] = {lpo::detail::make_leaf(first), lpo::detail::make_leaf(second)};
    const bool splat[] = {false, false};
    const auto out = lpo::dense_strides(first.extents);
    const auto space = lpo::detail::make_iteration_space(2, first.extents.values, out.values, leaves, splat, 2);
    return lpo::detail::gradients_cross(space, 0, first.data, 4, 1, second.data, 4);
  };
  CHECK_FALSE(cross({6, 10}, 1, 5, 0, 5));
  CHECK_FALSE(cross({6, 10}, 1, 3, 7, 0));
  CHECK_FALSE(cross({6, 10}, 0, 3, 0, 3));
  CHECK_FALSE(cross({6, 10}, 0, 3, 2, 2));
  CHECK(cross({6, 10}, 1, 5, 0, 4));
  CHECK(cross({6, 10}, 1, 5, 4, 0));
  CHECK(cross({6, 10}, 0, 3, 0, 2));
}

TEST_CASE("empty values have gradients") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  Tensor<double, 2, Reference> nothing(Extents<2>{0, 3});
  auto w = randn(Extents<1>{3}, 1);
  const auto x = variable(tape, nothing);
  const auto s = variable(tape, w);
  const Var y = x * s;
  CHECK(y.size() == 0);
  backward(y, View<const double, 2, Reference>(nothing.view()));
  CHECK(read_gradient(s)(0) == 0.0);
  CHECK(read_gradient(s)(2) == 0.0);
  CHECK(read_gradient(x).size() == 0);
}

TEST_CASE("static widths are kept, stated and forgotten without a copy") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto values = randn(Extents<2>{2, 4}, 1);
  const auto x = variable(tape, values);
  const auto wide = x.with_channels<4>();
  static_assert(decltype(wide)::channels == 4);
  const Var y = silu(wide * 2) + x;
  static_assert(decltype(y)::channels == 4);
  const Var<double, 2, Reference> forgotten = wide;
  CHECK(forgotten.slot() == x.slot());
  CHECK(forgotten.data() == x.data());
  const Var<double, 2, Reference, 4> stated = x;
  CHECK(stated.slot() == x.slot());
  const Var same = wide;
  CHECK(same.slot() == x.slot());
  CHECK(error_text<lpo::ShapeError>([&] { x.with_channels<5>(); }) ==
        "[with_channels] innermost axis of [2, 4] must have size 5");
  CHECK(error_text<lpo::ShapeError>([&] { static_cast<void>(Var<double, 2, Reference, 5>(x * 2)); }) ==
        "[Var] innermost axis of [2, 4] must have size 5");
}

TEST_CASE("wrong use of Vars is an error with a text") {
  Context<Reference> context;
  Tape<Reference> tape(context), other(context);
  auto values = randn(Extents<2>{2, 4}, 1);
  const auto x = variable(tape, values);
  const auto y = variable(other, values);
  CHECK(error_text<lpo::ValueError>([&] { static_cast<void>(Var(x + y)); }) ==
        "[operator+] the operands are recorded on different tapes; use one tape per forward");
  const Var<double, 2, Reference> absent;
  CHECK(error_text<lpo::ValueError>([&] { absent.slice(0, 0, 0); }) == "[Var] an absent Var was used; test present() first");
  CHECK(error_text<lpo::ValueError>([&] { static_cast<void>(Var(x + absent)); }) ==
        "[expression] an absent Var was used in arithmetic; test present() first");
  CHECK(error_text<lpo::ShapeError>([&] {
          backward(x, View<const double, 2, Reference>(values.data(), {4, 2}));
        }) == "[backward] output [2, 4] and cotangent [4, 2] must have the same extents");
  const auto fixed = constant(tape, values);
  const Var z = fixed * 2;
  CHECK(error_text<lpo::ValueError>([&] {
          backward(z, View<const double, 2, Reference>(values.view()));
        }).rfind("[backward] the output depends on no value that requires a gradient", 0) == 0);
  CHECK(error_text<lpo::ValueError>([&] { read_gradient(z); }) ==
        "[read_gradient] this value keeps no gradient; make it with variable() before the forward");
  CHECK(error_text<lpo::ShapeError>([&] { read_gradient(x.slice(1, 0, 2)); }) ==
        "[read_gradient] the value is strided; read the gradient of the whole");
}
