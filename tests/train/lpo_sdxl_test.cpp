// SPDX-License-Identifier: MIT
// LpoTrainer with SDXL's conditioning: two text encoders, pooled text and sizes reach policy, reference and reward
// model.
#include <doctest/doctest.h>

#include <cmath>

#include <lpo/train/sdxl_text_encoder.hpp>

#include "small_world.hpp"

using namespace lpo;
using small_world::Store, small_world::TemporaryFolder;

namespace {

constexpr ClipTextConfig first_config{
    .vocabulary = 20, .width = 12, .hidden = 24, .layers = 2, .heads = 2, .positions = 6};
constexpr ClipTextConfig second_config{.vocabulary = 20,
                                       .width = 8,
                                       .hidden = 16,
                                       .layers = 2,
                                       .heads = 2,
                                       .positions = 6,
                                       .quick_gelu = false,
                                       .projection = 16};
constexpr UNetConfig unet_config{.levels = 2,
                                 .channels = {8, 16, 0, 0},
                                 .layers_per_block = 1,
                                 .transformer_depth = {0, 1, 0, 0},
                                 .heads = {2, 2, 0, 0},
                                 .mid_depth = 1,
                                 .context_width = 20,
                                 .linear_projection = true,
                                 .groups = 4,
                                 .addition_time_width = 4,
                                 .addition_width = 16 + 6 * 4};
using First = CLIPTextModel<first_config, float, Cpu>;
using Second = CLIPTextModel<second_config, float, Cpu>;
using UNet = UNet2DCondition<unet_config, float, Cpu>;
using Lrm = LatentRewardModel<unet_config, 16, 16, false, float, Cpu>;

/// Prompts for both tokenizers, the second half padded otherwise.
PromptTokens prompts() {
  PromptTokens tokens;
  tokens.tokens = tokens.reward_tokens = 12;
  tokens.ids = tokens.reward_ids = small_world::random_ids(5, 8);  // 4 prompts, 2 x 6 ids each
  return tokens;
}

std::vector<float> run(const std::string& folder, EmptyPrompt empty, index_t side, int iterations = 2) {
  UNet unet;
  Lrm lrm;
  First first, reward_first;
  Second second, reward_second;
  Store store, reward_store;
  enable_lora<float, Cpu>(unet, 2, 2.0f);
  store.add("unet", unet);
  store.add("text_encoder", first);
  store.add("text_encoder_2", second);
  store.allocate(is_lora_name);
  store.initialize(4);
  lrm.options.guidance = 2.0f;
  reward_store.add("", lrm);
  reward_store.add("text_encoder", reward_first);
  reward_store.add("text_encoder_2", reward_second);
  reward_store.allocate_frozen();
  reward_store.initialize(3);
  const std::vector<std::int32_t> nothing(12, 19);
  SdxlTextEncoder policy_text(first, second, nothing, sdxl_time_ids(side, side), empty);
  SdxlTextEncoder reward_text(reward_first, reward_second, nothing, sdxl_time_ids(side, side), EmptyPrompt::encoded);
  Context<Cpu> context(2);
  const NoiseSchedule schedule;
  auto options = small_world::lpo_options(folder);
  options.max_train_iterations = iterations;
  options.train_batch_size = 1000;
  LpoTrainer trainer(context, unet, store, policy_text, lrm, reward_text, schedule, Extents<3>{4, 4, 4}, options);
  trainer.train(prompts());
  return small_world::weights(store);
}

}  // namespace

TEST_CASE("LPO of an SDXL model starts at ln 2, trains, and depends on all of its conditioning") {
  TemporaryFolder folder;
  const auto trained = run(folder.path(), EmptyPrompt::zeros, 64);
  const auto lines = read_metrics(folder.path() + "/metrics.jsonl");
  REQUIRE(lines.size() == 2);
  CHECK(lines[0]["train_loss"].get<double>() == doctest::Approx(std::log(2.0)).epsilon(1e-12));
  CHECK(lines[0]["train_ratio_lose"].get<double>() == 1.0);
  CHECK(lines[1]["train_ratio_win"].get<double>() != 1.0);
  CHECK(trained == run("", EmptyPrompt::zeros, 64));
  CHECK_FALSE(trained == run("", EmptyPrompt::encoded, 64));
  CHECK_FALSE(trained == run("", EmptyPrompt::zeros, 128));
}
