// SPDX-License-Identifier: MIT
// SdxlTextEncoder and the added conditioning of GuidedDenoiser against StableDiffusionXLPipeline; the trainer; what is
// refused.
#include <doctest/doctest.h>

#include <memory>

#include <lpo/backend/cpu/adamw.hpp>
#include <lpo/backend/cpu/cross_entropy.hpp>
#include <lpo/backend/cpu/random.hpp>
#include <lpo/diffusion/sample.hpp>
#include <lpo/train/latent_scorer.hpp>
#include <lpo/train/lrm_trainer.hpp>
#include <lpo/train/sdxl_text_encoder.hpp>

#include "../model/model_backends.hpp"
#include "../model/model_goldens.hpp"
#include "stored_models.hpp"

using namespace lpo;

namespace {

constexpr ClipTextConfig first_config{
    .vocabulary = 40, .width = 8, .hidden = 20, .layers = 2, .heads = 2, .positions = 7};
constexpr ClipTextConfig second_config{.vocabulary = 40,
                                       .width = 12,
                                       .hidden = 24,
                                       .layers = 2,
                                       .heads = 2,
                                       .positions = 7,
                                       .quick_gelu = false,
                                       .projection = 16};
using First = CLIPTextModel<first_config, float, Cpu>;
using Second = CLIPTextModel<second_config, float, Cpu>;
using Encoder = SdxlTextEncoder<First, Second>;
using UNet = UNet2DCondition<golden::sdxl, float, Cpu>;

/// The golden file's prompts and models.
struct Fixture {
  SafetensorsFile file = golden::open("sdxl_prompts");
  std::unique_ptr<First> first = std::make_unique<First>();
  std::unique_ptr<Second> second = std::make_unique<Second>();
  ParameterStore<float, Cpu> store;
  Context<Cpu> context{2};
  Tape<Cpu> tape{context};
  std::vector<float> time_ids = sdxl_time_ids(640, 512, 16, 32);

  Fixture() {
    first->end_token = second->end_token = 39;
    store.add("text_encoder", *first);
    store.add("text_encoder_2", *second);
    store.allocate_frozen();
    load_parameters(store, file);
  }

  std::vector<std::int32_t> ids(const std::string& name) const {
    return file.read_vector<std::int32_t>("in/ids/" + name);
  }
  /// The first prompt of a set: what stands for the empty one.
  std::vector<std::int32_t> one(const std::string& name) const {
    const auto two = ids(name);
    return {two.begin(), two.begin() + 14};
  }
  PromptBatch<float, Cpu> prompts(EmptyPrompt empty, const std::string& negative = "empty") {
    Encoder encoder(*first, *second, one(negative), time_ids, empty);
    const auto all = ids("prompts");
    return encode_prompts<float>(tape, encoder, std::span<const std::int32_t>(all), 2);
  }
};

}  // namespace

TEST_CASE("SDXL's text states are both encoders' penultimate ones; pooled is the second's projection") {
  Fixture f;
  static_assert(TextEncoder<Encoder, float, Cpu>);
  for (const char* name : {"prompts", "empty", "negative"}) {
    Encoder encoder(*f.first, *f.second, f.one("empty"), f.time_ids);
    const auto states = encoder.encode(f.tape, f.ids(name), 2);
    golden::check_value(f.file, std::string("out/context/") + name, states.context, 1e-5);
    golden::check_value(f.file, std::string("out/pooled/") + name, states.pooled, 1e-5);
    CHECK(states.time_ids == std::vector<float>{640, 512, 16, 32, 640, 512});
  }
  const auto zeros = f.prompts(EmptyPrompt::zeros);
  for (index_t i = 0; i < zeros.context_empty.size(); ++i) CHECK(zeros.context_empty.data()[i] == 0.0f);
  for (index_t i = 0; i < zeros.pooled_empty.size(); ++i) CHECK(zeros.pooled_empty.data()[i] == 0.0f);
  const auto encoded = f.prompts(EmptyPrompt::encoded);
  const auto truth = golden::tensor<float, 2, Cpu>(f.file, "out/pooled/empty");
  CHECK(golden::relative_error(encoded.pooled_empty.data(), truth.data(), 16) < 1e-5);
}

TEST_CASE("Guided sampling with added conditioning ends where StableDiffusionXLPipeline does") {
  Fixture f;
  const StoredModel<UNet> unet(golden::open("unet_sdxl"), {.file_prefix = "weights/"});
  const NoiseSchedule schedule{SchedulerConfig{}};
  const Sampler sampler(schedule, SamplerKind::ddim, 3);
  const auto run = [&](const PromptBatch<float, Cpu>& prompts, double guidance, const std::string& name) {
    auto latents = golden::tensor<float, 4, Cpu>(f.file, "in/latents");
    GuidedDenoiser<UNet> denoiser(f.tape, *unet, guidance);
    denoiser.set_prompts(prompts);
    sample(f.context, sampler, denoiser, latents.view(), 0);
    const auto truth = golden::tensor<float, 4, Cpu>(f.file, "out/latents/" + name);
    CAPTURE(name);
    CHECK(golden::relative_error(latents.data(), truth.data(), truth.size()) < 1e-4);
  };
  run(f.prompts(EmptyPrompt::zeros), 5.0, "zeros");
  run(f.prompts(EmptyPrompt::encoded, "negative"), 5.0, "negative");
  run(f.prompts(EmptyPrompt::zeros), 1.0, "unguided");

  auto without = f.prompts(EmptyPrompt::zeros);
  without.time_ids.clear();
  GuidedDenoiser<UNet> denoiser(f.tape, *unet, 5.0);
  CHECK_THROWS_WITH_AS(denoiser.set_prompts(without),
                       "[GuidedDenoiser] this UNet also needs pooled text and 6 time ids, the prompts have 0 ids; "
                       "encode them with SdxlTextEncoder",
                       ShapeError);
}

TEST_CASE("A reward model's scorer passes the added conditioning on") {
  Fixture f;
  using Lrm = LatentRewardModel<golden::sdxl, 16, 16, false, float, Cpu>;
  StoredModel<Lrm> lrm;
  lrm.store.initialize(3);
  const auto latents = golden::tensor<float, 4, Cpu>(f.file, "in/latents");
  const auto prompts = f.prompts(EmptyPrompt::encoded);
  LatentScorer<Lrm> scorer(f.tape, *lrm);
  scorer.set_prompts(prompts);
  std::vector<float> scores(2);
  scorer.score(latents.view(), 501, scores);

  // The same from the parts.
  const auto empty = golden::tensor<float, 3, Cpu>(f.file, "out/context/empty");
  const auto pooled_empty = golden::tensor<float, 2, Cpu>(f.file, "out/pooled/empty");
  const auto context = golden::tensor<float, 3, Cpu>(f.file, "out/context/prompts");
  const auto pooled = golden::tensor<float, 2, Cpu>(f.file, "out/pooled/prompts");
  std::vector<float> time_ids = f.time_ids;
  time_ids.insert(time_ids.end(), f.time_ids.begin(), f.time_ids.end());
  const RewardPrompt<float, Cpu> prompt{constant(f.tape, context), constant(f.tape, empty), constant(f.tape, pooled),
                                        constant(f.tape, pooled_empty), time_ids};
  const auto expected =
      lrm->score(constant(f.tape, latents), std::vector<float>{501, 501}, prompt, constant(f.tape, pooled));
  for (std::size_t i = 0; i < 2; ++i) CHECK(scores[i] == doctest::Approx(expected.data()[i]).epsilon(1e-4));
}

TEST_CASE("A reward model is trained with the added conditioning, and scores as the scorer does") {
  Fixture f;
  using Lrm = LatentRewardModel<golden::sdxl, 16, 16, false, float, Cpu>;
  const auto lrm = std::make_unique<Lrm>();
  ParameterStore<float, Cpu> store;
  store.add("", *lrm);
  store.allocate_all_trainable();
  store.initialize(3);
  const auto latents = golden::tensor<float, 4, Cpu>(f.file, "in/latents");
  LatentPairs data;
  data.height = latents.extent(1), data.width = latents.extent(2), data.channels = 4, data.tokens = 14;
  const auto ids = f.one("prompts");
  data.add_prompt(ids);
  for (index_t i = 0; i < 2; ++i) data.add_image(0, latents.data() + i * data.latent_size());
  data.add_pair(0, 1, {});

  const NoiseSchedule schedule{SchedulerConfig{}};
  LrmTrainerOptions options;
  options.max_train_steps = 20;
  options.train_batch_size = 2;
  options.learning_rate = 1e-3;
  options.lr_scheduler = LearningRateKind::constant;
  options.validation_steps = 0;
  options.largest_timestep = 1;
  Encoder encoder(*f.first, *f.second, f.one("empty"), f.time_ids, EmptyPrompt::encoded);
  LrmTrainer trainer(f.context, *lrm, encoder, store, schedule, options);
  trainer.train(data, {});
  const auto [first, second] = trainer.scores(data, 501);
  CHECK(trainer.accuracy(data, 1) == 1);

  LrmBatch batch;
  for (const index_t image : {0, 1}) batch.add_single(data, image, 501);
  batch.add_noise(schedule, data, {.normal = {options.seed, 0x2005, 0}, .posterior = {}, .offset = {}});
  const auto noisy = Tensor<float, 4, Cpu>::from(latents.extents(), batch.latents);
  const auto prompts = encode_prompts<float>(f.tape, encoder, std::span<const std::int32_t>(ids), 1);
  LatentScorer<Lrm> scorer(f.tape, *lrm);
  scorer.set_prompts(prompts);
  std::vector<float> scores(2);
  scorer.score(noisy.view(), 501, scores);
  CHECK(first[0] == doctest::Approx(scores[0]).epsilon(1e-5));
  CHECK(second[0] == doctest::Approx(scores[1]).epsilon(1e-5));

  struct WithoutIds {
    Encoder& whole;
    TextStates<float, Cpu> encode(Tape<Cpu>& tape, std::span<const std::int32_t> all, index_t n) {
      auto states = whole.encode(tape, all, n);
      states.time_ids.clear();
      return states;
    }
    TextStates<float, Cpu> encode_empty(Tape<Cpu>& tape) { return whole.encode_empty(tape); }
  } without{encoder};
  LrmTrainer incomplete(f.context, *lrm, without, store, schedule, options);
  CHECK_THROWS_WITH_AS(incomplete.scores(data, 1),
                       doctest::Contains("the prompts have 0 ids; encode them with SdxlTextEncoder"), ShapeError);
}

TEST_CASE("SDXL token ids and time ids of a wrong length are refused") {
  Fixture f;
  CHECK_THROWS_WITH_AS(Encoder(*f.first, *f.second, f.one("empty"), {1, 2}),
                       "[SdxlTextEncoder] 2 time ids, expected 6; see sdxl_time_ids", ValueError);
  Encoder encoder(*f.first, *f.second, f.one("empty"), f.time_ids);
  const std::vector<std::int32_t> odd(7, 1);
  CHECK_THROWS_WITH_AS(encoder.encode(f.tape, odd, 1),
                       "[SdxlTextEncoder] 7 token ids cannot be split into 1 prompts for two encoders", ShapeError);
  CHECK_THROWS_AS(encoder.encode(f.tape, odd, 0), ShapeError);
}
