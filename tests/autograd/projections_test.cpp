// SPDX-License-Identifier: MIT
// Projections of one input in the products of one: values and gradients against one by one, for every way in which
// weights and adapters can lie and be trained; kept keys and values.
#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <vector>

#include <lpo/lpo.hpp>
#include <lpo/testing/random_tensor.hpp>

#include "../error_text.hpp"

using lpo::Cpu;
using lpo::Extents;
using lpo::index_t;
using lpo::Tape;
using lpo::Tensor;
using lpo::Var;
using lpo::View;

namespace {

template <class T>
struct Three {
  lpo::LoraLinear<6, 8, T, Cpu, false> q, k, v;

  void visit(lpo::ParameterVisitor<T, Cpu>& visitor) {
    visitor("to_q", q);
    visitor("to_k", k);
    visitor("to_v", v);
  }
};

enum class Trained { nothing, adapters, weights, all };

/// How the results are used: all in full, or some not at all and some in part.
enum class Use { all, some };

struct Result {
  std::vector<double> values, input_gradient, weight_gradients;
};

template <class T>
Result run(bool together, index_t rank, Trained trained, Use use, int passes = 1) {
  lpo::Context<Cpu> context(1);
  Tape<Cpu> tape(context);
  Three<T> layer;
  if (rank > 0) lpo::enable_lora<T, Cpu>(layer, rank, 3.0f);
  lpo::ParameterStore<T, Cpu> store;
  store.add("", layer);
  store.allocate([&](const std::string& name) {
    const bool lora = lpo::is_lora_name(name);
    return trained == Trained::all || (trained == Trained::adapters && lora) || (trained == Trained::weights && !lora);
  });
  lpo::RandomStream random(1, 2, 3);
  for (const auto& entry : store.entries())
    for (index_t i = 0; i < entry.parameter->size(); ++i)
      entry.parameter->data()[i] = static_cast<T>(random.normal());
  auto x = lpo::testing::random_tensor<T, Cpu>(Extents<3>{2, 5, 6}, 4);
  const auto weight_of = lpo::testing::random_tensor<T, Cpu>(Extents<3>{2, 5, 8}, 5);
  Result result;
  const Var<T, 3, Cpu> in = lpo::variable(tape, x);
  store.reset_gradients();
  for (int pass = 0; pass < passes; ++pass) {
    std::array<Var<T, 3, Cpu>, 3> y;
    if (together) {
      const std::array parts = {layer.q.weights_on(tape), layer.k.weights_on(tape), layer.v.weights_on(tape)};
      REQUIRE(lpo::can_project_together(parts));
      y = lpo::projections(in, parts);
    } else {
      y = {layer.q(in), layer.k(in), layer.v(in)};
    }
    if (pass == 0)
      for (const auto& part : y) {
        const Var<T, 3, Cpu> dense = lpo::contiguous(part);
        result.values.insert(result.values.end(), dense.data(), dense.data() + dense.size());
      }
    Var<T, 3, Cpu> out;
    if (use == Use::all) {
      out = Var<T, 3, Cpu>(y[0] * y[1] + y[2] * weight_of.view() + y[1]);
    } else {
      const Var<T, 3, Cpu> some = y[2].slice(1, 1, 3) * weight_of.view().slice(1, 1, 3);
      out = Var<T, 3, Cpu>(y[2].slice(1, 2, 4) + some);
    }
    const auto cotangent = lpo::testing::random_tensor<T, Cpu>(out.extents(), 6);
    lpo::backward(out, cotangent.view());
  }
  const auto dx = lpo::read_gradient(in);
  result.input_gradient.assign(dx.data(), dx.data() + dx.size());
  store.finish_gradients();
  const T* gradients = store.trainable_gradients();
  result.weight_gradients.assign(gradients, gradients + store.trainable_size());
  tape.clear();
  return result;
}

template <class T>
void compare(index_t rank, Trained trained, Use use, double tolerance, int passes = 1) {
  CAPTURE(rank);
  CAPTURE(static_cast<int>(trained));
  CAPTURE(static_cast<int>(use));
  const Result apart = run<T>(false, rank, trained, use, passes), joint = run<T>(true, rank, trained, use, passes);
  CHECK(joint.values == apart.values);
  const auto near = [&](const std::vector<double>& a, const std::vector<double>& b) {
    REQUIRE(a.size() == b.size());
    double worst = 0;
    for (std::size_t i = 0; i < a.size(); ++i) worst = std::max(worst, std::abs(a[i] - b[i]) / (1 + std::abs(b[i])));
    CHECK(worst <= tolerance);
  };
  near(joint.input_gradient, apart.input_gradient);
  near(joint.weight_gradients, apart.weight_gradients);
}

}  // namespace

TEST_CASE("projections together are the bits of projections one by one, with their gradients") {
  for (const index_t rank : {0, 1, 3})
    for (const Trained trained : {Trained::nothing, Trained::adapters, Trained::weights, Trained::all})
      for (const Use use : {Use::all, Use::some}) {
        compare<float>(rank, trained, use, 2e-5);
        compare<double>(rank, trained, use, 1e-13);
      }
  compare<double>(3, Trained::all, Use::all, 1e-13, 2);  // gradients add up over passes
}

TEST_CASE("projections of unequal layers stay apart") {
  lpo::Context<Cpu> context(1);
  Tape<Cpu> tape(context);
  Three<float> layer;
  lpo::enable_lora<float, Cpu>(layer, 2, 2.0f, [](const std::string& name) { return name == "to_q"; });
  lpo::ParameterStore<float, Cpu> store;
  store.add("", layer);
  store.allocate(lpo::is_lora_name);
  const std::array parts = {layer.q.weights_on(tape), layer.k.weights_on(tape), layer.v.weights_on(tape)};
  CHECK_FALSE(lpo::can_project_together(parts));
  auto x = Tensor<float, 3, Cpu>::zeros(Extents<3>{1, 2, 6});
  CHECK(error_text<lpo::ValueError>([&] { lpo::projections(lpo::constant(tape, x), parts); }) ==
        "[projections] the weights are not equally spaced in memory; project one by one");
  const auto plain = tape.without_adapters();
  const std::array unadapted = {layer.q.weights_on(tape), layer.k.weights_on(tape), layer.v.weights_on(tape)};
  CHECK(lpo::can_project_together(unadapted));
}

TEST_CASE("keys and values of a text are computed once, and again when they are forgotten") {
  lpo::Context<Cpu> context(1);
  Tape<Cpu> tape(context);
  lpo::Attention<8, 6, 2, float, Cpu> layer;
  lpo::enable_lora<float, Cpu>(layer, 2, 2.0f);
  lpo::ParameterStore<float, Cpu> store;
  store.add("", layer);
  store.allocate(lpo::is_lora_name);
  store.initialize(3);
  for (const auto& entry : store.entries())
    for (index_t i = 0; i < entry.parameter->size(); ++i)
      if (lpo::is_lora_name(entry.name)) entry.parameter->data()[i] = 0.1f * static_cast<float>(i % 7);
  auto x = lpo::testing::random_tensor<float, Cpu>(Extents<3>{2, 3, 8}, 4),
       residual = lpo::testing::random_tensor<float, Cpu>(Extents<3>{2, 3, 8}, 5),
       text = lpo::testing::random_tensor<float, Cpu>(Extents<3>{2, 4, 6}, 6);
  const auto attend = [&] {
    const Var<float, 3, Cpu, 8> y = layer(Var<float, 3, Cpu>(lpo::constant(tape, x)),
                                          Var<float, 3, Cpu>(lpo::constant(tape, text)),
                                          Var<float, 3, Cpu, 8>(lpo::constant(tape, residual)));
    const std::vector<float> values(y.data(), y.data() + y.size());
    tape.clear();
    return values;
  };
  const auto expected = attend();
  lpo::KeptProjections<Cpu> kept;
  const auto keeping = tape.keeping(kept);
  CHECK(attend() == expected);  // while it records, a tape keeps nothing
  const auto guard = tape.inference();
  CHECK(attend() == expected);
  const float before = text(0, 0, 0);
  text(0, 0, 0) = 9;
  CHECK(attend() == expected);  // from memory
  {
    const auto plain = tape.without_adapters();
    CHECK(attend() != expected);  // other adapters are other keys
  }
  text(0, 0, 0) = before;
  kept.clear();
  CHECK(attend() == expected);
}
