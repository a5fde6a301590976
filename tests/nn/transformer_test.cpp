// SPDX-License-Identifier: MIT
// Transformer blocks: finite differences with LoRA on, adapters on the tape, both storage forms of the projections.
#include <lpo/nn/transformer.hpp>

#include <algorithm>

#include "block_gradcheck.hpp"

using namespace lpo;

namespace {
using Block = BasicTransformerBlock<6, 5, 2, double, Reference>;
const auto with_lora = [](auto& module) { enable_lora<double, Reference>(module, 2, 3.0f); };
}  // namespace

TEST_CASE("a transformer block with LoRA has the right gradients") {
  CheckedModule<Block> block(with_lora, 12);
  auto x = testing::random_tensor<double, Reference>(Extents<3>{2, 4, 6}, 1);
  auto context = testing::random_tensor<double, Reference>(Extents<3>{2, 3, 5}, 2);
  const auto result = testing::gradcheck<Reference>(
      [&](auto&, const auto& input, const auto& states) {
        return block.module(input.template with_channels<6>(), states);
      },
      std::tie(x, context), block.options);
  CHECK_MESSAGE(result.passed, result.message);
  CHECK(result.checked > 300);
}

TEST_CASE("a spatial transformer has the right gradients, matrices or 1x1 convolutions around it") {
  const auto check = [](auto& model) {
    auto x = testing::random_tensor<double, Reference>(Extents<4>{1, 2, 3, 4}, 1);
    auto context = testing::random_tensor<double, Reference>(Extents<3>{1, 3, 5}, 2);
    const auto result = testing::gradcheck<Reference>(
        [&](auto&, const auto& input, const auto& states) {
          return model.module(input.template with_channels<4>(), states);
        },
        std::tie(x, context), model.options);
    CHECK_MESSAGE(result.passed, result.message);
    Context<Reference> ctx(1);
    Tape<Reference> tape(ctx);
    const auto y = model.module(variable(tape, x).template with_channels<4>(), variable(tape, context));
    return std::vector<double>(y.data(), y.data() + y.size());
  };
  CheckedModule<Transformer2DModel<4, 5, 2, 2, true, 2, double, Reference>> matrices([](auto&) {}, 4);
  CheckedModule<Transformer2DModel<4, 5, 2, 2, false, 2, double, Reference>> convolutions([](auto&) {}, 4);
  REQUIRE(matrices.store.values().size() == convolutions.store.values().size());
  std::copy(matrices.store.values().begin(), matrices.store.values().end(), convolutions.store.values().begin());
  CHECK(check(matrices) == check(convolutions));
}

TEST_CASE("LoRA adds (alpha / rank) B A x, and nothing while the tape's adapters are off") {
  CheckedModule<LoraLinear<3, 2, double, Reference, true>> layer([](auto& m) { m.lora.enable(1, 4.0f); }, 0);
  auto& m = layer.module;
  auto x = Tensor<double, 2, Reference>::from(Extents<2>{1, 3}, std::vector<double>{1, 2, 3});
  Context<Reference> context(1);
  Tape<Reference> tape(context);
  const auto with = m(variable(tape, x));
  const double inner = m.lora.down.data()[0] + 2 * m.lora.down.data()[1] + 3 * m.lora.down.data()[2];
  for (index_t o = 0; o < 2; ++o) {
    const double* w = m.weight.data() + 3 * o;
    const double base = w[0] + 2 * w[1] + 3 * w[2] + m.bias.data()[o];
    CHECK(with.data()[o] == doctest::Approx(base + 4.0 * m.lora.up.data()[o] * inner).epsilon(1e-12));
  }
  const auto guard = tape.without_adapters();
  const auto without = m(variable(tape, x));
  CHECK(without.data()[0] != with.data()[0]);
  CHECK_THROWS_AS(m.lora.enable(3, 1.0f), ValueError);
}
