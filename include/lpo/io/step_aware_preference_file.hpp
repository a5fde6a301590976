// SPDX-License-Identifier: MIT
// Files of step-aware preference models, and the CLIP models (PickScore) whose weights they start from.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <lpo/io/checkpoint.hpp>
#include <lpo/io/parameters.hpp>
#include <lpo/reward/step_aware_preference_model.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// A folder with model.safetensors (or shards, or pytorch_model.bin), or one file.
inline Checkpoint open_clip_weights(const std::string& path) {
  return directory_exists(path) ? open_checkpoint(path, "model") : Checkpoint(path);
}

/// Whether a weight belongs to the time modulation, which a plain CLIP model does not have.
inline bool is_time_modulation(const std::string& name) {
  return name.starts_with("t_embedder.") || name.find("adaLN_modulation.") != std::string::npos;
}

/// The authors' files have the model under "model".
template <class Source>
std::string clip_prefix(const Source& source) {
  return source.contains("model.logit_scale") ? "model." : "";
}

}  // namespace detail

/// Reads a trained model: a folder with model.safetensors, or a file (safetensors or the authors' .bin, whose names
/// begin with "model."). Names in `store` are the model's own. FileError if something is missing; then nothing was
/// changed.
template <ClipVisionConfig V, ClipTextConfig C, class T, class Device>
LoadReport load_preference_model(const std::string& path, StepAwarePreferenceModel<V, C, T, Device>&,
                                 const ParameterStore<T, Device>& store) {
  const auto source = detail::open_clip_weights(path);
  return load_parameters(store, source, {.file_prefix = detail::clip_prefix(source)});
}

/// Reads a plain CLIP model of the same towers (PickScore's) into a model that begins with it: the time modulation is
/// left as it is.
template <ClipVisionConfig V, ClipTextConfig C, class T, class Device>
LoadReport load_clip_model(const std::string& path, StepAwarePreferenceModel<V, C, T, Device>&,
                           const ParameterStore<T, Device>& store) {
  const auto source = detail::open_clip_weights(path);
  const ParameterNames names{.file_prefix = detail::clip_prefix(source)};
  auto parameters = detail::select_parameters(store, names);
  std::erase_if(parameters, [](const auto& parameter) { return detail::is_time_modulation(parameter.name); });
  return detail::read_parameters(detail::match_parameters(std::move(parameters), source, names), source, names);
}

/// Writes `directory`/model.safetensors, whole or not at all. logit_scale has no axes, as in the authors' files.
template <ClipVisionConfig V, ClipTextConfig C, class T, class Device>
void save_preference_model(const std::string& directory, const StepAwarePreferenceModel<V, C, T, Device>&,
                           const ParameterStore<T, Device>& store, DType dtype = DType::F32) {
  make_directories(directory);
  SafetensorsWriter writer;
  writer.set_metadata("format", "pt");
  add_parameters(writer, store, dtype);
  writer.reshape("logit_scale", {});
  writer.write(directory + "/model.safetensors");
}

}  // namespace lpo::inline LPO_ABI
