// SPDX-License-Identifier: MIT
// The tape: what is recorded, who stores and who adds, memory that comes back, accumulation, reuse, inference.
#include <lpo/autograd/checkpoint.hpp>
#include <lpo/autograd/linear.hpp>
#include <lpo/autograd/reduce.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/gemm.hpp>
#include <lpo/backend/reference/reduce.hpp>

#include "support.hpp"

namespace {

using Vector = Tensor<double, 1, Reference>;

Vector vector(std::initializer_list<double> values) {
  return Vector::from(Extents<1>{static_cast<index_t>(values.size())}, std::vector<double>(values));
}

void run_backward(const Var<double, 1, Reference>& out) {
  const auto ones = Vector::full(out.extents(), 1.0);
  backward(out, ones.view());
}

/// A trainable weight with memory of its own, as a ParameterStore makes them.
struct Weight {
  Vector value, gradient;
  lpo::Slot slot;

  explicit Weight(std::initializer_list<double> values)
      : value(vector(values)), gradient(Vector::full(value.extents(), 99.0)) {
    slot.data = reinterpret_cast<std::byte*>(value.data());
    slot.gradient = reinterpret_cast<std::byte*>(gradient.data());
    slot.bytes = static_cast<std::size_t>(value.size()) * sizeof(double);
    slot.requires_gradient = slot.persistent = true;
  }
  Var<double, 1, Reference> on(Tape<Reference>& tape) { return {&tape, &slot, value.view()}; }
};

}  // namespace

TEST_CASE("operations below the first trainable value leave no node") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto a = vector({1, 2, 3}), b = vector({4, 5, 6});
  const auto fixed = constant(tape, a);
  const Var h = fixed * 2 + exp(fixed);
  const Var g = h * h;
  CHECK(tape.position() == nullptr);
  CHECK_FALSE(g.requires_gradient());
  const auto x = variable(tape, b);
  CHECK(tape.position() == nullptr);
  const Var y = x * g;
  CHECK(tape.position() != nullptr);
  CHECK(tape.position()->previous == nullptr);
  run_backward(y);
  CHECK(read_gradient(x)(1) == doctest::Approx((4 + std::exp(2.0)) * (4 + std::exp(2.0))).epsilon(1e-12));
}

TEST_CASE("a weight: the first backward stores, the second adds") {
  Context<Reference> context;
  Weight w({2, 3});
  auto input = vector({5, 7});
  for (int pass = 1; pass <= 2; ++pass) {
    Tape<Reference> tape(context);
    const auto x = constant(tape, input);
    const auto weight = w.on(tape);
    run_backward(Var(weight * x + weight));  // two leaves of one slot
    CHECK(w.gradient(0) == pass * 6.0);
    CHECK(w.gradient(1) == pass * 8.0);
  }
  w.slot.written = false;  // what reset_gradients() does
  Tape<Reference> tape(context);
  run_backward(Var(w.on(tape) * 3));
  CHECK(w.gradient(0) == 3.0);
}

TEST_CASE("a weight of which only a slice is used gets zeros elsewhere") {
  Context<Reference> context;
  Weight w({2, 3, 4, 5});
  Tape<Reference> tape(context);
  run_backward(Var(square(w.on(tape).slice(0, 1, 3))));
  CHECK(w.gradient(0) == 0.0);
  CHECK(w.gradient(1) == 6.0);
  CHECK(w.gradient(2) == 8.0);
  CHECK(w.gradient(3) == 0.0);
}

TEST_CASE("consumers in any order: slices before and after the whole") {
  // y = sum(h^2) + sum over parts of h, so dy/dh = 2 h + number of parts that hold the element.
  for (int order = 0; order < 3; ++order) {
    Context<Reference> context;
    Tape<Reference> tape(context);
    auto values = vector({1, 2, 3, 4});
    const auto x = variable(tape, values);
    const Var h = 1 * x;
    Var<double, 1, Reference> whole, left, right;
    const auto make_whole = [&] { whole = sum(Var(square(h))); };
    const auto make_left = [&] { left = sum(h.slice(0, 0, 3)); };
    const auto make_right = [&] { right = sum(h.slice(0, 2, 4)); };
    if (order == 0) make_whole(), make_left(), make_right();
    if (order == 1) make_left(), make_whole(), make_right();
    if (order == 2) make_right(), make_left(), make_whole();
    backward(Var(whole + left + right));
    const auto gradient = read_gradient(x);
    CHECK(gradient(0) == 3.0);
    CHECK(gradient(1) == 5.0);
    CHECK(gradient(2) == 8.0);
    CHECK(gradient(3) == 9.0);
  }
}

TEST_CASE("backward through consumed nodes is an error, not a silent zero") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto values = vector({1, 2});
  const auto x = variable(tape, values);
  const Var h = x * x;
  const Var first = h * 2, second = h * 3;
  run_backward(first);
  CHECK(read_gradient(x)(1) == 8.0);
  CHECK(error_text<lpo::ValueError>([&] { run_backward(second); }).find("backward has run through it") !=
        std::string::npos);
  run_backward(Var(x * 5));  // a new forward on the same tape adds to the variable's gradient
  CHECK(read_gradient(x)(1) == 13.0);
  CHECK(tape.position() == nullptr);
}

TEST_CASE("clear() gives everything back and the tape can be used again") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto values = vector({1, 2});
  const auto before = context.activations().mark();
  std::size_t reserved = 0;
  for (int step = 0; step < 5; ++step) {
    const auto x = variable(tape, values);
    const Var h = tanh(x * x);
    if (step % 2 == 0)
      run_backward(Var(h * x));
    else
      static_cast<void>(Var(h * x));  // abandoned without backward
    tape.clear();
    CHECK(context.activations().mark().used == before.used);
    if (step == 0) reserved = context.reserved_bytes();
    CHECK(context.reserved_bytes() == reserved);
  }
}

TEST_CASE("a value from before clear() is an error where it is used, not whatever lies in its memory now") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto values = vector({1, 2});
  const auto x = variable(tape, values), c = constant(tape, values);
  const auto loss = sum(x);
  tape.clear();
  const auto use = [](auto&& call) {
    CHECK(error_text<lpo::ValueError>(call) ==
          "[Var] this value was made before its tape's clear() and is gone; make variables, constants and results anew in every pass");
  };
  use([&] { static_cast<void>(Var(x * 2)); });
  use([&] { static_cast<void>(sum(c)); });
  use([&] { static_cast<void>(c.slice(0, 0, 1)); });
  use([&] { item(loss); });
  use([&] { backward(loss); });
  const auto again = variable(tape, values);
  backward(sum(again));
  CHECK(read_gradient(again)(1) == 1.0);
}

TEST_CASE("the second step maps no memory") {
  Context<Cpu> context(2);
  auto a = lpo::testing::random_tensor<float, Cpu>(Extents<2>{300, 64}, 1);
  auto r = lpo::testing::random_tensor<float, Cpu>(Extents<1>{64}, 2);
  std::size_t reserved = 0;
  for (int step = 0; step < 4; ++step) {
    Tape<Cpu> tape(context);
    const auto x = variable(tape, a);
    const auto w = variable(tape, r);
    Var<float, 2, Cpu> h = silu(x * w);
    for (int layer = 0; layer < 5; ++layer) {
      const auto part = h.slice(1, 0, 32);
      const Var gate = sigmoid(part) * 2;
      h = checkpoint(
          tape, [](const Var<float, 2, Cpu>& u, const Var<float, 1, Cpu>& s) { return Var(tanh(u * s) + u); }, h, w);
      h = h * 0.5 + w;
      static_cast<void>(gate);
    }
    backward(h, View<const float, 2, Cpu>(a.view()));
    if (step == 0) reserved = context.reserved_bytes();
    CHECK(context.reserved_bytes() == reserved);
  }
}

TEST_CASE("memory of activations is given back while backward walks") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto values = Vector::full({1000}, 0.5);
  const auto x = variable(tape, values);
  Var<double, 1, Reference> h = x * 1.0;
  const auto below = tape.mark();
  for (int layer = 0; layer < 10; ++layer) h = tanh(h * 1.1);
  CHECK(tape.mark().used >= below.used + 10 * 8000);
  run_backward(h);
  CHECK(tape.mark().used <= below.used);
  // Gradients of a chain alternate between two buffers; the variable keeps one.
  CHECK(context.gradients().reserved_bytes() <= 4 * 10240);
}

TEST_CASE("inference leaves no node and scoped blocks leave only their result") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto values = Vector::full({1000}, 0.5);
  const auto block = [&](const Var<double, 1, Reference>& v) {
    return scoped(tape, [&] {
      const Var a = tanh(v * 2);
      const Var b = scoped(tape, [&] { return Var(a * a + exp(a)); });
      return Var(a + b);
    });
  };
  const auto expected = block(variable(tape, values)).data()[7];
  tape.clear();
  {
    const auto guard = tape.inference();
    CHECK_FALSE(tape.recording());
    const auto x = constant(tape, values);
    const auto start = tape.mark();
    Var<double, 1, Reference> y = block(x);
    CHECK(y.data()[7] == expected);
    CHECK_FALSE(y.requires_gradient());
    CHECK(tape.position() == nullptr);
    const auto one = tape.mark().used - start.used;
    CHECK(one == 8000);
    for (int i = 0; i < 3; ++i) y = block(y);
    CHECK(tape.mark().used - start.used == 4 * one);
    const auto reserved = context.reserved_bytes();
    for (int i = 0; i < 1000; ++i) static_cast<void>(scoped(tape, [&] { return sum(block(x)); }));
    CHECK(context.reserved_bytes() == reserved);
  }
  CHECK(tape.recording());
}

TEST_CASE("modes are restored in order") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  CHECK(tape.adapters());
  {
    const auto without = tape.without_adapters();
    CHECK_FALSE(tape.adapters());
    CHECK(tape.recording());
    {
      const auto guard = tape.inference();
      CHECK_FALSE(tape.adapters());
      CHECK_FALSE(tape.recording());
    }
    CHECK(tape.recording());
  }
  CHECK(tape.adapters());
}

TEST_CASE("a value computed in inference is a constant for what follows") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto values = vector({2, 3});
  const auto x = variable(tape, values);
  const auto frozen = [&] {
    const auto guard = tape.inference();
    return Var(x * x);
  }();
  const Var y = frozen * x;
  run_backward(y);
  CHECK(read_gradient(x)(0) == 4.0);
  CHECK(read_gradient(x)(1) == 9.0);
}

TEST_CASE("two tapes on one context nest") {
  Context<Reference> context;
  auto values = vector({2, 3});
  Tape<Reference> outer(context);
  const auto x = variable(outer, values);
  const Var y = x * x;
  {
    Tape<Reference> inner(context);
    const auto v = variable(inner, values);
    run_backward(Var(v * v * v));
    CHECK(read_gradient(v)(1) == 27.0);
  }
  run_backward(y);
  CHECK(read_gradient(x)(1) == 6.0);
}

TEST_CASE("a constant made of a temporary keeps its values for backward") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto values = vector({2, 3});
  const auto x = variable(tape, values);
  const auto c = constant(tape, vector({10, 20}));
  auto trample = Vector::full({2}, -1.0);
  run_backward(Var(x * x * c));
  CHECK(read_gradient(x)(0) == 40.0);
  CHECK(read_gradient(x)(1) == 120.0);
}

TEST_CASE("temporaries and plain tensors in a statement keep their values for backward") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto values = vector({2, 3});
  const auto x = variable(tape, values);
  const auto y = [&] {
    auto temporary = vector({10, 20});
    return Var(x * std::move(temporary) + x * Vector(vector({1, 2}) + 1));
  }();
  auto trample = Vector::full({64}, -1.0);
  run_backward(y);
  CHECK(read_gradient(x)(0) == 12.0);
  CHECK(read_gradient(x)(1) == 23.0);
}
