// SPDX-License-Identifier: MIT
// ModelSource: the model that a program was given, a diffusers folder or a single file, and what programs ask of it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <lpo/base/fnv1a.hpp>
#include <lpo/io/clip_tokenizer.hpp>
#include <lpo/io/diffusers.hpp>
#include <lpo/io/gzip.hpp>
#include <lpo/io/load_single_file.hpp>

#include "model_families.hpp"

namespace examples {

/// What does not fit between a folder's component and a family, as "unet/config.json: key is 4 in the file, ...".
template <class Config>
void add_differences(std::vector<std::string>& list, const std::string& folder, const std::string& component,
                     const Config& config) {
  const auto file = lpo::JsonConfig::from_file(folder + "/" + component + "/config.json");
  for (const std::string& one : lpo::config_differences(file, config))
    list.push_back(component + "/config.json: " + one);
}

/// The UNet and the text encoders of a pipeline's or a reward model's folder.
inline std::vector<std::string> folder_differences(const std::string& folder, const ModelFamily& family) {
  std::vector<std::string> list;
  add_differences(list, folder, "unet", family.unet);
  if (lpo::file_exists(folder + "/text_encoder_2/config.json") != family.two_text_encoders) {
    list.push_back(family.two_text_encoders ? "text_encoder_2 is missing" : "text_encoder_2 is one too many");
  } else {
    add_differences(list, folder, "text_encoder", family.text);
    if (family.two_text_encoders) add_differences(list, folder, "text_encoder_2", family.text_2);
  }
  return list;
}

/// The same for a single file, autoencoder and all. Heads, norm groups and the width of embedded sizes are no matter of
/// shape: those of the family are taken.
inline std::vector<std::string> single_file_differences(const lpo::SingleFile& file, const ModelFamily& family) {
  std::vector<std::string> list;
  const auto add = [&](const std::string& component, const lpo::JsonConfig& found, const auto& config) {
    for (const std::string& one : lpo::config_differences(found, config)) list.push_back(component + ": " + one);
  };
  lpo::UNetConfig unet = file.unet_config();
  unet.heads = family.unet.heads;
  unet.groups = family.unet.groups;
  unet.addition_time_width = family.unet.addition_time_width;
  add("unet", lpo::unet_json(unet), family.unet);
  const std::size_t texts = family.two_text_encoders ? 2 : 1;
  if (file.text_encoders() != texts)
    list.push_back(lpo::message("it has ", file.text_encoders(), " text encoders, expected ", texts));
  for (std::size_t i = 0; i < texts && i < file.text_encoders(); ++i) {
    const lpo::ClipTextConfig& expected = i == 0 ? family.text : family.text_2;
    lpo::ClipTextConfig text = file.text_encoder_config(i);
    text.heads = expected.heads;
    add(i == 0 ? "text_encoder" : "text_encoder_2", lpo::clip_text_json(text), expected);
  }
  lpo::VaeConfig vae = file.vae_config();
  vae.groups = family.vae.groups;
  add("vae", lpo::vae_json(vae, 1.0), family.vae);
  return list;
}

/// A tokenizer of a folder, of the folder of its *.json files, or of merges as OpenAI's CLIP ships them (packed or
/// not).
inline lpo::ClipVocabulary read_vocabulary(const std::string& path) {
  if (path.ends_with(".json")) return lpo::read_clip_vocabulary(lpo::detail::directory_of(path));
  if (lpo::file_exists(path)) return lpo::clip_vocabulary_of_merges(lpo::read_gzip_file(path), path);
  return lpo::read_clip_vocabulary(path);
}

/// A number that other weights do not have: FNV-1a over names and bytes, eight at a time, of each tensor the first
/// `most` at most.
inline std::string weights_fingerprint(const lpo::TensorTable& weights,
                                       std::size_t most = std::numeric_limits<std::size_t>::max()) {
  lpo::Fnv1a hash;
  for (const std::string& key : weights.keys()) {
    hash.add(key);
    const auto& info = weights.info(key);
    const std::size_t bytes = std::min(info.bytes, most);
    std::size_t at = 0;
    for (; at + 8 <= bytes; at += 8) {
      std::uint64_t word;
      std::memcpy(&word, info.data + at, 8);
      hash.add(word);
    }
    for (; at < bytes; ++at) hash.add(std::to_integer<std::uint64_t>(info.data[at]));
  }
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash.value()));
  return text;
}

/// What a resumed run compares: of a whole UNet every byte would take seconds.
inline std::string weights_mark(const lpo::TensorTable& weights) { return weights_fingerprint(weights, 64); }

/// Copies share an open single file.
class ModelSource {
 public:
  ModelSource() = default;

  /// `variant`: weights ….variant.safetensors of a folder. `tokenizer` goes before the model's own: see
  /// read_vocabulary, or a pipeline's folder. A single file has none.
  explicit ModelSource(std::string path, std::string variant = "", std::string tokenizer = "")
      : path_(std::move(path)), variant_(std::move(variant)), tokenizer_(std::move(tokenizer)) {
    if (!lpo::directory_exists(path_)) file_ = std::make_shared<const lpo::SingleFile>(path_);
  }

  const std::string& path() const { return path_; }

  /// The last part of the path, without the ending of a file.
  std::string name() const {
    std::string name = path_.substr(0, path_.find_last_not_of('/') + 1);
    name.erase(0, name.find_last_of('/') + 1);
    return file_ ? name.substr(0, name.find_last_of('.')) : name;
  }

  std::vector<std::string> differences(const ModelFamily& family) const {
    if (file_) return single_file_differences(*file_, family);
    auto list = folder_differences(path_, family);
    add_differences(list, path_, "vae", family.vae);
    return list;
  }

  /// True for a single file that does not say what its UNet predicts where that could be either: v_prediction is taken.
  bool guesses_prediction_type() const {
    return file_ && !file_->prediction_type() && lpo::prediction_type_of(*file_) == lpo::PredictionType::v_prediction;
  }

  /// Height and width of the pictures that it was trained on. `prediction_type` as for `scheduler`.
  int resolution(const ModelFamily& family, std::optional<lpo::PredictionType> prediction_type = {}) const {
    if (file_) return lpo::resolution_of(*file_, prediction_type.value_or(lpo::prediction_type_of(*file_)));
    return family.vae.factor() * lpo::JsonConfig::from_file(path_ + "/unet/config.json").get_or("sample_size", 64);
  }

  /// Single files always tell; reward models' base folders may have no scheduler.
  bool has_scheduler() const { return file_ || lpo::file_exists(path_ + "/scheduler/scheduler_config.json"); }

  /// For its own sampler or for another one. `prediction_type` goes before what the model says. The first call says on
  /// stderr where the model names a scheduler that lpo does not have.
  lpo::SchedulerConfig scheduler(std::optional<lpo::SamplerKind> sampler = {},
                                 std::optional<lpo::PredictionType> prediction_type = {}) const {
    if (file_) return lpo::load_scheduler(*file_, sampler, prediction_type);
    auto config = lpo::load_scheduler(path_ + "/scheduler", sampler);
    static bool told = false;
    const std::string file = path_ + "/scheduler/scheduler_config.json";
    const std::string unknown = lpo::unknown_scheduler_class(lpo::JsonConfig::from_file(file));
    if (!unknown.empty() && !std::exchange(told, true))
      std::fprintf(stderr, "note: %s: lpo has no %s; %s takes its place, along the betas of the file\n", file.c_str(),
                   unknown.c_str(), std::string(lpo::diffusers_class_of(config.sampler)).c_str());
    if (prediction_type) config.prediction_type = *prediction_type;
    return config;
  }

  /// SDXL: what stands for an empty negative prompt.
  bool zeros_for_empty_prompt() const {
    const std::string index = path_ + "/model_index.json";
    return file_ || !lpo::file_exists(index) ||
           lpo::JsonConfig::from_file(index).get_or("force_zeros_for_empty_prompt", true);
  }

  /// One for each text encoder.
  std::vector<lpo::ClipTokenizer> tokenizers(const ModelFamily& family) const {
    std::vector<lpo::ClipTokenizer> list;
    for (std::size_t i = 0; i < (family.two_text_encoders ? 2 : 1); ++i) list.push_back(tokenizer(i));
    return list;
  }

  /// The weights of "unet", "vae", "text_encoder" or "text_encoder_2" under diffusers' names.
  lpo::TensorTable weights(const std::string& component, const ModelFamily& family) const {
    const bool text = component.starts_with("text_encoder"), second = component == "text_encoder_2";
    if (!file_)
      return lpo::open_checkpoint(path_ + "/" + component, text ? "model" : "diffusion_pytorch_model", variant_);
    if (text) return file_->text_encoder(second ? family.text_2 : family.text, second ? 1 : 0);
    return component == "unet" ? file_->unet(family.unet) : file_->vae(family.vae);
  }

  /// Into the weights that `store` has under the component's name.
  template <class UNet, class T, class Device>
  void load_unet(const UNet& unet, const lpo::ParameterStore<T, Device>& store) const {
    if (file_)
      lpo::load_unet(*file_, unet, store);
    else
      lpo::load_unet(path_ + "/unet", unet, store, "unet", variant_);
  }
  template <class Vae, class T, class Device>
  void load_vae(Vae& vae, const lpo::ParameterStore<T, Device>& store) const {
    if (file_)
      lpo::load_vae(*file_, vae, store);
    else
      lpo::load_vae(path_ + "/vae", vae, store, "vae", variant_);
  }
  template <class Text, class T, class Device>
  void load_text_encoder(Text& text, const lpo::ParameterStore<T, Device>& store, std::size_t which) const {
    const std::string component = which == 0 ? "text_encoder" : "text_encoder_2";
    if (file_)
      lpo::load_text_encoder(*file_, text, store, component, which);
    else
      lpo::load_text_encoder(path_ + "/" + component, text, store, component, variant_);
  }

 private:
  lpo::ClipTokenizer tokenizer(std::size_t which) const {
    const std::string folder = which == 0 ? "/tokenizer" : "/tokenizer_2";
    if (tokenizer_.empty() && !file_) return lpo::ClipTokenizer::from_directory(path_ + folder);
    if (tokenizer_.empty())
      throw lpo::FileError(lpo::message("[model] ", path_, ": a single file has no tokenizer; give the folder or file ",
                                        "of one as --tokenizer"));
    if (lpo::directory_exists(tokenizer_ + folder)) return lpo::ClipTokenizer::from_directory(tokenizer_ + folder);
    auto vocabulary = read_vocabulary(tokenizer_);
    return lpo::ClipTokenizer(file_ ? lpo::padded_for(*file_, which, std::move(vocabulary)) : std::move(vocabulary));
  }

  std::string path_, variant_, tokenizer_;
  std::shared_ptr<const lpo::SingleFile> file_;
};

}  // namespace examples
