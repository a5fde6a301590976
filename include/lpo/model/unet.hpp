// SPDX-License-Identifier: MIT
// UNet2DCondition: the text-conditioned denoiser of Stable Diffusion as a type, and its encoder half for reward models.
#pragma once

#include <array>
#include <span>
#include <tuple>
#include <utility>

#include <lpo/model/unet_config.hpp>
#include <lpo/nn/timestep_embedding.hpp>
#include <lpo/nn/unet_blocks.hpp>

namespace lpo::inline LPO_ABI {

/// What a UNet is conditioned on, one row per latent, or several: with 2n rows of text, as guidance needs, the n
/// latents run under the first n texts and again under the other n. Results have a row per text. What the latents go
/// through before they meet a text is computed once.
template <class T, class Device>
struct UNetCondition {
  std::span<const float> timesteps;  ///< [n], one per latent
  Var<T, 3, Device> context;         ///< text states [rows, tokens, context_width]
  Var<T, 2, Device> text_embedding;  ///< SDXL: pooled text [rows, width]; absent otherwise
  std::span<const float> time_ids;   ///< SDXL: 6 numbers per row of text; empty otherwise
  /// sinusoidal_features of the timesteps [n, level_channels(0)], in place of `timesteps`: for passes that are captured,
  /// in which numbers of the host are frozen. Absent otherwise.
  Var<T, 2, Device> time_features{};
};

/// Result of the encoder half.
template <UNetConfig C, class T, class Device>
struct UNetFeatures {
  std::array<Var<T, 4, Device>, static_cast<std::size_t>(C.skips())> skips;  ///< in diffusers' residual order
  Var<T, 4, Device, C.last_channels()> mid;                                  ///< [n, h', w', last channels]
  Var<T, 2, Device> time;  ///< silu(time embedding) [rows, time_width]
};

namespace detail {

template <UNetConfig C>
inline constexpr UNetBlockSpec unet_block_spec{C.time_width(), C.groups, C.context_width, C.linear_projection};

template <UNetConfig C, int Level>
inline constexpr TransformerSpec unet_transformer{C.transformer_depth[Level], C.heads[Level]};

template <UNetConfig C, int Level, class T, class Device>
using UNetDownBlock = DownBlock2D<C.level_channels(Level == 0 ? 0 : Level - 1), C.level_channels(Level), C.layers_per_block,
                                  (Level + 1 < C.levels), unet_transformer<C, Level>, unet_block_spec<C>, T, Device>;

/// Up block i works at level `levels - 1 - i`.
template <UNetConfig C, int I, class T, class Device>
using UNetUpBlock =
    UpBlock2D<C.level_channels(I == 0 ? C.levels - 1 : C.levels - I), C.level_channels(C.levels - 1 - I),
              C.level_channels(C.levels - 2 - I < 0 ? 0 : C.levels - 2 - I), C.layers_per_block, (I + 1 < C.levels),
              unet_transformer<C, C.levels - 1 - I>, unet_block_spec<C>, T, Device>;

template <template <UNetConfig, int, class, class> class Block, UNetConfig C, class T, class Device, class Indices>
struct UNetBlocks;
template <template <UNetConfig, int, class, class> class Block, UNetConfig C, class T, class Device, std::size_t... I>
struct UNetBlocks<Block, C, T, Device, std::index_sequence<I...>> {
  std::tuple<Block<C, static_cast<int>(I), T, Device>...> blocks;

  void visit_as(const std::string& name, ParameterVisitor<T, Device>& v) {
    (v(name + "." + std::to_string(I), std::get<I>(blocks)), ...);
  }
};

}  // namespace detail

/// Time embedding, input convolution, down blocks and middle block: all that a latent reward model runs. Weight names are
/// those of the full model, so that it loads from the same checkpoint and skips the up blocks.
template <UNetConfig C, class T, class Device>
struct UNetEncoder {
  static constexpr UNetConfig config = C;
  static_assert(C.levels >= 2 && C.levels <= UNetConfig::max_levels, "lpo UNetEncoder: a UNet has 2 to 4 levels");
  using value_type = T;
  using device = Device;

  TimestepEmbedding<C.level_channels(0), C.time_width(), T, Device> time_embedding;
  [[no_unique_address]] std::conditional_t<
      (C.addition_width > 0), TimestepEmbedding<(C.addition_width > 0 ? C.addition_width : 1), C.time_width(), T, Device>,
      detail::Nothing>
      add_embedding;
  Conv2d<C.in_channels, C.level_channels(0), 3, T, Device> conv_in;
  detail::UNetBlocks<detail::UNetDownBlock, C, T, Device, std::make_index_sequence<static_cast<std::size_t>(C.levels)>> down;
  MidBlock2D<C.last_channels(), TransformerSpec{C.mid_depth, C.heads[static_cast<std::size_t>(C.levels - 1)]},
             detail::unet_block_spec<C>, T, Device>
      mid_block;

  /// Latents [n, h, w, in_channels] under `condition`.
  UNetFeatures<C, T, Device> encode(const Var<T, 4, Device>& sample, const UNetCondition<T, Device>& condition) {
    check(sample, condition);
    auto& tape = sample.tape();
    UNetFeatures<C, T, Device> features;
    const index_t rows = condition.context.extent(0);
    features.time = embed_time(tape, condition);
    // The first layer's text comes after a convolution, a resnet and a self-attention; SDXL's resnets see a text
    // before.
    constexpr bool shared_start = C.transformer_depth[0] > 0 && C.addition_width == 0;
    auto h = conv_in(shared_start ? sample : repeat_batch(sample, rows));
    features.skips[0] = repeat_batch(h, rows);
    Var<T, 4, Device>* skip = features.skips.data() + 1;
    features.mid = run_down<0>(h, features.time, condition.context, skip);
    return features;
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("conv_in", conv_in);
    v("time_embedding", time_embedding);
    if constexpr (C.addition_width > 0) v("add_embedding", add_embedding);
    down.visit_as("down_blocks", v);
    v("mid_block", mid_block);
  }

 private:
  template <int Level>
  Var<T, 4, Device, C.last_channels()> run_down(const Var<T, 4, Device, C.level_channels(Level == 0 ? 0 : Level - 1)>& h,
                                                const Var<T, 2, Device>& time, const Var<T, 3, Device>& context,
                                                Var<T, 4, Device>* skip) {
    using Block = detail::UNetDownBlock<C, Level, T, Device>;
    const auto out = std::get<static_cast<std::size_t>(Level)>(down.blocks)(h, time, context, skip);
    if constexpr (Level + 1 < C.levels)
      return run_down<Level + 1>(out, time, context, skip + Block::skips);
    else
      return mid_block(out, time, context);
  }

  static void check(const Var<T, 4, Device>& sample, const UNetCondition<T, Device>& condition) {
    const index_t n = sample.extent(0);
    const bool has_features = condition.time_features.present();
    if (has_features && condition.time_features.extents() != Extents<2>{n, C.level_channels(0)})
      throw ShapeError(message("[UNet] time features ", to_string(condition.time_features.extents()), " must be [", n,
                               ", ", C.level_channels(0), "]"));
    if (!has_features && static_cast<index_t>(condition.timesteps.size()) != n)
      throw ShapeError(message("[UNet] ", n, " latents need ", n, " timesteps, given ",
                               static_cast<index_t>(condition.timesteps.size())));
    const index_t rows = condition.context.extent(0);
    if (rows < n || (n > 0 && rows % n != 0) || condition.context.extent(2) != C.context_width)
      throw ShapeError(message("[UNet] text states ", to_string(condition.context.extents()), " must be [", n,
                               ", tokens, ", C.context_width, "], or have a multiple of ", n, " rows"));
    if constexpr (C.addition_width > 0) {
      if (!condition.text_embedding.present() || condition.text_embedding.extent(0) != rows ||
          static_cast<index_t>(condition.time_ids.size()) != 6 * rows)
        throw ShapeError(message("[UNet] this model needs pooled text [", rows, ", width] and 6 time ids per row"));
    }
  }

  Var<T, 2, Device> embed_time(Tape<Device>& tape, const UNetCondition<T, Device>& condition) {
    const auto features = condition.time_features.present()
                              ? condition.time_features
                              : sinusoidal_embedding<T>(tape, condition.timesteps, C.level_channels(0));
    const index_t rows = condition.context.extent(0);
    auto embedding = repeat_batch(time_embedding(features), rows);
    if constexpr (C.addition_width > 0) {
      const auto ids = sinusoidal_embedding<T>(tape, condition.time_ids, C.addition_time_width)
                           .reshape(Extents<2>{rows, 6 * C.addition_time_width});
      const auto added = add_embedding(concat_channels(condition.text_embedding, ids));
      const Var<T, 2, Device, C.time_width()> total = embedding + added;
      embedding = total;
    }
    const Var<T, 2, Device> activated = silu(embedding);
    return activated;
  }
};

/// The full denoiser: [n, h, w, in_channels] -> [n, h, w, out_channels].
template <UNetConfig C, class T, class Device>
struct UNet2DCondition : UNetEncoder<C, T, Device> {
  using Encoder = UNetEncoder<C, T, Device>;

  detail::UNetBlocks<detail::UNetUpBlock, C, T, Device, std::make_index_sequence<static_cast<std::size_t>(C.levels)>> up;
  GroupNorm<C.level_channels(0), C.groups, T, Device, true> conv_norm_out;
  Conv2d<C.level_channels(0), C.out_channels, 3, T, Device> conv_out;

  /// Predicts noise (or v, or the sample: what the checkpoint was trained for).
  Var<T, 4, Device, C.out_channels> operator()(const Var<T, 4, Device>& sample, const UNetCondition<T, Device>& condition) {
    return scoped(sample.tape(), [&] {
      auto features = this->encode(sample, condition);
      return decode(features, condition.context);
    });
  }

  /// The second half, from the encoder's features.
  Var<T, 4, Device, C.out_channels> decode(UNetFeatures<C, T, Device>& features, const Var<T, 3, Device>& context) {
    Var<T, 4, Device>* skip = features.skips.data() + features.skips.size();
    const auto h = run_up<0>(features.mid, features.time, context, skip);
    return conv_out(conv_norm_out(h, 1e-5f));
  }

  void visit(ParameterVisitor<T, Device>& v) {
    Encoder::visit(v);
    up.visit_as("up_blocks", v);
    v("conv_norm_out", conv_norm_out);
    v("conv_out", conv_out);
  }

 private:
  template <int I, int Prev>
  Var<T, 4, Device, C.level_channels(0)> run_up(const Var<T, 4, Device, Prev>& h, const Var<T, 2, Device>& time,
                                                const Var<T, 3, Device>& context, Var<T, 4, Device>* skip) {
    const auto out = std::get<static_cast<std::size_t>(I)>(up.blocks)(h, time, context, skip);
    if constexpr (I + 1 < C.levels)
      return run_up<I + 1>(out, time, context, skip);
    else
      return out;
  }
};

}  // namespace lpo::inline LPO_ABI
