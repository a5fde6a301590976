// SPDX-License-Identifier: MIT
// The small single-file checkpoints of tests/golden: their architectures, and the weights they were filled with.
#pragma once

#include <zlib.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <lpo/io/single_file.hpp>

namespace golden {

/// One family; configs as `SingleFile` can tell them: heads and groups of such narrow models are unknown (0).
struct SinglePipeline {
  const char* name;
  lpo::CheckpointFamily family;
  lpo::UNetConfig unet;
  lpo::VaeConfig vae;
  std::vector<lpo::ClipTextConfig> text_encoders;
};

inline std::vector<SinglePipeline> single_pipelines() {
  const lpo::ClipTextConfig clip{.vocabulary = 12, .width = 6, .hidden = 10, .layers = 2, .heads = 0, .positions = 5};
  lpo::ClipTextConfig open = clip, projected = clip;
  open.width = 4, open.hidden = 6, open.layers = 23, open.quick_gelu = false;
  projected.width = projected.projection = 8, projected.layers = 3, projected.quick_gelu = false;
  return {{"sd15",
           lpo::CheckpointFamily::v1,
           {.channels = {4, 8, 8, 8},
            .transformer_depth = {1, 1, 1, 0},
            .heads = {0, 8, 8, 8},
            .context_width = 6,
            .groups = 0},
           {.levels = 3, .channels = {4, 8, 8, 0}, .groups = 0},
           {clip}},
          {"sd21",
           lpo::CheckpointFamily::v2,
           {.channels = {4, 8, 8, 12},
            .layers_per_block = 1,
            .transformer_depth = {1, 1, 1, 0},
            .heads = {},
            .context_width = 4,
            .linear_projection = true,
            .groups = 0},
           {.levels = 2, .channels = {4, 8, 0, 0}, .layers_per_block = 1, .groups = 0},
           {open}},
          {"sdxl",
           lpo::CheckpointFamily::xl,
           {.levels = 3,
            .channels = {4, 8, 8, 0},
            .transformer_depth = {0, 1, 2, 0},
            .heads = {},
            .mid_depth = 2,
            .context_width = 14,
            .linear_projection = true,
            .groups = 0,
            .addition_time_width = 3,
            .addition_width = 26},
           {.levels = 2, .channels = {4, 4, 0, 0}, .layers_per_block = 1, .groups = 0},
           {clip, projected}}};
}

/// What goldens/single_file.py fills a weight with: integers from a checksum of "component.name" upwards.
inline std::vector<float> single_file_value(const std::string& name, std::size_t count) {
  const std::uint64_t start = ::crc32(0, reinterpret_cast<const Bytef*>(name.data()), static_cast<uInt>(name.size()));
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(static_cast<int>((i + start) % 509) - 254);
  return values;
}

inline std::string text_encoder_name(std::size_t which) { return which == 0 ? "text_encoder" : "text_encoder_2"; }

/// All components of a file, by name.
inline std::vector<std::pair<std::string, lpo::RenamedWeights>> components_of(const lpo::SingleFile& file) {
  std::vector<std::pair<std::string, lpo::RenamedWeights>> components;
  if (file.has_unet()) components.emplace_back("unet", file.unet(file.unet_config()));
  if (file.has_vae()) components.emplace_back("vae", file.vae(file.vae_config()));
  for (std::size_t i = 0; i < file.text_encoders(); ++i)
    components.emplace_back(text_encoder_name(i), file.text_encoder(file.text_encoder_config(i), i));
  return components;
}

}  // namespace golden
