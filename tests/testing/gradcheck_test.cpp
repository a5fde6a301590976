// SPDX-License-Identifier: MIT
// gradcheck itself: it passes right gradients, finds wrong ones and says where; weights in slots; options; float.
#include <lpo/testing/gradcheck.hpp>

#include <doctest/doctest.h>

#include <lpo/autograd/linear.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/cpu/gemm.hpp>
#include <lpo/backend/cpu/reduce.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/testing/random_tensor.hpp>

#include "../error_text.hpp"

using lpo::Cpu;
using lpo::Extents;
using lpo::index_t;
using lpo::Reference;
using lpo::Tape;
using lpo::Tensor;
using lpo::Var;
using lpo::testing::gradcheck;
using lpo::testing::GradcheckOptions;
using lpo::testing::random_tensor;

namespace {

/// y = x^2 whose node delivers `factor` times the right gradient at element `at`, and the right one elsewhere.
Var<double, 1, Reference> square_with_a_flaw(const Var<double, 1, Reference>& x, double factor, index_t at) {
  auto& tape = x.tape();
  const auto mark = tape.mark();
  const auto y = lpo::make_output<double>(tape, x.extents(), x.requires_gradient());
  for (index_t i = 0; i < x.size(); ++i) y.data()[i] = x.data()[i] * x.data()[i];
  if (!y.requires_gradient()) return y;
  tape.push(mark, y.slot(), [=](Tape<Reference>&) {
    const auto dx = gradient_target(x);
    for (index_t i = 0; i < x.size(); ++i)
      dx.data[i] = (dx.accumulate ? dx.data[i] : 0) + output_gradient(y)[i] * 2 * x.data()[i] * (i == at ? factor : 1);
  });
  return y;
}

}  // namespace

TEST_CASE("a right gradient passes, and the values are as before") {
  auto x = random_tensor<double, Reference>(Extents<2>{3, 4}, 1),
       y = random_tensor<double, Reference>(Extents<2>{3, 4}, 2);
  const auto before = x.clone();
  const auto result =
      gradcheck<Reference>([](auto&, const auto& a, const auto& b) { return silu(a) * b + a; }, std::tie(x, y));
  INFO(result.message);
  CHECK(result);
  CHECK(result.error < 1e-7);
  CHECK(result.checked == 24);
  CHECK(std::equal(x.span().begin(), x.span().end(), before.span().begin()));
}

TEST_CASE("a wrong gradient fails, with the element and both numbers") {
  auto x = random_tensor<double, Reference>(Extents<1>{9}, 3, 1, 2);
  CHECK(gradcheck<Reference>([](auto&, const auto& a) { return square_with_a_flaw(a, 1, 5); }, std::tie(x)));
  const auto result =
      gradcheck<Reference>([](auto&, const auto& a) { return square_with_a_flaw(a, 1.25, 5); }, std::tie(x));
  CHECK_FALSE(result);
  CHECK(result.input == "input 0");
  CHECK(result.index == 5);
  CHECK(result.gradient == doctest::Approx(1.25 * result.difference).epsilon(1e-8));
  CHECK(result.error == doctest::Approx(0.2).epsilon(1e-6));
  CHECK(result.message.rfind("worst of 9 gradients: input 0 element 5, tape ", 0) == 0);
  CHECK(result.message.find(" > 1e-06") != std::string::npos);
}

TEST_CASE("a gradient that never arrives and one that is not a number fail") {
  auto x = random_tensor<double, Reference>(Extents<1>{9}, 3, 1, 2);
  CHECK_FALSE(gradcheck<Reference>([](auto&, const auto& a) { return square_with_a_flaw(a, 0, 2); }, std::tie(x)));
  const auto bad =
      gradcheck<Reference>([](auto&, const auto& a) { return square_with_a_flaw(a, std::nan(""), 2); }, std::tie(x));
  CHECK_FALSE(bad);
  CHECK(bad.index == 2);
}

TEST_CASE("constants are left alone; samples limit the work") {
  const auto x = random_tensor<double, Reference>(Extents<1>{50}, 1);
  auto y = random_tensor<double, Reference>(Extents<1>{50}, 2);
  GradcheckOptions options;
  options.samples = 7;
  const auto result =
      gradcheck<Reference>([](auto&, const auto& a, const auto& b) { return a * b; }, std::tie(x, y), options);
  CHECK(result);
  CHECK(result.checked == 7);
}

TEST_CASE("weights in slots are checked under their names") {
  auto x = random_tensor<double, Reference>(Extents<1>{6}, 1),
       weight = random_tensor<double, Reference>(Extents<1>{6}, 2);
  auto gradient = Tensor<double, 1, Reference>::full({6}, 1e9);
  lpo::Slot slot;
  slot.data = reinterpret_cast<std::byte*>(weight.data());
  slot.gradient = reinterpret_cast<std::byte*>(gradient.data());
  slot.bytes = 6 * sizeof(double);
  slot.requires_gradient = slot.persistent = true;
  GradcheckOptions options;
  options.parameters = {{"scale", &slot}};
  const auto function = [&](double factor) {
    return gradcheck<Reference>(
        [&](auto& tape, const auto& a) {
          const Var<double, 1, Reference> w(&tape, &slot, weight.view());
          return a * square_with_a_flaw(w, factor, 4);
        },
        std::tie(x), options);
  };
  CHECK(function(1));
  CHECK(function(1).checked == 12);
  const auto result = function(3);
  CHECK_FALSE(result);
  CHECK(result.input == "scale");
  CHECK(result.index == 4);
}

TEST_CASE("float on Cpu passes with the wider default tolerance") {
  auto x = random_tensor<float, Cpu>(Extents<2>{3, 5}, 1), w = random_tensor<float, Cpu>(Extents<2>{4, 5}, 2);
  const auto result =
      gradcheck<Cpu>([](auto&, const auto& a, const auto& b) { return tanh(linear(a, b)); }, std::tie(x, w));
  INFO(result.message);
  CHECK(result);
}

TEST_CASE("a strided result is refused") {
  auto x = random_tensor<double, Reference>(Extents<2>{3, 5}, 1);
  CHECK(error_text<lpo::ShapeError>([&] {
          gradcheck<Reference>([](auto&, const auto& a) { return Var(a * 2).slice(1, 0, 2); }, std::tie(x));
        }) == "[gradcheck] the function must return a dense value; return contiguous(x)");
}
