// SPDX-License-Identifier: MIT
// A latent reward model scores four noisy candidates of one prompt; the best and the worst become a pair.
#include <cstdio>
#include <span>
#include <vector>

#include <lpo/lpo.hpp>

int main() {
  using lpo::Cpu;
  constexpr lpo::UNetConfig tiny{.levels = 2,
                                 .channels = {16, 32},
                                 .layers_per_block = 1,
                                 .transformer_depth = {1, 1},
                                 .heads = {2, 2},
                                 .context_width = 24,
                                 .groups = 8};
  lpo::LatentRewardModel<tiny, 24, 24, /*TextProjection=*/true, float, Cpu> model;  // half a UNet and two projections
  lpo::ParameterStore<float, Cpu> store;
  store.add("", model);
  store.allocate_frozen();
  // Random weights; lpo::load_latent_reward_model() (lpo/io/latent_reward_folder.hpp) reads released ones.
  store.initialize(/*seed=*/1);

  lpo::Context<Cpu> context;
  lpo::Tape<Cpu> tape(context);
  lpo::Tensor<float, 4> candidates({4, 8, 8, 4});
  lpo::Tensor<float, 3> text({4, 6, 24}), empty_text({4, 6, 24});
  lpo::Tensor<float, 2> pooled({4, 24});
  for (lpo::index_t k = 0; k < 4; ++k) {  // the candidates differ, their prompt is the same
    lpo::fill_normal(context, candidates.view().slice(0, k, k + 1), {2, static_cast<std::uint32_t>(k)});
    lpo::fill_normal(context, text.view().slice(0, k, k + 1), {3});
    lpo::fill_normal(context, empty_text.view().slice(0, k, k + 1), {4});
    lpo::fill_normal(context, pooled.view().slice(0, k, k + 1), {5});
  }

  const lpo::RewardPrompt<float, Cpu> prompt{constant(tape, text), constant(tape, empty_text), {}, {}, {}};
  const std::vector<float> timesteps(4, 501.0f);
  const auto scores = model.score(constant(tape, candidates), timesteps, prompt, constant(tape, pooled));  // [4]
  const std::span<const float> values(scores.data(), 4);
  for (const float value : values) std::printf("score %.4f\n", static_cast<double>(value));
  const auto pair = lpo::select_pair(values);
  std::printf("best %d, worst %d, gap %.4f\n", pair.win, pair.lose, pair.gap);
}
