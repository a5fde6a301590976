// SPDX-License-Identifier: MIT
// ParameterStore: where weights lie, which get gradients, how they start.
#include <lpo/nn/parameter_store.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>

#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/gemm.hpp>
#include <lpo/backend/reference/reduce.hpp>
#include <lpo/nn/linear.hpp>

using namespace lpo;

namespace {

struct Pair {
  Linear<3, 5, float, Reference> first;
  LoraLinear<5, 300, float, Reference, false> second;
  void visit(ParameterVisitor<float, Reference>& v) {
    v("first", first);
    v("second", second);
  }
};

}  // namespace

TEST_CASE("trainable weights come first and contiguously, aligned, with gradients; the others have none") {
  Pair pair;
  enable_lora<float, Reference>(pair, 2, 2.0f);
  ParameterStore<float, Reference> store;
  store.add("m", pair);
  store.allocate(is_lora_name);
  CHECK(store.entries().size() == 5);
  CHECK(store.parameter_count() == 15 + 5 + 1500 + 10 + 600);
  CHECK(store.parameter_count(true) == 610);
  CHECK(store.trainable_size() % 16 == 0);
  CHECK(store.trainable_size() >= 610);
  for (const auto& entry : store.entries()) {
    const auto& p = *entry.parameter;
    CHECK(reinterpret_cast<std::uintptr_t>(p.data()) % memory_alignment == 0);
    const index_t offset = p.data() - store.trainable_values();
    CHECK((offset < store.trainable_size()) == is_lora_name(entry.name));
    CHECK(p.trainable() == is_lora_name(entry.name));
    if (p.trainable()) CHECK(p.gradient() == store.trainable_gradients() + offset);
    if (!p.trainable()) CHECK(p.gradient() == nullptr);
  }
  CHECK(store.find("m.second.lora_A.weight") == &pair.second.lora.down);
  CHECK(store.find("m.third") == nullptr);
}

TEST_CASE("a store says what was called in the wrong order, or twice") {
  Pair pair;
  ParameterStore<float, Reference> store;
  store.add("m", pair);
  CHECK_THROWS_WITH_AS(store.initialize(1), "[ParameterStore] initialize() comes after allocate(), which gives weights memory", ValueError);
  CHECK_THROWS_WITH_AS(store.add("again", pair.first), "[ParameterStore] \"again.weight\" is here already; add() takes a module once", ValueError);
}

TEST_CASE("weights start as PyTorch's layers do, LoRA as lpo's method asks; the same for the same seed") {
  Pair pair, twin;
  ParameterStore<float, Reference> store, other;
  for (auto* p : {&pair, &twin}) enable_lora<float, Reference>(*p, 2, 2.0f);
  store.add("", pair);
  other.add("", twin);
  store.allocate_all_trainable();
  other.allocate_frozen();
  store.initialize(9);
  other.initialize(9);
  double square = 0;
  float largest = 0;
  const auto& weight = pair.second.weight;
  for (index_t i = 0; i < weight.size(); ++i) {
    square += static_cast<double>(weight.data()[i]) * static_cast<double>(weight.data()[i]);
    largest = std::max(largest, std::fabs(weight.data()[i]));
  }
  const double bound = 1.0 / std::sqrt(5.0);  // uniform in +-bound: deviation bound / sqrt(3)
  CHECK(largest <= bound);
  CHECK(std::sqrt(square / 1500.0) == doctest::Approx(bound / std::sqrt(3.0)).epsilon(0.05));
  for (index_t i = 0; i < 600; ++i) REQUIRE(pair.second.lora.up.data()[i] == 0.0f);
  CHECK(pair.second.lora.down.data()[0] != 0.0f);
  CHECK(std::memcmp(pair.second.weight.data(), twin.second.weight.data(), 1500 * sizeof(float)) == 0);
}

TEST_CASE("a weight that no gradient reached has gradient zero after finish_gradients") {
  Pair pair;
  ParameterStore<float, Reference> store;
  store.add("", pair);
  store.allocate_all_trainable();
  store.initialize(1);
  std::fill(store.trainable_gradients(), store.trainable_gradients() + store.trainable_size(), 7.0f);
  Context<Reference> context(1);
  Tape<Reference> tape(context);
  const auto x = Tensor<float, 2, Reference>::full(Extents<2>{1, 3}, 1.0);
  store.reset_gradients();
  const auto y = pair.first(constant(tape, x));
  const auto ones = Tensor<float, 2, Reference>::full(Extents<2>{1, 5}, 1.0);
  backward(y, ones.view());
  store.finish_gradients();
  CHECK(pair.first.weight.gradient()[4] == 1.0f);
  CHECK(pair.second.weight.gradient()[0] == 0.0f);
}

TEST_CASE("a weight without memory says what to call") {
  Pair pair;
  Context<Reference> context(1);
  Tape<Reference> tape(context);
  const auto x = Tensor<float, 2, Reference>::full(Extents<2>{1, 3}, 1.0);
  CHECK_THROWS_WITH_AS(pair.first(constant(tape, x)),
                       "[Parameter] a weight was used before a ParameterStore gave it memory; enable_lora(), add() and allocate() come first, "
                       "in this order",
                       ValueError);
}
