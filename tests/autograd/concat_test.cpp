// SPDX-License-Identifier: MIT
// Concatenation and dense copies: values, gradients, strided inputs, one value on both sides; errors.
#include <lpo/autograd/attention.hpp>
#include <lpo/autograd/concat.hpp>
#include <lpo/autograd/linear.hpp>
#include <lpo/backend/cpu/copy.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/reference/attention.hpp>
#include <lpo/backend/reference/copy.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/gemm.hpp>
#include <lpo/backend/reference/reduce.hpp>

#include "support.hpp"

TEST_CASE("values of concatenations") {
  Context<Cpu> context(1);
  Tape<Cpu> tape(context);
  auto as = lpo::testing::random_tensor<float, Cpu>(Extents<3>{2, 3, 4}, 1);
  auto bs = lpo::testing::random_tensor<float, Cpu>(Extents<3>{2, 3, 2}, 2);
  auto cs = lpo::testing::random_tensor<float, Cpu>(Extents<3>{5, 3, 4}, 3);
  const auto a = constant(tape, as), b = constant(tape, bs), c = constant(tape, cs);
  const auto channels = concat_channels(a, b);
  CHECK(channels.extents() == Extents<3>{2, 3, 6});
  const auto batch = concat_batch(a, c);
  CHECK(batch.extents() == Extents<3>{7, 3, 4});
  bool same = true;
  for (index_t i = 0; i < 2; ++i)
    for (index_t j = 0; j < 3; ++j) {
      for (index_t k = 0; k < 6; ++k)
        same = same && channels.view()(i, j, k) == (k < 4 ? as(i, j, k) : bs(i, j, k - 4));
      for (index_t k = 0; k < 4; ++k)
        same = same && batch.view()(i, j, k) == as(i, j, k) && batch.view()(i + 2, j, k) == cs(i, j, k);
    }
  CHECK(same);
}

TEST_CASE("gradients of concatenations") {
  auto a = randn(Extents<3>{2, 3, 4}, 1), b = randn(Extents<3>{2, 3, 2}, 2), c = randn(Extents<3>{3, 3, 4}, 3);
  SUBCASE("channels") {
    check_gradients([](auto&, const auto& u, const auto& v) { return concat_channels(u, v); }, std::tie(a, b));
  }
  SUBCASE("batch") {
    check_gradients([](auto&, const auto& u, const auto& v) { return concat_batch(u, v); }, std::tie(a, c));
  }
  SUBCASE("one value twice, and slices of one value in the other order") {
    check_gradients([](auto&, const auto& u) { return square(concat_channels(u, u)); }, std::tie(a));
    check_gradients([](auto&, const auto& u) { return tanh(concat_batch(u, u)) * u.slice(0, 0, 1); }, std::tie(a));
    check_gradients([](auto&, const auto& u) { return concat_channels(u.slice(2, 1, 4), u.slice(2, 0, 2)); },
                    std::tie(a));
    check_gradients([](auto&, const auto& u) { return concat_batch(u.slice(0, 1, 2), u); }, std::tie(a));
  }
  SUBCASE("a frozen side") {
    check_gradients([](auto&, const auto& u, const auto& v) { return concat_channels(u, v); },
                    std::tie(std::as_const(a), b));
  }
}

TEST_CASE("gradients of dense copies of slices along any axis") {
  auto a = randn(Extents<4>{2, 3, 4, 5}, 1);
  for (const int axis : {0, 1, 2, 3}) {
    CAPTURE(axis);
    check_gradients(
        [axis](auto&, const auto& u) {
          const auto copy = contiguous(u.slice(axis, 1, 2));
          return copy * copy + copy;
        },
        std::tie(a));
  }
  Context<Reference> context;
  Tape<Reference> tape(context);
  const auto x = variable(tape, a);
  CHECK(contiguous(x).slot() == x.slot());
  const auto copy = contiguous(x.slice(2, 1, 3));
  CHECK(copy.view().dense());
  CHECK(copy.view()(1, 2, 1, 4) == a(1, 2, 2, 4));
}

TEST_CASE("repetition of a batch, and the sum that its gradient is") {
  auto a = randn(Extents<3>{2, 3, 4}, 1);
  check_gradients([](auto&, const auto& u) { return repeat_batch(u, 6); }, std::tie(a));
  check_gradients([](auto&, const auto& u) { return Var(repeat_batch(u, 4) * concat_batch(u, u)); }, std::tie(a));
  Context<Reference> context;
  Tape<Reference> tape(context);
  const auto x = variable(tape, a);
  CHECK(repeat_batch(x, 2).slot() == x.slot());
  const auto y = repeat_batch(x, 6);
  CHECK(to_string(y.extents()) == "[6, 3, 4]");
  CHECK(y.view()(5, 2, 3) == a(1, 2, 3));
  CHECK(error_text<lpo::ShapeError>([&] { repeat_batch(x, 5); }) ==
        "[repeat_batch] [2, 3, 4] cannot be repeated to 5 rows");
}

TEST_CASE("concatenation on Cpu agrees with Reference") {
  const auto a = randn(Extents<4>{2, 5, 6, 33}, 1), b = randn(Extents<4>{2, 5, 6, 17}, 2);
  check_parity(
      1e-6, [](auto&, const auto& u, const auto& v) { return concat_channels(u.slice(3, 3, 22), v); }, a, b);
  check_parity(
      1e-6,
      [](auto&, const auto& u, const auto& v) { return concat_batch(concat_channels(u, v), concat_channels(u, v)); }, a,
      b);
}

TEST_CASE("extents that do not fit") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto as = randn(Extents<3>{2, 3, 4}, 1), bs = randn(Extents<3>{2, 2, 4}, 2);
  const auto a = variable(tape, as), b = variable(tape, bs);
  CHECK(error_text<lpo::ShapeError>([&] { concat_channels(a, b); }) ==
        "[concat_channels] [2, 3, 4] and [2, 2, 4] differ outside the channels");
  CHECK(error_text<lpo::ShapeError>([&] { concat_batch(a, b); }) ==
        "[concat_batch] [2, 3, 4] and [2, 2, 4] differ outside the batch");
  CHECK(error_text<lpo::ShapeError>([&] { concat_channels(a.slice(1, 0, 2), b); }) ==
        "[concat_channels] only the axis before the innermost of [2, 2, 4] may have a stride");
}

TEST_CASE("operands of two tapes are refused: backward would leave one of them out") {
  Context<Reference> context;
  Tape<Reference> tape(context), other(context);
  auto values = randn(Extents<3>{2, 2, 4}, 1);
  const auto x = variable(tape, values), y = variable(other, values);
  const auto refused = [](auto&& call) {
    CHECK(error_text<lpo::ValueError>(call).find("] the operands are recorded on different tapes; use one tape per forward") !=
          std::string::npos);
  };
  refused([&] { concat_channels(x, y); });
  refused([&] { concat_batch(y, x); });
  refused([&] { lpo::attention(x, x, y, 2); });
  refused([&] { lpo::linear(x.reshape(Extents<2>{4, 4}), y.slice(0, 0, 1).reshape(Extents<2>{2, 4})); });
}
