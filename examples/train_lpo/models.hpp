// SPDX-License-Identifier: MIT
// The reward model of an LPO run, and the prompts as it and the policy read them.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include <lpo/io/latent_reward_folder.hpp>
#include <lpo/io/step_aware_preference_file.hpp>

#include "../common/policy.hpp"
#include "job.hpp"

namespace train_lpo {

using examples::Device, examples::Policy;

/// Tokenizers for a reward model of family R: its own, those of --lrm_tokenizer, or the policy's, made to pad as R's
/// do.
template <const examples::ModelFamily& F, const examples::ModelFamily& R>
std::vector<lpo::ClipTokenizer> reward_tokenizers(const Job& job) {
  const Options& o = job.options;
  if (!o.lrm_tokenizer.empty()) return examples::ModelSource(o.lrm, "", o.lrm_tokenizer).tokenizers(R);
  if (lpo::file_exists(o.lrm + "/tokenizer/vocab.json")) return examples::ModelSource(o.lrm).tokenizers(R);
  auto tokenizers = job.model.tokenizers(R);
  // SD2's tokenizer has the words of SD1's, but pads with another.
  if constexpr (&F != &R) tokenizers.front().set_pad_token("<|endoftext|>");
  return tokenizers;
}

/// A reward model of family R, which scores latents of family F, and its text encoders, frozen.
template <const examples::ModelFamily& F, const examples::ModelFamily& R, class T>
struct Reward {
  static constexpr bool sdxl = R.two_text_encoders;
  static constexpr int text_width = sdxl ? R.text_2.projection : R.text.width;
  using Lrm = lpo::LatentRewardModel<R.unet, text_width, R.reward_width, !sdxl, T, Device>;

  Lrm lrm;
  examples::TextSide<R, T> text;
  lpo::ParameterStore<T, Device> store;

  explicit Reward(const Job& job) : text(reward_tokenizers<F, R>(job)) {
    const auto differences = examples::folder_differences(job.options.lrm, R);
    if (!differences.empty()) {
      std::string list;
      for (const std::string& one : differences) list += (list.empty() ? "" : "; ") + one;
      throw lpo::FileError(lpo::message("[train_lpo] ", job.options.lrm, ": a ", F.name,
                                        " model needs a reward model of ", R.name,
                                        ", whose autoencoder it shares; this one differs in: ", list));
    }
    lrm.use_features(job.options.features);
    store.add("", lrm);
    text.add_to(store);
  }

  void read(const Job& job) {
    store.allocate_frozen();
    if constexpr (sdxl)
      lpo::load_latent_reward_model(job.options.lrm, lrm, store, std::tie(text.first, *text.second));
    else
      lpo::load_latent_reward_model(job.options.lrm, lrm, store, std::tie(text.first));
    lpo::expect_finite_weights(store, job.options.lrm);
  }
};

/// What SPO rates candidates with: the autoencoder, and a preference model that looks at pictures, frozen.
template <const examples::ModelFamily& F, class T>
struct PreferenceRater {
  using V = examples::VaeStorage<F, T>;
  using Model = lpo::StepAwarePreferenceModel<F.preference.vision, F.preference.text, T, Device>;

  lpo::AutoencoderKL<F.vae, V, Device> vae;
  Model model;
  lpo::ParameterStore<V, Device> vae_store;
  lpo::ParameterStore<T, Device> store;
  lpo::ClipTokenizer tokenizer;

  explicit PreferenceRater(const Job& job) : tokenizer(preference_tokenizer(job)) {
    vae_store.add("vae", vae);
    store.add("", model);
  }

  void read(const Job& job) {
    vae_store.allocate_frozen();
    job.model.load_vae(vae, vae_store);
    store.allocate_frozen();
    lpo::load_preference_model(job.options.preference_model, model, store);
    lpo::expect_finite_weights(store, job.options.preference_model);
  }

  std::vector<std::int32_t> ids(const std::string& prompt) const { return tokenizer.encode(prompt); }

 private:
  /// The words of all CLIP tokenizers are the same; the preference model's pads with the end of the text.
  static lpo::ClipTokenizer preference_tokenizer(const Job& job) {
    auto tokenizers = job.model.tokenizers(F);
    tokenizers.front().set_pad_token("<|endoftext|>");
    return std::move(tokenizers.front());
  }
};

/// What a resumed run must find as it was, besides the policy: what rates, and what both are told.
inline std::map<std::string, std::string> resume_settings(const Job& job) {
  const Options& o = job.options;
  std::map<std::string, std::string> list{
      {"resolution", lpo::message(job.resolution)},
      {"prediction_type", std::string(lpo::name_of(job.schedule.prediction_type))},
      {"sdxl_uncond", o.sdxl_uncond},
      {"rater_weights",
       examples::weights_mark(job.is("spo") ? lpo::detail::open_clip_weights(o.preference_model)
                                            : lpo::open_checkpoint(o.lrm + "/unet", "diffusion_pytorch_model"))}};
  if (!job.is("spo")) {
    list["lrm_guidance"] = lpo::OrderedJson(lpo::detail::as_written(o.features.guidance)).dump();
    list["lrm_multi_scale"] = lpo::message(o.features.multi_scale, ", with guidance ", o.features.multi_scale_cfg);
  }
  return list;
}

/// Token ids of all prompts for both text sides.
template <class PolicyText, class RewardText>
lpo::PromptTokens token_ids(const std::vector<std::string>& prompts, const PolicyText& policy,
                            const RewardText& reward) {
  lpo::PromptTokens tokens;
  for (const std::string& prompt : prompts) {
    const auto ids = policy.ids(prompt), reward_ids = reward.ids(prompt);
    tokens.tokens = static_cast<index_t>(ids.size());
    tokens.reward_tokens = static_cast<index_t>(reward_ids.size());
    tokens.ids.insert(tokens.ids.end(), ids.begin(), ids.end());
    tokens.reward_ids.insert(tokens.reward_ids.end(), reward_ids.begin(), reward_ids.end());
  }
  return tokens;
}

}  // namespace train_lpo
