// SPDX-License-Identifier: MIT
// SDXL's conditioning: two text encoders, pooled text and sizes reach policy, reference and reward model of LpoTrainer,
// and the generator of SPO's preference model.
#include <doctest/doctest.h>

#include <cmath>

#include <lpo/train/predicted_image_model.hpp>
#include <lpo/train/sdxl_text_encoder.hpp>

#include "small_rater.hpp"

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

TEST_CASE("scores are rounded to half where the original code's are wanted") {
  Lrm lrm;
  First first;
  Second second;
  Store store;
  store.add("", lrm);
  store.add("text_encoder", first);
  store.add("text_encoder_2", second);
  store.allocate_frozen();
  store.initialize(3);
  SdxlTextEncoder text(first, second, std::vector<std::int32_t>(12, 19), sdxl_time_ids(64, 64), EmptyPrompt::encoded);
  Context<Cpu> context(1);
  Tape<Cpu> tape(context);
  Tensor<float, 4, Cpu> latents(Extents<4>{4, 4, 4, 4});
  fill_normal(context, latents.view(), {1, 2, 3});
  const auto scores = [&](bool half_scores) {
    PromptedLatentScorer<Lrm, SdxlTextEncoder<First, Second>> scorer(tape, lrm, text, 0, half_scores);
    const auto ids = small_world::random_ids(5, 4);
    scorer.set_prompts(0, ids, 2);
    std::vector<float> values(4);
    scorer.score(latents.view(), 501, values);
    return values;
  };
  const auto plain = scores(false), rounded = scores(true);
  CHECK(plain != rounded);
  for (std::size_t i = 0; i < 4; ++i) CHECK(rounded[i] == static_cast<float>(half(plain[i])));
}

TEST_CASE("a preference model is trained on what SDXL predicts, by prompts of its first tokenizer") {
  UNet unet;
  First first;
  Second second;
  Store store;
  store.add("unet", unet);
  store.add("text_encoder", first);
  store.add("text_encoder_2", second);
  store.allocate_frozen();
  store.initialize(4);
  small_world::Rater rater;
  SdxlTextEncoder generator_text(first, second, std::vector<std::int32_t>(12, 19), sdxl_time_ids(64, 64));
  PreferenceTextEncoder text(generator_text, rater.model);
  const NoiseSchedule schedule;
  PredictedImageModel model(unet, rater.vae, rater.model, schedule, 3.0);
  Context<Cpu> context(1);
  Tape<Cpu> tape(context);
  const auto ids = small_world::random_ids(5, 4);  // 2 prompts, 2 x 6 ids each
  const std::vector<float> timesteps{301, 701};
  Tensor<float, 4, Cpu> noisy(Extents<4>{2, 4, 4, 4});
  fill_normal(context, noisy.view(), {1, 2, 3});

  rater.store.reset_gradients();
  const auto states = text.encode(tape, ids, 2);
  const auto empty = text.encode_empty(tape);
  const std::vector<std::int32_t> each{0, 1}, nothing{0, 0};
  RewardPrompt<float, Cpu> prompt;
  prompt.context = states.context;
  prompt.context_empty = embedding(empty.context.reshape(Extents<2>{1, 6 * 20}), nothing).reshape(Extents<3>{2, 6, 20});
  prompt.text_embedding = embedding(states.pooled, each);
  prompt.text_embedding_empty = embedding(empty.pooled, nothing);
  std::vector<float> time_ids = states.time_ids;
  time_ids.insert(time_ids.end(), states.time_ids.begin(), states.time_ids.end());
  prompt.time_ids = time_ids;
  const auto visual = model.visual(constant(tape, noisy), timesteps, prompt);
  const auto words = model.text(states.pooled);
  const Tensor<float, 2, Cpu> found = visual, found_words = words;
  const Var<float, 2, Cpu> squares = words * words;
  backward(sum(squares));
  rater.store.finish_gradients();
  tape.clear();
  const auto gradients = [&] {
    const float* values = rater.store.trainable_gradients();
    return std::vector<float>(values, values + rater.store.trainable_size());
  };
  const auto found_gradients = gradients();

  // The same by SPO's roll-out: guided prediction of a batch of prompts, and the preference model by itself.
  const auto batch = encode_prompts<float>(tape, generator_text, std::span<const std::int32_t>(ids), 2);
  const index_t rows[] = {0, 1};
  const auto predicted = guided_prediction(unet, batch, rows, constant(tape, noisy), std::span(timesteps), 3.0);
  Tensor<float, 4, Cpu> pixels(Extents<4>{2, 12, 12, 3});
  PredictedImages(rater.vae, schedule).prepare(tape, std::as_const(noisy).view(), predicted.view(), timesteps, pixels.view());
  const auto expected = rater.model.visual(constant(tape, pixels), timesteps);
  for (index_t i = 0; i < found.size(); ++i)
    CHECK(found.data()[i] == doctest::Approx(expected.data()[i]).epsilon(1e-4));
  tape.clear();
  std::vector<std::int32_t> halves(ids.begin(), ids.begin() + 6);
  halves.insert(halves.end(), ids.begin() + 12, ids.begin() + 18);
  rater.store.reset_gradients();
  const auto expected_words = rater.model.text(tape, halves, 2);
  const Var<float, 2, Cpu> expected_squares = expected_words * expected_words;
  backward(sum(expected_squares));
  rater.store.finish_gradients();
  for (index_t i = 0; i < found_words.size(); ++i) CHECK(found_words.data()[i] == expected_words.data()[i]);
  CHECK(found_gradients == gradients());
}
