// SPDX-License-Identifier: MIT
// Models and settings from single-file checkpoints: the same loaders as for diffusers' folders, given a SingleFile.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <optional>
#include <string>
#include <system_error>

#include <lpo/io/clip_vocabulary.hpp>
#include <lpo/io/diffusers_config.hpp>
#include <lpo/io/parameters.hpp>
#include <lpo/io/single_file.hpp>
#include <lpo/model/autoencoder_kl.hpp>
#include <lpo/model/clip_text.hpp>
#include <lpo/model/unet.hpp>

namespace lpo::inline LPO_ABI {

/// Latents are scaled to about unit variance with this.
inline constexpr float usual_scaling_factor(CheckpointFamily family) {
  return family == CheckpointFamily::xl ? 0.13025f : 0.18215f;
}

/// Under this key of the metadata lpo writes a scaling factor that is not the family's; other programs write none.
inline constexpr const char* scaling_factor_key = "lpo.scaling_factor";

/// The file's own scaling factor, else its family's. FileError if it is no positive number.
inline float scaling_factor_of(const SingleFile& file) {
  const auto said = file.metadata().find(scaling_factor_key);
  if (said == file.metadata().end()) return usual_scaling_factor(file.family());
  float factor = 0;
  const std::string& text = said->second;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), factor);
  if (error != std::errc() || end != text.data() + text.size() || !(factor > 0))
    throw FileError(message("[checkpoint] ", file.path(), ": metadata \"", scaling_factor_key, "\" is \"", text,
                            "\", expected a positive number"));
  return factor;
}

/// What the file says that its UNet predicts, or what is usual: v for v2 (its 512-base models, which predict epsilon,
/// do not say so either), epsilon for the others.
inline PredictionType prediction_type_of(const SingleFile& file) {
  const bool v2 = file.family() == CheckpointFamily::v2 && file.has_unet();
  return file.prediction_type().value_or(v2 ? PredictionType::v_prediction : PredictionType::epsilon);
}

/// Height of the pictures that its models were trained on, in pixels: that of `modelspec.resolution` ("512x768" is
/// width and height), else the family's, which for v2 depends on what the UNet predicts.
inline int resolution_of(const SingleFile& file, PredictionType prediction_type) {
  const auto said = file.metadata().find("modelspec.resolution");
  if (said == file.metadata().end()) {
    if (file.family() == CheckpointFamily::xl) return 1024;
    return file.family() == CheckpointFamily::v2 && prediction_type == PredictionType::v_prediction ? 768 : 512;
  }
  int height = 0;
  const std::string& text = said->second;
  const char* const end = text.data() + text.size();
  const char* const first = text.data() + text.find_last_of('x') + 1;  // one number is both
  const auto [last, error] = std::from_chars(first, end, height);
  if (error != std::errc() || last != end || height < 1)
    throw FileError(message("[checkpoint] ", file.path(), ": metadata \"modelspec.resolution\" is \"", text,
                            "\", expected like \"512x512\""));
  return height;
}

/// Stable Diffusion's schedule with what the file says of it, for its own sampler or for another one. `prediction_type`
/// goes before what the file says.
inline SchedulerConfig load_scheduler(const SingleFile& file, std::optional<SamplerKind> sampler = std::nullopt,
                                      std::optional<PredictionType> prediction_type = std::nullopt) {
  SchedulerConfig config;
  config.prediction_type = prediction_type ? *prediction_type : prediction_type_of(file);
  config.rescale_betas_zero_snr = file.contains("ztsnr");  // a mark that some SDXL models carry
  return scheduler_from_json(scheduler_json(config), sampler);
}

/// `vocabulary` with the padding that a text encoder of the file was trained with: OpenAI's CLIP pads with the end
/// token, open_clip with id 0, which is "!".
inline ClipVocabulary padded_for(const SingleFile& file, std::size_t which, ClipVocabulary vocabulary) {
  const bool open_clip = ldm_text_encoder_places(file.family()).at(which).open_clip;
  const bool has_mark = std::find(vocabulary.tokens.begin(), vocabulary.tokens.end(), "!") != vocabulary.tokens.end();
  vocabulary.pad_token = open_clip && has_mark ? "!" : vocabulary.end_token;
  return vocabulary;
}

/// Reads the file's UNet into the weights that `store` holds under `prefix`; the model may be the encoder half.
/// FileError lists all that does not fit the compiled model; then nothing was changed. The number of heads is not in
/// the file: choose the right preset.
template <UNetConfig C, class T, class Device>
LoadReport load_unet(const SingleFile& file, const UNetEncoder<C, T, Device>&, const ParameterStore<T, Device>& store,
                     const std::string& prefix = "unet") {
  return load_parameters(store, file.unet(C), {.model_prefix = prefix});
}

/// The same for its autoencoder; its `scaling_factor` is set too.
template <VaeConfig C, class T, class Device>
LoadReport load_vae(const SingleFile& file, AutoencoderKL<C, T, Device>& vae, const ParameterStore<T, Device>& store,
                    const std::string& prefix = "vae") {
  const LoadReport report = load_parameters(store, file.vae(C), {.model_prefix = prefix});
  vae.scaling_factor = scaling_factor_of(file);
  return report;
}

/// The same for a text encoder: number 0, or 1 for the second of SDXL.
template <ClipTextConfig C, class T, class Device>
LoadReport load_text_encoder(const SingleFile& file, CLIPTextModel<C, T, Device>& model,
                             const ParameterStore<T, Device>& store, const std::string& prefix = "text_encoder",
                             std::size_t which = 0) {
  const LoadReport report = load_parameters(store, file.text_encoder(C, which), {.model_prefix = prefix});
  model.end_token = -1;  // the largest id
  return report;
}

}  // namespace lpo::inline LPO_ABI
