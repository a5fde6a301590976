// SPDX-License-Identifier: MIT
// The small models of the golden files as types, and the inputs of a UNet.
#pragma once

#include <memory>

#include <lpo/model/clip_text_config.hpp>
#include <lpo/model/unet.hpp>
#include <lpo/model/vae_config.hpp>

#include "golden_file.hpp"

namespace golden {

/// Shapes like SD1.5: integer heads, 1x1 convolutions around the transformers.
inline constexpr lpo::UNetConfig sd15{.channels = {8, 16, 16, 16},
                                      .transformer_depth = {1, 1, 1, 0},
                                      .heads = {2, 2, 2, 2},
                                      .context_width = 12,
                                      .groups = 4};
/// Like SD2.1: heads per level, linear projections; one layer per block.
inline constexpr lpo::UNetConfig sd21{.channels = {8, 16, 16, 24},
                                      .layers_per_block = 1,
                                      .transformer_depth = {1, 1, 1, 0},
                                      .heads = {2, 4, 4, 6},
                                      .context_width = 16,
                                      .linear_projection = true,
                                      .groups = 4};
/// Like SDXL: three levels, none, one and two transformers deep, added conditioning.
inline constexpr lpo::UNetConfig sdxl{.levels = 3,
                                      .channels = {8, 16, 16, 0},
                                      .transformer_depth = {0, 1, 2, 0},
                                      .heads = {2, 4, 4, 0},
                                      .mid_depth = 2,
                                      .context_width = 20,
                                      .linear_projection = true,
                                      .groups = 4,
                                      .addition_time_width = 8,
                                      .addition_width = 64};

inline constexpr lpo::VaeConfig vae{.levels = 3, .channels = {8, 16, 16, 0}, .layers_per_block = 1, .groups = 4};

/// `quick/` of clip_text: as SD1.5's.
inline constexpr lpo::ClipTextConfig quick_text{
    .vocabulary = 48, .width = 16, .hidden = 40, .layers = 3, .heads = 2, .positions = 11};
/// `gelu/` of clip_text: as SDXL's second, with projection.
inline constexpr lpo::ClipTextConfig gelu_text{.vocabulary = 48,
                                               .width = 16,
                                               .hidden = 40,
                                               .layers = 2,
                                               .heads = 4,
                                               .positions = 11,
                                               .quick_gelu = false,
                                               .projection = 12};

/// Inputs of a golden UNet and their place on a tape.
template <class T, class Device>
struct UNetInputs {
  lpo::Tensor<T, 4, Device> sample;
  lpo::Tensor<T, 3, Device> context;
  lpo::Tensor<T, 2, Device> text;
  std::vector<float> timesteps, time_ids;

  explicit UNetInputs(const lpo::SafetensorsFile& file)
      : sample(tensor<T, 4, Device>(file, "in/sample")),
        context(tensor<T, 3, Device>(file, "in/context")),
        timesteps(timesteps_of(file)) {
    if (!file.contains("in/text_embeds")) return;
    text = tensor<T, 2, Device>(file, "in/text_embeds");
    time_ids = file.read_vector<float>("in/time_ids");
  }

  struct OnTape {
    lpo::Var<T, 4, Device> sample;
    lpo::UNetCondition<T, Device> condition;
  };
  OnTape on(lpo::Tape<Device>& tape) {
    OnTape vars{lpo::variable(tape, sample), {timesteps, lpo::variable(tape, context), {}, time_ids}};
    if (text.size() > 0) vars.condition.text_embedding = lpo::variable(tape, text);
    return vars;
  }

 private:
  static std::vector<float> timesteps_of(const lpo::SafetensorsFile& file) {
    const auto integers = file.read_vector<std::int64_t>("in/timestep");
    return std::vector<float>(integers.begin(), integers.end());
  }
};

}  // namespace golden
