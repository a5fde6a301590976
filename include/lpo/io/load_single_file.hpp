// SPDX-License-Identifier: MIT
// Compiled models from single-file checkpoints: the same loaders as for diffusers' folders, given a SingleFile.
#pragma once

#include <cstddef>
#include <string>

#include <lpo/io/parameters.hpp>
#include <lpo/io/single_file.hpp>
#include <lpo/model/autoencoder_kl.hpp>
#include <lpo/model/clip_text.hpp>
#include <lpo/model/unet.hpp>

namespace lpo::inline LPO_ABI {

/// Latents are scaled to about unit variance with this; single files do not store it.
inline constexpr float usual_scaling_factor(CheckpointFamily family) {
  return family == CheckpointFamily::xl ? 0.13025f : 0.18215f;
}

/// Reads the file's UNet into the weights that `store` holds under `prefix`; the model may be the encoder half.
/// FileError lists all that does not fit the compiled model; then nothing was changed. The number of heads is not in
/// the file: choose the right preset.
template <UNetConfig C, class T, class Device>
LoadReport load_unet(const SingleFile& file, const UNetEncoder<C, T, Device>&, const ParameterStore<T, Device>& store,
                     const std::string& prefix = "unet") {
  return load_parameters(store, file.unet(C), {.model_prefix = prefix});
}

/// The same for its autoencoder; `scaling_factor` is set to the family's.
template <VaeConfig C, class T, class Device>
LoadReport load_vae(const SingleFile& file, AutoencoderKL<C, T, Device>& vae, const ParameterStore<T, Device>& store,
                    const std::string& prefix = "vae") {
  const LoadReport report = load_parameters(store, file.vae(C), {.model_prefix = prefix});
  vae.scaling_factor = usual_scaling_factor(file.family());
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
