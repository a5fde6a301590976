// SPDX-License-Identifier: MIT
// LatentRewardModel: half a diffusion UNet that scores noisy latents against a prompt at any timestep (arXiv 2502.01051).
#pragma once

#include <span>
#include <vector>

#include <lpo/autograd/resample.hpp>
#include <lpo/model/unet.hpp>
#include <lpo/reward/score.hpp>

namespace lpo::inline LPO_ABI {

/// Which features enter the score. The defaults are the released models' (arXiv 2502.01051).
struct RewardFeatureOptions {
  float guidance = 7.5f;         ///< g of the visual feature enhancement; 1 turns the unconditional pass off
  bool multi_scale = true;       ///< pool every level, not the middle alone
  bool multi_scale_cfg = false;  ///< guide the levels too
  bool sdxl_first_unguided = false;  ///< official SDXL quirk: level 1 stays unguided under multi_scale_cfg

  bool operator==(const RewardFeatureOptions&) const = default;
};

/// The prompt side of a score, one row per latent.
template <class T, class Device>
struct RewardPrompt {
  Var<T, 3, Device> context;         ///< text states of the prompts [n, tokens, context_width]
  Var<T, 3, Device> context_empty;   ///< text states of the empty prompt, same extents; absent when guidance is 1
  Var<T, 2, Device> text_embedding;  ///< SDXL: pooled text [n, width]
  Var<T, 2, Device> text_embedding_empty;
  std::span<const float> time_ids;   ///< SDXL: 6 per row
  Var<T, 2, Device> time_features{};  ///< in place of timesteps, as in UNetCondition
};

/// Weights under the names of the released folders: `unet.*` (without up blocks), visual_projection.weight [Width,
/// pooled features], text_projection.weight, logit_scale. Of multi-scale features all levels and the middle are
/// projected, else the middle alone: see use_features(). `TextWidth` is the pooled text width; with `TextProjection` false (SDXL) it must
/// equal `Width`.
template <UNetConfig C, int TextWidth, int Width, bool TextProjection, class T, class Device>
struct LatentRewardModel {
  static constexpr UNetConfig config = C;
  static_assert(TextProjection || TextWidth == Width,
                "lpo LatentRewardModel: without a text projection the pooled text must be as wide as the score features");
  using value_type = T;
  using device = Device;

  UNetEncoder<C, T, Device> unet;
  Linear<C.feature_width(), Width, T, Device, false> visual_projection;  ///< narrower for the middle alone
  [[no_unique_address]] std::conditional_t<TextProjection, Linear<TextWidth, Width, T, Device, false>, detail::Nothing>
      text_projection;
  Parameter<T, 1, Device> logit_scale{Extents<1>{1}, {Initialization::Kind::constant, 2.6592f}};
  RewardFeatureOptions options;

  LatentRewardModel() { use_features({}); }

  /// Sets the options, and makes the projection as wide as their features. Before a ParameterStore is given the model:
  /// a projection that has memory keeps its width, and ValueError says so when the features need another.
  void use_features(const RewardFeatureOptions& features) {
    const Extents<2> sizes{Width, C.feature_width(features.multi_scale)};
    auto& weight = visual_projection.weight;
    if (weight.slot.data != nullptr && weight.extents[1] != sizes[1])
      throw ValueError(message("[LatentRewardModel] the projection is ", weight.extents[1], " features wide, multi_scale = ",
                               features.multi_scale, " needs ", sizes[1], "; call use_features before the store allocates"));
    weight.resize(sizes, {Initialization::Kind::normal, 0.02f});
    options = features;
  }

  /// Pooled, concatenated features [n, feature_width(multi_scale)]: every level (conditional branch), then the guided middle
  /// mid_u + g (mid_c - mid_u). Both branches run in one batch of 2n rows of text, conditional first.
  Var<T, 2, Device> features(const Var<T, 4, Device>& latents, std::span<const float> timesteps,
                             const RewardPrompt<T, Device>& prompt) {
    const index_t n = latents.extent(0);
    const bool guided = options.guidance != 1.0f;
    std::vector<float> ids(prompt.time_ids.begin(), prompt.time_ids.end());
    UNetCondition<T, Device> condition{timesteps, prompt.context, prompt.text_embedding, ids, prompt.time_features};
    if (guided) {
      if (!prompt.context_empty.present())
        throw ValueError("[LatentRewardModel] guidance other than 1 needs the text states of the empty prompt");
      ids.insert(ids.end(), prompt.time_ids.begin(), prompt.time_ids.end());
      condition.time_ids = ids;
      condition.context = concat_batch(prompt.context, prompt.context_empty);
      if (prompt.text_embedding.present())
        condition.text_embedding = concat_batch(prompt.text_embedding, prompt.text_embedding_empty);
    }
    const auto unet_features = unet.encode(latents, condition);
    const auto pool = [&](const Var<T, 4, Device>& map, bool guide) {
      const auto conditional = spatial_mean(map.slice(0, 0, n));
      if (!guided || !guide) return conditional;
      const auto empty = spatial_mean(map.slice(0, n, 2 * n));
      const double g = static_cast<double>(options.guidance);
      return Var<T, 2, Device>(empty + g * (conditional - empty));
    };
    auto mid = pool(unet_features.mid, true);
    if (!options.multi_scale) return mid;
    Var<T, 2, Device> all;
    for (int level = 0; level < C.levels; ++level) {
      const auto& map = unet_features.skips[static_cast<std::size_t>(C.feature_index(level))];
      const bool guide = options.multi_scale_cfg && !(options.sdxl_first_unguided && level == 0);
      const auto pooled = pool(map, guide);
      all = level == 0 ? pooled : concat_channels(all, pooled);
    }
    return concat_channels(all, mid);
  }

  /// Visual features v = W_v * pooled [n, Width].
  Var<T, 2, Device> visual(const Var<T, 4, Device>& latents, std::span<const float> timesteps,
                           const RewardPrompt<T, Device>& prompt) {
    return visual_projection(features(latents, timesteps, prompt));
  }

  /// Text features q [n, Width] from the pooled text of the conditional prompt [n, TextWidth].
  Var<T, 2, Device> text(const Var<T, 2, Device>& pooled) {
    if constexpr (TextProjection)
      return text_projection(pooled);
    else
      return pooled;
  }

  /// S(prompt, x_t, t) [n] = exp(logit_scale) * cos(v, q).
  Var<compute_t<T>, 1, Device> score(const Var<T, 4, Device>& latents, std::span<const float> timesteps,
                                     const RewardPrompt<T, Device>& prompt, const Var<T, 2, Device>& pooled_text) {
    return cosine_score(visual(latents, timesteps, prompt), text(pooled_text), logit_scale.on(latents.tape()));
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("unet", unet);
    v("visual_projection", visual_projection);
    if constexpr (TextProjection) v("text_projection", text_projection);
    v("logit_scale", logit_scale);
  }
};

}  // namespace lpo::inline LPO_ABI
