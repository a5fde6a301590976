// SPDX-License-Identifier: MIT
// A model of a few thousand weights on any device, random pairs and prompts: enough to run the trainers in a second.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "../model/model_backends.hpp"

#include <lpo/backend/cpu/adamw.hpp>
#include <lpo/backend/cpu/cross_entropy.hpp>
#include <lpo/backend/cpu/random.hpp>
#include <lpo/train/clip_text_encoder.hpp>
#include <lpo/train/lpo_trainer.hpp>
#include <lpo/train/lrm_trainer.hpp>

#include <lpo/testing/test_context.hpp>

#ifndef LPO_SMALL_WORLD_DEVICE
#  define LPO_SMALL_WORLD_DEVICE lpo::Cpu
#endif

namespace small_world {

using Device = LPO_SMALL_WORLD_DEVICE;  // where a test program trains

inline constexpr lpo::UNetConfig unet_config{.levels = 2,
                                             .channels = {8, 16, 0, 0},
                                             .layers_per_block = 1,
                                             .transformer_depth = {1, 0, 0, 0},
                                             .heads = {2, 2, 0, 0},
                                             .mid_depth = 1,
                                             .context_width = 12,
                                             .groups = 4};
inline constexpr lpo::ClipTextConfig text_config{.vocabulary = 20, .width = 12, .hidden = 24, .layers = 1, .heads = 2, .positions = 6};

using Store = lpo::ParameterStore<float, Device>;

inline std::vector<std::int32_t> random_ids(std::uint64_t seed, lpo::index_t prompts) {
  lpo::RandomStream random(seed, 1, 0);
  std::vector<std::int32_t> ids;
  for (lpo::index_t i = 0; i < prompts; ++i) {
    for (int k = 0; k < 5; ++k) ids.push_back(static_cast<std::int32_t>(random.uniform_int(18)));
    ids.push_back(19);
  }
  return ids;
}

/// Pairs whose first image is brighter exactly when it is preferred: learnable.
inline lpo::LatentPairs random_pairs(std::uint64_t seed, lpo::index_t count) {
  lpo::LatentPairs data;
  data.height = data.width = 4, data.channels = 4, data.tokens = 6;
  lpo::RandomStream random(seed, 2, 0);
  const auto ids = random_ids(seed, count);
  std::vector<float> mean(static_cast<std::size_t>(data.latent_size())), deviation(mean.size(), 0.05f);
  for (lpo::index_t i = 0; i < count; ++i) {
    const bool first = random.bernoulli(0.5f);
    const auto prompt = data.add_prompt(std::span(ids).subspan(static_cast<std::size_t>(i * data.tokens), 6));
    for (int image = 0; image < 2; ++image) {
      for (float& value : mean) value = 0.5f * random.normal() + ((image == 0) == first ? 0.8f : -0.8f);
      data.add_image(prompt, mean.data(), deviation.data());
    }
    data.add_pair(2 * i, 2 * i + 1, {first ? 1.0f : 0.0f, first ? 0.0f : 1.0f, 1.0f, false});
  }
  return data;
}

/// Three images per prompt, all three pairs of them labelled by brightness.
inline lpo::LatentPairs random_triples(std::uint64_t seed, lpo::index_t prompts) {
  lpo::LatentPairs data;
  data.height = data.width = 4, data.channels = 4, data.tokens = 6;
  lpo::RandomStream random(seed, 3, 0);
  const auto ids = random_ids(seed, prompts);
  std::vector<float> mean(static_cast<std::size_t>(data.latent_size()));
  for (lpo::index_t i = 0; i < prompts; ++i) {
    const auto prompt = data.add_prompt(std::span(ids).subspan(static_cast<std::size_t>(i * data.tokens), 6));
    std::vector<float> brightness;
    for (int image = 0; image < 3; ++image) {
      brightness.push_back(random.normal());
      for (float& value : mean) value = 0.3f * random.normal() + brightness.back();
      data.add_image(prompt, mean.data());
    }
    for (const auto& [a, b] : {std::pair{0, 1}, std::pair{0, 2}, std::pair{1, 2}}) {
      const bool first = brightness[static_cast<std::size_t>(a)] > brightness[static_cast<std::size_t>(b)];
      data.add_pair(3 * i + a, 3 * i + b, {first ? 1.0f : 0.0f, first ? 0.0f : 1.0f, 3.0f, false});
    }
  }
  return data;
}

/// A folder under the system's temporary directory, removed at the end.
class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "lpo-train-XXXXXX").string();
    if (::mkdtemp(pattern.data()) == nullptr) std::abort();
    path_ = pattern;
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

template <class T>
using TextIn = lpo::CLIPTextModel<text_config, T, Device>;
template <class T>
using LrmIn = lpo::LatentRewardModel<unet_config, 12, 10, true, T, Device>;
template <class T>
using UNetIn = lpo::UNet2DCondition<unet_config, T, Device>;
using Text = TextIn<float>;
using Encoder = lpo::ClipTextEncoder<Text>;
using Lrm = LrmIn<float>;
using UNet = UNetIn<float>;

/// A reward model with its text encoder, all trainable; weights and activations in T.
template <class T>
struct RewardIn {
  LrmIn<T> lrm;
  TextIn<T> text;
  lpo::ParameterStore<T, Device> store;
  lpo::ClipTextEncoder<TextIn<T>> encoder{text, {19, 19, 19, 19, 19, 19}};

  RewardIn() {
    lrm.options.guidance = 2.0f;
    store.add("", lrm);
    store.add("text_encoder", text);
    store.allocate_all_trainable();
    store.initialize(3);
  }
};

using Reward = RewardIn<float>;

/// A generator with LoRA.
template <class T>
struct PolicyIn {
  UNetIn<T> unet;
  TextIn<T> text;
  lpo::ParameterStore<T, Device> store;
  lpo::ClipTextEncoder<TextIn<T>> encoder{text, {19, 19, 19, 19, 19, 19}};

  PolicyIn() {
    lpo::enable_lora<T, Device>(unet, 2, 2.0f);
    store.add("unet", unet);
    store.add("text_encoder", text);
    store.allocate(lpo::is_lora_name);
    store.initialize(4);
  }
};
using Policy = PolicyIn<float>;

inline lpo::LrmTrainerOptions lrm_options(const std::string& folder) {
  lpo::LrmTrainerOptions o;
  o.max_train_steps = 8;
  o.train_batch_size = 4;
  o.learning_rate = 3e-3;
  o.lr_warmup_steps = 2;
  o.validation_steps = 3;
  o.checkpointing_steps = 2;
  o.seed = 11;
  o.output_dir = folder;
  return o;
}

inline lpo::LpoTrainerOptions lpo_options(const std::string& folder) {
  lpo::LpoTrainerOptions o;
  o.max_train_iterations = 5;
  o.sample_batch_size = 3;
  o.train_batch_size = 4;
  o.sample_steps = 5;
  o.guidance_scale = 2.0;
  o.learning_rate = 1e-3;
  o.threshold.minimum = o.threshold.maximum = 0.0;
  o.checkpointing_iterations = 2;
  o.seed = 12;
  o.output_dir = folder;
  return o;
}

inline lpo::PromptTokens prompts() {
  lpo::PromptTokens p;
  p.tokens = p.reward_tokens = 6;
  p.ids = p.reward_ids = random_ids(5, 7);
  return p;
}

template <class T>
std::vector<T> weights(lpo::ParameterStore<T, Device>& store) {
  std::vector<T> values(static_cast<std::size_t>(store.trainable_size()));
  lpo::DeviceMemory<Device>::copy_to_host(values.data(), store.trainable_values(), values.size() * sizeof(T));
  return values;
}

}  // namespace small_world
