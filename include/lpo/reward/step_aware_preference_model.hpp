// SPDX-License-Identifier: MIT
// StepAwarePreferenceModel: a CLIP model whose vision tower knows the timestep; rates predicted pictures (SPO).
#pragma once

#include <span>

#include <lpo/model/clip_text.hpp>
#include <lpo/model/clip_vision.hpp>
#include <lpo/nn/timestep_embedding.hpp>
#include <lpo/reward/score.hpp>

namespace lpo::inline LPO_ABI {

namespace presets {

/// PickScore's text tower (OpenCLIP ViT-H), all of its layers.
inline constexpr ClipTextConfig pickscore_text{
    .width = 1024, .hidden = 4096, .layers = 24, .heads = 16, .quick_gelu = false, .projection = 1024};
/// PickScore's vision tower, modulated by time.
inline constexpr ClipVisionConfig step_aware_vision{.width = 1280,
                                                    .hidden = 5120,
                                                    .layers = 32,
                                                    .heads = 16,
                                                    .quick_gelu = false,
                                                    .projection = 1024,
                                                    .time_modulated = true};

}  // namespace presets

/// The preference model of SPO (arXiv 2406.04314): S(prompt, picture, t) = exp(logit_scale) cos(v, q), where v is the
/// vision tower's embedding of the picture that a diffusion model predicts from the noisy latents of timestep t.
/// Weights under the names of transformers' CLIPModel, and t_embedder.mlp.0, .2 of the time embedding.
template <ClipVisionConfig V, ClipTextConfig C, class T, class Device>
struct StepAwarePreferenceModel {
  static constexpr ClipVisionConfig vision_config = V;
  static constexpr ClipTextConfig text_config = C;
  static_assert(
      V.time_modulated && C.projection == V.projection && C.projection > 0,
      "lpo StepAwarePreferenceModel: needs a modulated vision tower, and a text tower of the same projection");
  using value_type = T;
  using device = Device;
  static constexpr int frequencies = 256;

  CLIPVisionModel<V, T, Device> vision;
  CLIPTextModel<C, T, Device> text_model;
  Linear<frequencies, V.width, T, Device> time_1;
  Linear<V.width, V.width, T, Device> time_2;
  Parameter<T, 1, Device> logit_scale{Extents<1>{1}, {Initialization::Kind::constant, 2.6592f}};

  StepAwarePreferenceModel() {
    for (auto* weight : {&time_1.weight.initialization, &time_2.weight.initialization})
      *weight = {Initialization::Kind::normal, 0.02f};
    for (auto* bias : {&time_1.bias.initialization, &time_2.bias.initialization})
      *bias = {Initialization::Kind::zeros, 0.0f};
  }

  /// v [n, projection] of prepared pictures (clip_pixels), picture i at timesteps[i].
  Var<T, 2, Device> visual(const Var<T, 4, Device>& pixels, std::span<const float> timesteps) {
    return visual(pixels, sinusoidal_embedding<T>(pixels.tape(), timesteps, frequencies));
  }
  /// With sinusoidal_features of the timesteps [n, frequencies] in their place.
  Var<T, 2, Device> visual(const Var<T, 4, Device>& pixels, const Var<T, 2, Device>& time_features) {
    const Var<T, 2, Device> hidden = silu(time_1(time_features));
    return vision(pixels, time_2(hidden)).image_embedding;
  }

  /// q [n, projection] of prompts as token ids.
  Var<T, 2, Device> text(Tape<Device>& tape, std::span<const std::int32_t> ids, index_t n) {
    return text_model(tape, ids, n).text_embedding;
  }

  /// Scores [n] of pictures against their prompts.
  Var<compute_t<T>, 1, Device> score(const Var<T, 4, Device>& pixels, std::span<const float> timesteps,
                                     const Var<T, 2, Device>& texts) {
    return cosine_score(visual(pixels, timesteps), texts, logit_scale.on(pixels.tape()));
  }

  void visit(ParameterVisitor<T, Device>& v) {
    vision.visit(v);
    text_model.visit(v);
    v("t_embedder.mlp.0", time_1);
    v("t_embedder.mlp.2", time_2);
    v("logit_scale", logit_scale);
  }
};

}  // namespace lpo::inline LPO_ABI
