// SPDX-License-Identifier: MIT
// Checkpoints: the same bits as without, nested, with slices and weights; frozen blocks cost nothing in backward.
#include <lpo/autograd/checkpoint.hpp>
#include <lpo/autograd/concat.hpp>
#include <lpo/autograd/linear.hpp>
#include <lpo/backend/cpu/copy.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/reference/copy.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/gemm.hpp>
#include <lpo/backend/reference/reduce.hpp>

#include "support.hpp"

namespace {

using Matrix = Var<double, 2, Reference>;

/// A block of several statements: x is used three times, w twice.
struct Block {
  Matrix operator()(const Matrix& x, const Matrix& w) const {
    const Var h = linear(x, w);
    const Var g = silu(h) + h * x;
    return Var(linear(g, w) * x + g);
  }
};

struct CheckpointedBlock {
  Tape<Reference>* tape;
  Matrix operator()(const Matrix& x, const Matrix& w) const { return checkpoint(*tape, Block{}, x, w); }
};

/// Values and gradients of `function` as bits.
template <class Function>
std::vector<double> outcome(Function&& function) {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto a = randn(Extents<2>{5, 6}, 1), b = randn(Extents<2>{6, 6}, 2, 0.5);
  const auto x = variable(tape, a);
  const auto w = variable(tape, b);
  const Matrix y = function(tape, x, w);
  std::vector<double> values(y.data(), y.data() + y.size());
  const auto cotangent = randn(y.extents(), 3);
  backward(y, cotangent.view());
  const auto dx = read_gradient(x), dw = read_gradient(w);
  values.insert(values.end(), dx.span().begin(), dx.span().end());
  values.insert(values.end(), dw.span().begin(), dw.span().end());
  return values;
}

}  // namespace

TEST_CASE("with checkpoints, the same bits") {
  const auto plain = outcome([](auto&, const Matrix& x, const Matrix& w) { return Block{}(Block{}(x, w), w); });
  SUBCASE("two in a row") {
    CHECK(plain == outcome([](auto& tape, const Matrix& x, const Matrix& w) {
            return checkpoint(tape, Block{}, checkpoint(tape, Block{}, x, w), w);
          }));
  }
  SUBCASE("one in another") {
    CHECK(plain == outcome([](auto& tape, const Matrix& x, const Matrix& w) {
            return checkpoint(
                tape,
                [t = &tape](const Matrix& u, const Matrix& v) {
                  return CheckpointedBlock{t}(CheckpointedBlock{t}(u, v), v);
                },
                x, w);
          }));
  }
  SUBCASE("three deep") {
    CHECK(plain == outcome([](auto& tape, const Matrix& x, const Matrix& w) {
            return checkpoint(
                tape,
                [t = &tape](const Matrix& u, const Matrix& v) {
                  const auto h = checkpoint(
                      *t, [t](const Matrix& p, const Matrix& q) { return CheckpointedBlock{t}(p, q); }, u, v);
                  return Block{}(h, v);
                },
                x, w);
          }));
  }
  SUBCASE("a scope inside a checkpoint") {
    CHECK(plain == outcome([](auto& tape, const Matrix& x, const Matrix& w) {
            return checkpoint(
                tape,
                [t = &tape](const Matrix& u, const Matrix& v) {
                  const auto h = scoped(*t, [&] { return Block{}(u, v); });
                  return scoped(*t, [&] { return Block{}(h, v); });
                },
                x, w);
          }));
  }
}

TEST_CASE("a checkpoint that returns its input, or a view of it") {
  const auto plain = outcome([](auto&, const Matrix& x, const Matrix&) { return Var(x * 2 + x * x); });
  const auto identity = outcome([](auto& tape, const Matrix& x, const Matrix&) {
    const auto same = checkpoint(
        tape, [](const Matrix& u) { return u; }, x);
    return Var(same * 2 + x * x);
  });
  const auto view = outcome([](auto& tape, const Matrix& x, const Matrix&) {
    const auto same = checkpoint(
        tape,
        [](const Matrix& u) {
          return u.reshape(Extents<3>{5, 2, 3});
        },
        x);
    return Var(same.reshape(Extents<2>{5, 6}) * 2 + x * x);
  });
  using Values = std::span<const double>;  // sums in another order: equal up to rounding
  CHECK(lpo::testing::relative_error(Values(identity), Values(plain)) < 1e-15);
  CHECK(lpo::testing::relative_error(Values(view), Values(plain)) < 1e-15);
}

TEST_CASE("gradients through a checkpoint of a slice, used together with the whole") {
  auto x = randn(Extents<2>{4, 6}, 1), w = randn(Extents<2>{3, 3}, 2);
  check_gradients(
      [](auto& tape, const auto& a, const auto& m) {
        const Var h = tanh(a);
        const auto left = checkpoint(
            tape, [](const Matrix& u, const Matrix& v) { return linear(u, v); }, Matrix(h.slice(1, 0, 3)), Matrix(m));
        const auto right = checkpoint(
            tape, [](const Matrix& u, const Matrix& v) { return Var(linear(u, v) * u); }, Matrix(h.slice(1, 3, 6)),
            Matrix(m));
        return Var(concat_channels(left, Matrix(right)) * h);
      },
      std::tie(x, w));
}

TEST_CASE("a checkpoint in which nothing is trainable leaves no node") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto a = randn(Extents<2>{5, 6}, 1);
  const auto b = randn(Extents<2>{6, 6}, 2);
  const auto x = constant(tape, a);
  const auto w = constant(tape, b);
  int calls = 0;
  const auto y = checkpoint(
      tape, [&calls](const Matrix& u, const Matrix& v) { return ++calls, Block{}(u, v); }, x, w);
  CHECK_FALSE(y.requires_gradient());
  CHECK(tape.position() == nullptr);
  CHECK(calls == 1);
  const auto v = variable(tape, a);
  const auto z = checkpoint(
      tape, [&calls](const Matrix& u, const Matrix& p) { return ++calls, Block{}(u, p); }, Var(y + v), w);
  CHECK(z.requires_gradient());
  backward(z, View<const double, 2, Reference>(a.view()));
  CHECK(calls == 3);
}

TEST_CASE("a weight that only the block knows makes its checkpoint count") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto a = randn(Extents<2>{5, 6}, 1), b = randn(Extents<2>{6, 6}, 2), g = randn(Extents<2>{6, 6}, 3);
  lpo::Slot slot;
  slot.data = reinterpret_cast<std::byte*>(b.data());
  slot.gradient = reinterpret_cast<std::byte*>(g.data());
  slot.bytes = 36 * sizeof(double);
  slot.requires_gradient = slot.persistent = true;
  const auto x = constant(tape, a);
  const Matrix w(&tape, &slot, b.view());
  const auto y = checkpoint(
      tape, [w](const Matrix& u) { return linear(u, w); }, x);
  CHECK(y.requires_gradient());
  const auto ones = Tensor<double, 2, Reference>::full(y.extents(), 1.0);
  backward(y, ones.view());
  for (index_t in = 0; in < 6; ++in) {
    double column = 0;
    for (index_t row = 0; row < 5; ++row) column += a(row, in);
    CHECK(g(3, in) == doctest::Approx(column).epsilon(1e-12));
  }
}

TEST_CASE("a checkpoint keeps one value and nothing of the block") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto a = Tensor<double, 2, Reference>::full({10, 100}, 0.1);
  const auto x = variable(tape, a);
  const auto start = tape.mark();
  const auto y = checkpoint(
      tape,
      [](const Matrix& u) {
        Matrix h = u * 1.5;
        for (int i = 0; i < 20; ++i) h = tanh(h) + u;
        return h;
      },
      x);
  CHECK(tape.mark().used - start.used == 8000);
  backward(y, View<const double, 2, Reference>(a.view()));
  CHECK(tape.mark().used == start.used);
}

TEST_CASE("a checkpoint runs with the adapters it was recorded with") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto a = randn(Extents<2>{2, 2}, 1);
  const auto x = variable(tape, a);
  const auto block = [t = &tape](const Matrix& u) { return t->adapters() ? Matrix(u * 3) : Matrix(u * 5); };
  const auto with = checkpoint(tape, block, x);
  const auto without = [&] {
    const auto guard = tape.without_adapters();
    return checkpoint(tape, block, x);
  }();
  const auto ones = Tensor<double, 2, Reference>::full({2, 2}, 1.0);
  backward(Var(with + without), ones.view());
  CHECK(read_gradient(x)(1, 1) == 8.0);
}

TEST_CASE("a strided result is refused") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto a = randn(Extents<2>{2, 4}, 1);
  const auto x = variable(tape, a);
  CHECK(error_text<lpo::ShapeError>([&] {
          checkpoint(
              tape, [](const Matrix& u) { return u.slice(1, 0, 2); }, x);
        }) == "[checkpoint] the block must return a dense value; return contiguous(x)");
}
