// SPDX-License-Identifier: MIT
// Sums and means: values, gradients, parity of Cpu, errors.
#include <lpo/autograd/reduce.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/cpu/reduce.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/reduce.hpp>

#include "support.hpp"

TEST_CASE("gradients of reductions") {
  auto x = randn(Extents<2>{4, 6}, 1);
  auto y = randn(Extents<3>{2, 3, 4}, 2);
  check_gradients([](auto&, const auto& u) { return row_sums(u); }, std::tie(x));
  check_gradients([](auto&, const auto& u) { return Var(row_sums(u) * row_sums(Var(u * u))); }, std::tie(x));
  check_gradients([](auto&, const auto& u) { return sum(Var(tanh(u) * u)); }, std::tie(y));
  check_gradients([](auto&, const auto& u) { return mean(Var(square(u))); }, std::tie(y));
  check_gradients(
      [](auto&, const auto& u) { return Var(square(mean(u)) + sum(u.slice(0, 0, 1)) + log(sum(Var(exp(u))))); },
      std::tie(y));
}

TEST_CASE("values and the scalar backward") {
  Context<Cpu> context(2);
  Tape<Cpu> tape(context);
  Tensor<float, 2, Cpu> values(Extents<2>{100, 100});
  for (index_t i = 0; i < values.size(); ++i) values.data()[i] = static_cast<float>(i);
  const auto x = variable(tape, values);
  CHECK(item(sum(x)) == doctest::Approx(49995000.0).epsilon(1e-7));
  const auto loss = mean(x);
  CHECK(item(loss) == doctest::Approx(4999.5).epsilon(1e-7));
  backward(loss);
  const auto gradient = read_gradient(x);
  CHECK(gradient(0, 0) == 1e-4f);
  CHECK(gradient(99, 99) == 1e-4f);
}

TEST_CASE("a formula is computed first; its gradient reaches the Vars in it") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto values = Tensor<double, 2, Reference>::from({1, 2}, std::vector<double>{3, 5});
  const auto x = variable(tape, values);
  const Var both = mean(square(x - 1.0)) + sum(2 * x);
  CHECK(item(both) == 26.0);  // (4 + 16) / 2 + 16
  backward(both);
  CHECK(read_gradient(x)(0, 0) == 4.0);
  CHECK(read_gradient(x)(0, 1) == 6.0);
}

TEST_CASE("the mean of many halves is right where their sum is beyond a half's range") {
  Context<Cpu> context(1);
  Tape<Cpu> tape(context);
  auto values = Tensor<lpo::half, 2, Cpu>::full({300, 300}, 1.5);
  const auto x = variable(tape, values);
  const Var<lpo::half, 1, Cpu> loss = mean(x);
  CHECK(item(loss) == 1.5);
  const auto scaled = Tensor<lpo::half, 1, Cpu>::full({1}, 1024);
  backward(loss, scaled);
  CHECK(static_cast<float>(read_gradient(x)(299, 299)) == doctest::Approx(1024.0 / 90000).epsilon(1e-3));
}

TEST_CASE("reductions on Cpu agree with Reference") {
  const auto x = randn(Extents<2>{37, 45}, 1);
  check_parity(
      1e-6, [](auto&, const auto& u) { return row_sums(u); }, x);
  check_parity(
      2e-6, [](auto&, const auto& u) { return Var(mean(Var(square(u))) + sum(u) * 0.01); }, x);
}

TEST_CASE("extents that do not fit") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto xs = randn(Extents<2>{4, 6}, 1);
  const auto x = variable(tape, xs);
  CHECK(error_text<lpo::ShapeError>([&] { mean(x.slice(0, 2, 2)); }) == "[mean] [0, 6] holds no elements");
  CHECK(item(sum(x.slice(0, 2, 2))) == 0.0);
  CHECK(error_text<lpo::ShapeError>([&] { row_sums(x.slice(1, 0, 2)); }) ==
        "[row_sums] the input must be dense; copy the slice first");
  CHECK(error_text<lpo::ShapeError>([&] { backward(row_sums(x)); }) ==
        "[backward] the loss must hold one element, has [4]");
  CHECK(error_text<lpo::ShapeError>([&] { item(row_sums(x)); }) == "[item] needs one element, has [4]");
}
