// SPDX-License-Identifier: MIT
// The policy of a preference run: a model with what trains in it, and its frozen copy if there is one.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <lpo/io/json.hpp>
#include <lpo/io/lora.hpp>
#include <lpo/train/finite_guard.hpp>

#include "model_source.hpp"
#include "text_side.hpp"

namespace examples {

/// What trains: adapters, or the whole UNet.
struct PolicySettings {
  ModelSource model;
  bool full_finetuning = false;
  lpo::index_t rank = 4;
  double lora_alpha = 0;                  ///< 0 is the rank
  std::vector<std::string> lora_targets;  ///< ends of projections' names
  std::uint64_t seed = 42;                ///< of the adapters
};

/// Constructed without memory: `read` takes it. With full fine-tuning the reference is a copy of the UNet.
template <const ModelFamily& F, class T>
struct Policy {
  using UNet = lpo::UNet2DCondition<F.unet, T, Device>;

  TextSide<F, T> text;
  UNet unet;
  std::unique_ptr<UNet> reference;
  lpo::ParameterStore<T, Device> store, reference_store;

  explicit Policy(PolicySettings settings) : text(settings.model.tokenizers(F)), settings_(std::move(settings)) {
    if (!settings_.full_finetuning) {
      const auto& targets = settings_.lora_targets;
      std::set<std::string> unused(targets.begin(), targets.end());
      const int adapted =
          lpo::enable_lora<T, Device>(unet, settings_.rank, static_cast<float>(lora_alpha()), [&](const auto& name) {
            std::erase_if(unused, [&](const std::string& target) { return lpo::is_lora_target(name, {target}); });
            return lpo::is_lora_target(name, targets);
          });
      if (adapted == 0 || !unused.empty()) {
        std::string names;
        for (const std::string& one : unused) names += (names.empty() ? "" : ",") + one;
        throw lpo::ValueError(lpo::message("[LoRA] no projection is named as --lora_targets ", names,
                                           " says; a UNet's are to_q, to_k, to_v and to_out.0, of attn1 and attn2"));
      }
    } else {
      reference = std::make_unique<UNet>();
      reference_store.add("unet", *reference);
    }
    text.add_to(store);
    store.add("unet", unet);
  }

  bool trains(const std::string& name) const { return reference ? name.starts_with("unet.") : lpo::is_lora_name(name); }

  /// What a resumed run must find as it was.
  std::map<std::string, std::string> resume_settings() const {
    std::map<std::string, std::string> list{{"model_weights", weights_mark(settings_.model.weights("unet", F))},
                                            {"storage", std::string(lpo::dtype_name(lpo::dtype_of<T>()))}};
    if (reference) return list;
    for (const std::string& one : settings_.lora_targets) list["lora_targets"] += one + " ";
    list["lora_alpha"] = lpo::OrderedJson(lora_alpha()).dump();
    return list;
  }

  void read() {
    store.allocate([&](const std::string& name) { return trains(name); });
    store.initialize(settings_.seed, lpo::is_lora_name);
    settings_.model.load_text_encoder(text.first, store, 0);
    if (text.second) settings_.model.load_text_encoder(*text.second, store, 1);
    settings_.model.load_unet(unet, store);
    lpo::expect_finite_weights(store, settings_.model.path());
    if (!reference) return;
    reference_store.allocate_frozen();
    settings_.model.load_unet(*reference, reference_store);
  }

  /// The result as diffusers reads it: a LoRA, or the folder unet/. Returns its path.
  std::string save(const std::string& folder) {
    if (!reference) {
      const std::string path = folder + "/pytorch_lora_weights.safetensors";
      lpo::save_lora(path, unet);
      return path;
    }
    lpo::ComponentOptions options;
    const std::string config = settings_.model.path() + "/unet/config.json";
    if (lpo::file_exists(config)) options.config = lpo::JsonConfig::from_file(config);
    lpo::save_unet(folder + "/unet", unet, store, "unet", options);
    return folder + "/unet";
  }

 private:
  double lora_alpha() const {
    return settings_.lora_alpha > 0 ? settings_.lora_alpha : static_cast<double>(settings_.rank);
  }

  PolicySettings settings_;
};

/// Exchanges averages and weights while it lives; does nothing where there are no averages.
template <class Ema>
class WithAverages {
 public:
  explicit WithAverages(Ema* ema) : ema_(ema) {
    if (ema_ != nullptr) ema_->swap();
  }
  WithAverages(const WithAverages&) = delete;
  WithAverages& operator=(const WithAverages&) = delete;
  ~WithAverages() {
    if (ema_ != nullptr) ema_->swap();
  }

 private:
  Ema* ema_;
};

/// Writes the policy into a checkpoint's folder, and what its averages make of it into ema/. Nothing where the whole
/// UNet trains: state.safetensors has the weights, all of them.
template <const ModelFamily& F, class T, class Ema>
void save_checkpoint_policy(Policy<F, T>& policy, Ema* ema, const std::string& folder) {
  if (policy.reference) return;
  policy.save(folder);
  if (ema == nullptr) return;
  lpo::make_directories(folder + "/ema");
  const WithAverages<Ema> averages(ema);
  policy.save(folder + "/ema");
}

}  // namespace examples
