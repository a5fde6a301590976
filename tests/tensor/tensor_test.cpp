// SPDX-License-Identifier: MIT
// Tensors: construction, moves, assignment of expressions, and expressions that own what they were made from.
#include <lpo/tensor/tensor.hpp>

#include <doctest/doctest.h>

#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/reference/elementwise.hpp>

#include "../error_text.hpp"

using lpo::Cpu;
using lpo::Extents;
using lpo::index_t;
using lpo::Reference;
using lpo::Tensor;

namespace {

Tensor<float, 2> numbered(index_t rows, index_t columns) {
  Tensor<float, 2> x(Extents<2>{rows, columns});
  for (index_t i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>(i);
  return x;
}

}  // namespace

TEST_CASE("construction and element access") {
  const auto x = Tensor<float, 2>::from(Extents<2>{2, 3}, std::vector<int>{1, 2, 3, 4, 5, 6});
  CHECK(x(1, 2) == 6.0f);
  CHECK(x.extents() == Extents<2>{2, 3});
  CHECK(x.view()(0, 1) == 2.0f);
  CHECK(Tensor<lpo::half, 1>::full(Extents<1>{3}, 0.1)(2).bits == lpo::half(0.1f).bits);
  CHECK(Tensor<double, 3>::zeros({2, 0, 3}).size() == 0);
  CHECK(Tensor<float, 1>().size() == 0);
  CHECK(reinterpret_cast<std::uintptr_t>(x.data()) % 64 == 0);
}

TEST_CASE("wrong construction") {
  CHECK(error_text<lpo::ShapeError>([] {
          Tensor<float, 2>::from(Extents<2>{2, 3}, std::vector<float>(5));
        }) == "[Tensor::from] extents [2, 3] hold 6 elements, given 5");
  CHECK(error_text<lpo::ShapeError>([] {
          Tensor<float, 2> x(Extents<2>{2, -3});
        }) == "[Tensor] negative size in [2, -3]");
  CHECK(error_text<lpo::ShapeError>([] {
          Tensor<float, 2> x(Extents<2>{lpo::index_t{1} << 33, lpo::index_t{1} << 29});
        }) == "[Tensor] [8589934592, 536870912] is too large");
}

TEST_CASE("moves leave nothing behind") {
  auto a = numbered(2, 3);
  const float* data = a.data();
  Tensor<float, 2> b(std::move(a));
  CHECK(b.data() == data);
  CHECK(a.data() == nullptr);
  CHECK(a.size() == 0);
  a = std::move(b);
  CHECK(a.data() == data);
  const auto copy = a.clone();
  CHECK(copy.data() != a.data());
  CHECK(copy(1, 2) == 5.0f);
}

TEST_CASE("an expression of equal extents is evaluated in place, another one allocates") {
  auto x = numbered(3, 4);
  auto y = numbered(3, 4);
  const float* data = y.data();
  y = x * 2 + y;
  CHECK(y.data() == data);
  CHECK(y(2, 3) == 33.0f);
  y = numbered(5, 2) + 1;
  CHECK(y.extents() == Extents<2>{5, 2});
  CHECK(y(4, 1) == 10.0f);
  Tensor deduced = x + x;
  static_assert(std::is_same_v<decltype(deduced), Tensor<float, 2, Cpu>>);
  CHECK(deduced(0, 1) == 2.0f);
}

TEST_CASE("a tensor assigned from its own elements at other places") {
  auto x = numbered(3, 3);
  x = x.view().permute({1, 0}) + 0;
  CHECK(x(0, 2) == 6.0f);
  CHECK(x(2, 0) == 2.0f);
  auto y = numbered(3, 2);
  y = y + y.view().slice(0, 0, 1);  // row 0 is read by every row
  CHECK(y(0, 1) == 2.0f);
  CHECK(y(1, 1) == 4.0f);
  CHECK(y(2, 1) == 6.0f);
}

TEST_CASE("expressions own temporaries") {
  const auto make = [](float value) { return Tensor<float, 2>::full(Extents<2>{50, 40}, value); };
  auto e = silu(make(1) * 2 + make(3)) + make(4);  // under AddressSanitizer, a dangling leaf is an error here
  auto marked = bcast_last(Tensor<float, 2>::full(Extents<2>{50, 1}, 5)) * make(2);
  const auto trample = make(-100);
  const Tensor y = e + marked;
  CHECK(y(49, 39) == doctest::Approx(5 / (1 + std::exp(-5.0)) + 14).epsilon(1e-6));
  auto copy = e;
  const Tensor z = std::move(copy) - 1;
  CHECK(z(0, 0) == doctest::Approx(5 / (1 + std::exp(-5.0)) + 3).epsilon(1e-6));
}

TEST_CASE("views, tensors and expressions mix; nothing is computed before assignment") {
  auto x = numbered(4, 6);
  auto e = x + 1;
  x(0, 0) = 100;
  const Tensor y = e;
  CHECK(y(0, 0) == 101.0f);
  auto target = Tensor<float, 2>::zeros({4, 8});
  lpo::Context<Cpu> context(2);
  evaluate(&context, target.view().slice(1, 2, 8), x.view() * 2);
  CHECK(target(3, 7) == 46.0f);
  CHECK(target(3, 1) == 0.0f);
  CHECK(error_text<lpo::ShapeError>([&] { evaluate(&context, target.view(), x * 2); }) ==
        "[assignment] target [4, 8] and expression [4, 6] must have the same extents");
}

TEST_CASE("storage types convert when they are assigned") {
  const auto x = numbered(3, 20);
  const Tensor<lpo::half, 2> h = x * 0.25;
  const Tensor<lpo::bfloat16, 2> b = h + x;
  const Tensor<double, 2> d = b * 2;
  CHECK(static_cast<float>(h(2, 19)) == 14.75f);
  CHECK(static_cast<float>(b(2, 19)) == 74.0f);  // 73.75 lies between 73.5 and 74: the even one
  CHECK(d(2, 19) == 148.0);
  const Tensor<float, 2> narrowed = d / 3;  // computed in double
  CHECK(narrowed(2, 19) == static_cast<float>(148.0 / 3));
  static_assert(std::is_same_v<decltype(h + h)::value_type, lpo::half>);
  static_assert(std::is_same_v<decltype(h + b)::value_type, float>);
  static_assert(std::is_same_v<decltype(h + d)::value_type, double>);
}

TEST_CASE("the Reference device computes in double") {
  Tensor<float, 1, Reference> x = Tensor<float, 1, Reference>::full({3}, 1e8f);
  Tensor<float, 1, Reference> y = (x + 1) - x;
  CHECK(y(0) == 1.0f);
  Tensor<float, 1, Cpu> a = Tensor<float, 1, Cpu>::full({3}, 1e8f);
  Tensor<float, 1, Cpu> b = (a + 1) - a;
  CHECK(b(0) == 0.0f);
}
