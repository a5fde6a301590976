// SPDX-License-Identifier: MIT
// Fused statements on a CUDA device: values and gradients against the reference, broadcasts and repeated leaves included.
#include <lpo/backend/cuda/elementwise.cuh>
#include <lpo/backend/cuda/random.cuh>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/testing/backend_parity.hpp>

#include <backend/parity.hpp>

using lpo::Extents;
using lpo::index_t;

namespace {

template <int Rank>
auto numbers(const Extents<Rank>& extents, std::uint64_t seed, double mean = 0) {
  return lpo::testing::random_tensor<double, lpo::Reference>(extents, seed, 1.0, mean);
}

/// Inputs are rounded to T first, so that only the arithmetic differs; 16-bit results differ by their own rounding.
template <class T, class Function, class... Tensors>
void compare(const char* what, const Function& function, const Tensors&... inputs) {
  CAPTURE(what);
  const auto rounded = [](const auto& tensor) {
    return lpo::testing::converted<double, lpo::Reference>(lpo::testing::converted<T, lpo::Cpu>(tensor));
  };
  const auto result = lpo::testing::backend_parity<T, lpo::Cuda, lpo::Reference>(function, {}, rounded(inputs)...);
  const double limit = std::is_same_v<T, double> ? 1e-12 : std::is_same_v<T, float> ? 5e-6 : 2 * parity::unit<T>;
  INFO(result.message);
  CHECK(result.error < limit);
}

const auto affine = [](auto&, const auto& x, const auto& scale, const auto& shift) {
  lpo::Var y = silu(x * (1 + scale) + shift);
  return y;
};

template <class T>
void compare_statements() {
  for (const Extents<4>& e : {Extents<4>{1, 1, 1, 1}, Extents<4>{2, 3, 5, 7}, Extents<4>{2, 4, 4, 64}, Extents<4>{3, 1, 9, 16},
                              Extents<4>{1, 33, 17, 40}, Extents<4>{5, 16, 16, 24}}) {
    CAPTURE(lpo::to_string(e));
    const auto x = numbers(e, 1), z = numbers(e, 2);
    const index_t n = e[0], h = e[1], w = e[2], c = e[3];
    compare<T>("plain", [](auto&, const auto& a, const auto& b) { lpo::Var y = a * b + exp(-a * a) / (2 + b * b); return y; }, x, z);
    compare<T>("repeated leaf", [](auto&, const auto& a) { lpo::Var y = a * a * a + tanh(a); return y; }, x);
    compare<T>("per channel", affine, x, numbers(Extents<1>{c}, 3), numbers(Extents<1>{c}, 4));
    compare<T>("per image and channel", affine, x, numbers(Extents<4>{n, 1, 1, c}, 3), numbers(Extents<4>{n, 1, 1, c}, 4));
    compare<T>("two kinds of broadcast", affine, x, numbers(Extents<4>{n, 1, 1, c}, 3), numbers(Extents<1>{c}, 4));
    compare<T>("per position", affine, x, numbers(Extents<4>{1, h, w, c}, 3), numbers(Extents<4>{1, h, 1, c}, 4));
    compare<T>("per row", [](auto&, const auto& a, const auto& s) { lpo::Var y = a * bcast_last(s) + a; return y; }, x,
               numbers(Extents<4>{n, h, w, 1}, 3));
    compare<T>("scalar", [](auto&, const auto& a, const auto& s) { lpo::Var y = a * bcast_last(s); return y; }, x,
               numbers(Extents<1>{1}, 3));
    compare<T>("a leaf twice, broadcast", [](auto&, const auto& a, const auto& s) { lpo::Var y = a * s + s; return y; }, x,
               numbers(Extents<1>{c}, 3));
    compare<T>("piecewise", [](auto&, const auto& a, const auto& b) { lpo::Var y = maximum(a, b) + sigmoid(b) * gelu(a); return y; }, x, z);
    if (c > 1 && h > 1) {
      compare<T>("slices of one value", [](auto&, const auto& a) {
        lpo::Var y = a.slice(1, 0, a.extent(1) - 1) * a.slice(1, 1, a.extent(1));
        return y;
      }, x);
      compare<T>("channel slices", [](auto&, const auto& a) {
        lpo::Var y = a.slice(3, 0, a.extent(3) / 2) * sigmoid(a.slice(3, a.extent(3) - a.extent(3) / 2, a.extent(3)));
        return y;
      }, x);
    }
  }
}

/// What sums per channel meet beside one full leaf: several, slices, numbers, gradients that exist already or share memory.
template <class T>
void compare_sums() {
  for (const Extents<4>& e : {Extents<4>{2, 3, 5, 7}, Extents<4>{2, 4, 4, 64}, Extents<4>{1, 33, 17, 40}, Extents<4>{5, 16, 16, 24}}) {
    CAPTURE(lpo::to_string(e));
    const auto x = numbers(e, 1), z = numbers(e, 2);
    const index_t n = e[0], c = e[3];
    compare<T>("in two statements", [](auto&, const auto& a, const auto& r) {
      const lpo::Var scaled = a * r + r;
      lpo::Var y = silu(scaled * r) + a;
      return y;
    }, x, numbers(Extents<1>{c}, 3));
    compare<T>("four leaves", [](auto&, const auto& a, const auto& b, const auto& r, const auto& s) { lpo::Var y = a * r + b * s; return y; },
               x, z, numbers(Extents<1>{c}, 3), numbers(Extents<1>{c}, 4));
    compare<T>("six leaves", [](auto&, const auto& a, const auto& b, const auto& r, const auto& s) {
      lpo::Var y = a * r + b * s + a * b;
      return y;
    }, x, z, numbers(Extents<1>{c}, 3), numbers(Extents<1>{c}, 4));
    // Numbers around 4: 16-bit gradients of two parts, each rounded, would be far off where the parts cancel.
    compare<T>("with a number", [](auto&, const auto& a, const auto& r, const auto& one) { lpo::Var y = a * r + bcast_last(one) * a; return y; },
               x, numbers(Extents<1>{c}, 3, 4), numbers(Extents<1>{1}, 4, 4));
    // Gradients that meet: the value's slice is broadcast along the images, too, with another leaf of that kind before both.
    compare<T>("a value and its slice", [](auto&, const auto& a, const auto& r, const auto& s) {
      lpo::Var y = a * r + s + a * s.slice(0, 0, 1);
      return y;
    }, x, numbers(Extents<4>{1, 1, 1, c}, 3, 4), numbers(Extents<4>{n, 1, 1, c}, 4, 4));
    compare<T>("slices per channel", [](auto&, const auto& a, const auto& r) {
      const index_t kept = r.extent(0);
      lpo::Var y = silu(a.slice(1, 0, a.extent(1) - 1).slice(3, a.extent(3) - kept, a.extent(3)) * r);
      return y;
    }, x, numbers(Extents<1>{c / 2}, 3));
  }
}

}  // namespace

TEST_CASE_TEMPLATE("cuda statements agree with the reference", T, LPO_STORAGE_TYPES) { compare_statements<T>(); }
TEST_CASE_TEMPLATE("cuda statements with sums per channel agree with the reference", T, lpo::bfloat16, float) { compare_sums<T>(); }

namespace {

template <class T>
struct As {
  using type = T;
};

std::vector<double> gradient_of(const auto& var) {
  const auto gradient = lpo::read_gradient(var);
  return lpo::testing::detail::values_of(gradient.view());
}

/// Gradients of silu(x (1 + scale) + shift), stored as X, S and H on the device, in double as the reference.
template <class Device, class X, class S, class H, class Tensors>
std::vector<std::vector<double>> mixed_gradients(As<X>, As<S>, As<H>, const Tensors& x, const auto& scale, const auto& shift) {
  auto context = lpo::testing::test_context<Device>(1);
  lpo::Tape<Device> tape(context);
  auto xs = lpo::testing::converted<X, Device>(x);
  auto scales = lpo::testing::converted<S, Device>(scale);
  auto shifts = lpo::testing::converted<H, Device>(shift);
  const auto a = lpo::variable(tape, xs);
  const auto b = lpo::variable(tape, scales);
  const auto c = lpo::variable(tape, shifts);
  const lpo::Var y = silu(a * (1 + b) + c);
  using Y = typename std::remove_cvref_t<decltype(y)>::value_type;
  const auto cotangent = lpo::testing::converted<Y, Device>(
      lpo::testing::converted<double, lpo::Cpu>(lpo::testing::random_tensor<float, lpo::Cpu>(y.extents(), 9)));
  backward(y, cotangent.view());
  std::vector<std::vector<double>> found;
  const auto keep = [&](const auto& var) { found.push_back(gradient_of(var)); };
  keep(a), keep(b), keep(c);
  return found;
}

template <class X, class S, class H>
void compare_mixed(double limit) {
  for (const Extents<4>& e : {Extents<4>{2, 9, 9, 40}, Extents<4>{2, 4, 4, 64}, Extents<4>{1, 5, 5, 7}}) {
    CAPTURE(lpo::to_string(e));
    const auto rounded = [](auto as, const auto& tensor) {
      using T = typename decltype(as)::type;
      return lpo::testing::converted<double, lpo::Reference>(lpo::testing::converted<T, lpo::Cpu>(tensor));
    };
    const auto x = rounded(As<X>{}, numbers(e, 1));
    const auto scale = rounded(As<S>{}, numbers(Extents<1>{e[3]}, 2)), shift = rounded(As<H>{}, numbers(Extents<1>{e[3]}, 3));
    const auto found = mixed_gradients<lpo::Cuda>(As<X>{}, As<S>{}, As<H>{}, x, scale, shift);
    const As<double> exact;
    const auto expected = mixed_gradients<lpo::Reference>(exact, exact, exact, x, scale, shift);
    for (std::size_t i = 0; i < found.size(); ++i) {
      CAPTURE(i);
      const auto d = lpo::testing::difference(std::span<const double>(found[i]), std::span<const double>(expected[i]), 1e-6);
      INFO(d.message);
      CHECK(d.error < limit);
    }
  }
}

}  // namespace

TEST_CASE("statements of leaves that are stored differently on a CUDA device") {
  compare_mixed<lpo::bfloat16, float, float>(2 * parity::unit<lpo::bfloat16>);
  compare_mixed<float, lpo::bfloat16, lpo::half>(2 * parity::unit<lpo::bfloat16>);
  compare_mixed<lpo::half, double, lpo::half>(2 * parity::unit<lpo::half>);  // too wide for stages in shared memory
  compare_mixed<double, float, double>(1e-6);
}

TEST_CASE("sums of a fused statement over many blocks are exact where their numbers are, again and again") {
  lpo::Context<lpo::Cuda> context;
  lpo::Tape<lpo::Cuda> tape(context);
  auto input = lpo::Tensor<float, 2, lpo::Cuda>::full(Extents<2>{5000, 24}, 1);
  const auto ones = lpo::Tensor<float, 2, lpo::Cuda>::full(input.extents(), 1);
  auto scale = lpo::Tensor<float, 1, lpo::Cuda>::full(Extents<1>{24}, 2);
  auto per_row = lpo::Tensor<float, 2, lpo::Cuda>::full(Extents<2>{5000, 1}, 3);
  for (int round = 0; round < 3; ++round) {
    const auto x = lpo::variable(tape, input);
    const auto s = lpo::variable(tape, scale);
    const auto r = lpo::variable(tape, per_row);
    const lpo::Var y = x * s + bcast_last(r);
    backward(y, ones.view());
    for (const double sum : gradient_of(s)) CHECK(sum == 5000);
    for (const double sum : gradient_of(r)) CHECK(sum == 24);
    tape.clear();
  }
}

TEST_CASE("large statements and long reductions on a CUDA device") {
  const auto x = numbers(Extents<4>{2, 64, 64, 320}, 1);
  compare<float>("per channel", affine, x, numbers(Extents<1>{320}, 3), numbers(Extents<1>{320}, 4));
  compare<float>("per image and channel", affine, x, numbers(Extents<4>{2, 1, 1, 320}, 3), numbers(Extents<4>{2, 1, 1, 320}, 4));
  compare<lpo::bfloat16>("per channel", affine, x, numbers(Extents<1>{320}, 3), numbers(Extents<1>{320}, 4));
  compare<float>("scalar", [](auto&, const auto& a, const auto& s) { lpo::Var y = a * bcast_last(s); return y; }, x,
                 numbers(Extents<1>{1}, 3));
}

TEST_CASE("statements over nothing on a CUDA device: sums are zero") {
  compare<float>("no images", affine, numbers(Extents<4>{0, 3, 3, 8}, 1), numbers(Extents<1>{8}, 3), numbers(Extents<1>{8}, 4));
  compare<float>("no channels", affine, numbers(Extents<4>{2, 3, 3, 0}, 1), numbers(Extents<1>{0}, 3), numbers(Extents<4>{1, 1, 1, 0}, 4));
  compare<float>("no rows", [](auto&, const auto& a, const auto& s) { lpo::Var y = a * bcast_last(s); return y; },
                 numbers(Extents<2>{3, 0}, 1), numbers(Extents<2>{3, 1}, 3));
}

TEST_CASE("tensors of a CUDA device without a context") {
  const auto host = lpo::testing::random_tensor<float, lpo::Cpu>(Extents<2>{5, 7}, 1);
  const auto x = lpo::to_device<lpo::Cuda>(host);
  lpo::Tensor y = x * 2.0 + 1.0;
  y = y - x;
  const auto back = lpo::to_device<lpo::Cpu>(y);
  for (index_t i = 0; i < back.size(); ++i) CHECK(back.data()[i] == host.data()[i] * 2.0f + 1.0f - host.data()[i]);
  const auto turned = lpo::Tensor<float, 2, lpo::Cuda>::copy_of(lpo::View<const float, 2, lpo::Cuda>(x.view().permute({1, 0})));
  const auto turned_back = lpo::to_device<lpo::Cpu>(turned);
  CHECK(turned_back(6, 2) == host(2, 6));
  CHECK(lpo::to_device<lpo::Cpu>(lpo::Tensor<double, 1, lpo::Cuda>::full(Extents<1>{3}, 2.5))(2) == 2.5);
  CHECK(lpo::to_device<lpo::Cpu>(lpo::Tensor<float, 1, lpo::Cuda>::zeros(Extents<1>{3}))(1) == 0.0f);
}
