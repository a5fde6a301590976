// SPDX-License-Identifier: MIT
// AutoencoderKL: the image autoencoder of Stable Diffusion as a type; images to a latent Gaussian and latents to
// images.
#pragma once

#include <array>
#include <cstddef>
#include <tuple>
#include <utility>

#include <lpo/autograd/concat.hpp>
#include <lpo/model/vae_config.hpp>
#include <lpo/nn/attention.hpp>
#include <lpo/nn/resnet_block.hpp>
#include <lpo/nn/sampling.hpp>

namespace lpo::inline LPO_ABI {

/// A diagonal Gaussian over latents, both parts [n, h, w, latent_channels].
template <class T, class Device>
struct LatentPosterior {
  Var<T, 4, Device> mean;
  Var<T, 4, Device> log_variance;  ///< clamped to [-30, 20]

  /// mean + exp(log_variance / 2) * noise, with standard normal noise of the same extents.
  Var<T, 4, Device> sample(const View<const T, 4, Device>& noise) const {
    return Var<T, 4, Device>(mean + exp(0.5 * log_variance) * noise);
  }
};

namespace detail {

inline constexpr float vae_epsilon = 1e-6f;

template <int In, int Out, VaeConfig C, class T, class Device>
using VaeResnet = ResnetBlock2D<In, Out, 0, C.groups, T, Device>;

/// Single-head self-attention over positions around a group norm. Keys: group_norm, to_q, to_k, to_v, to_out.0.
template <int Channels, int Groups, class T, class Device>
struct VaeAttention {
  GroupNorm<Channels, Groups, T, Device> group_norm;
  Linear<Channels, Channels, T, Device> to_q, to_k, to_v, to_out;

  Var<T, 4, Device, Channels> operator()(const Var<T, 4, Device, Channels>& x) {
    return scoped(x.tape(), [&] {
      const Var<T, 3, Device> tokens =
          group_norm(x, vae_epsilon).reshape(Extents<3>{x.extent(0), x.extent(1) * x.extent(2), Channels});
      const Var<T, 3, Device> q = to_q(tokens), k = to_k(tokens), v = to_v(tokens);
      const auto mixed = to_out(attention(q, k, v, 1)).reshape(x.extents()).template with_channels<Channels>();
      return Var<T, 4, Device, Channels>(mixed + x);
    });
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("group_norm", group_norm);
    v("to_q", to_q);
    v("to_k", to_k);
    v("to_v", to_v);
    v("to_out.0", to_out);
  }
};

/// resnet, attention (when the config has it), resnet.
template <VaeConfig C, class T, class Device>
struct VaeMidBlock {
  static constexpr int channels = C.last_channels();
  VaeResnet<channels, channels, C, T, Device> before, after;
  std::array<VaeAttention<channels, C.groups, T, Device>, C.mid_attention ? 1 : 0> attentions;

  Var<T, 4, Device, channels> operator()(const Var<T, 4, Device, channels>& x) {
    auto h = before(x, {}, vae_epsilon);
    for (auto& layer : attentions) h = layer(h);
    return after(h, {}, vae_epsilon);
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("attentions", attentions);
    v("resnets.0", before);
    v("resnets.1", after);
  }
};

/// `Count` resnets from In to Out channels, then a halving (`Scale` < 0), a doubling (> 0) or nothing (0).
template <int In, int Out, int Count, int Scale, VaeConfig C, class T, class Device>
struct VaeLevel {
  static_assert(Count >= 1, "lpo AutoencoderKL: a block needs at least one layer");
  VaeResnet<In, Out, C, T, Device> first;
  std::array<VaeResnet<Out, Out, C, T, Device>, static_cast<std::size_t>(Count - 1)> rest;
  std::array<Downsample2D<Out, true, T, Device>, (Scale < 0) ? 1 : 0> downsamplers;
  std::array<Upsample2D<Out, T, Device>, (Scale > 0) ? 1 : 0> upsamplers;

  Var<T, 4, Device, Out> operator()(const Var<T, 4, Device, In>& x) {
    return scoped(x.tape(), [&] {
      auto h = first(x, {}, vae_epsilon);  // [n, h, w, Out]
      for (auto& resnet : rest) h = resnet(h, {}, vae_epsilon);
      for (auto& layer : downsamplers) h = layer(h);
      for (auto& layer : upsamplers) h = layer(h, 2 * h.extent(1), 2 * h.extent(2));
      return h;
    });
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("resnets.0", first);
    for (std::size_t i = 0; i < rest.size(); ++i) v("resnets." + std::to_string(i + 1), rest[i]);
    v("downsamplers", downsamplers);
    v("upsamplers", upsamplers);
  }
};

template <int Level, VaeConfig C, class T, class Device>
using VaeDownLevel = VaeLevel<C.level_channels(Level == 0 ? 0 : Level - 1), C.level_channels(Level), C.layers_per_block,
                              (Level + 1 < C.levels) ? -1 : 0, C, T, Device>;

/// Up level i works at `levels - 1 - i`.
template <int I, VaeConfig C, class T, class Device>
using VaeUpLevel = VaeLevel<C.level_channels(I == 0 ? C.levels - 1 : C.levels - I), C.level_channels(C.levels - 1 - I),
                            C.layers_per_block + 1, (I + 1 < C.levels) ? 1 : 0, C, T, Device>;

template <template <int, VaeConfig, class, class> class Level, VaeConfig C, class T, class Device,
          class Indices = std::make_index_sequence<static_cast<std::size_t>(C.levels)>>
struct VaeLevels;
template <template <int, VaeConfig, class, class> class Level, VaeConfig C, class T, class Device, std::size_t... I>
struct VaeLevels<Level, C, T, Device, std::index_sequence<I...>> {
  std::tuple<Level<static_cast<int>(I), C, T, Device>...> levels;

  /// All levels in order.
  template <std::size_t At = 0, class Input>
  auto operator()(const Input& x) {
    const auto y = std::get<At>(levels)(x);
    if constexpr (At + 1 < sizeof...(I))
      return this->template operator()<At + 1>(y);
    else
      return y;
  }

  void visit_as(const std::string& name, ParameterVisitor<T, Device>& v) {
    (v(name + "." + std::to_string(I), std::get<I>(levels)), ...);
  }
};

/// Image [n, h, w, in_channels] -> moments before quant_conv [n, h', w', 2 * latent_channels].
template <VaeConfig C, class T, class Device>
struct VaeEncoder {
  Conv2d<C.in_channels, C.level_channels(0), 3, T, Device> conv_in;
  VaeLevels<VaeDownLevel, C, T, Device> down;
  VaeMidBlock<C, T, Device> mid_block;
  GroupNorm<C.last_channels(), C.groups, T, Device, true> conv_norm_out;
  Conv2d<C.last_channels(), 2 * C.latent_channels, 3, T, Device> conv_out;

  Var<T, 4, Device, 2 * C.latent_channels> operator()(const Var<T, 4, Device>& image) {
    return conv_out(conv_norm_out(mid_block(down(conv_in(image))), vae_epsilon));
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("conv_in", conv_in);
    down.visit_as("down_blocks", v);
    v("mid_block", mid_block);
    v("conv_norm_out", conv_norm_out);
    v("conv_out", conv_out);
  }
};

/// Latent after post_quant_conv [n, h', w', latent_channels] -> image [n, h, w, out_channels].
template <VaeConfig C, class T, class Device>
struct VaeDecoder {
  Conv2d<C.latent_channels, C.last_channels(), 3, T, Device> conv_in;
  VaeMidBlock<C, T, Device> mid_block;
  VaeLevels<VaeUpLevel, C, T, Device> up;
  GroupNorm<C.level_channels(0), C.groups, T, Device, true> conv_norm_out;
  Conv2d<C.level_channels(0), C.out_channels, 3, T, Device> conv_out;

  Var<T, 4, Device, C.out_channels> operator()(const Var<T, 4, Device>& latent) {
    return conv_out(conv_norm_out(up(mid_block(conv_in(latent))), vae_epsilon));
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("conv_in", conv_in);
    v("mid_block", mid_block);
    up.visit_as("up_blocks", v);
    v("conv_norm_out", conv_norm_out);
    v("conv_out", conv_out);
  }
};

}  // namespace detail

/// Encoder and decoder. Images are [n, h, w, channels] in [-1, 1]; h and w should be multiples of `config.factor()`.
/// Weight names are those of diffusers' AutoencoderKL.
template <VaeConfig C, class T, class Device>
struct AutoencoderKL {
  static constexpr VaeConfig config = C;
  static_assert(C.levels >= 1 && C.levels <= VaeConfig::max_levels, "lpo AutoencoderKL: has 1 to 4 levels");
  using value_type = T;
  using device = Device;

  detail::VaeEncoder<C, T, Device> encoder;
  detail::VaeDecoder<C, T, Device> decoder;
  std::array<Conv2d<2 * C.latent_channels, 2 * C.latent_channels, 1, T, Device>, C.quant_conv ? 1 : 0> quant_conv;
  std::array<Conv2d<C.latent_channels, C.latent_channels, 1, T, Device>, C.post_quant_conv ? 1 : 0> post_quant_conv;

  /// Diffusion models see latents times this; it depends on the checkpoint, not on the architecture.
  float scaling_factor = 0.18215f;

  /// Posterior of the unscaled latents of an image: multiply a sample (or the mean) by `scaling_factor` for the UNet.
  LatentPosterior<T, Device> encode(const Var<T, 4, Device>& image) { return posterior_of(moments(image)); }

  /// What `encode` splits: mean and log variance side by side, [n, h / factor, w / factor, 2 * latent_channels].
  Var<T, 4, Device> moments(const Var<T, 4, Device>& image) {
    return scoped(image.tape(), [&]() -> Var<T, 4, Device> {
      auto h = encoder(image);
      for (auto& layer : quant_conv) h = layer(h);
      return h;
    });
  }
  static LatentPosterior<T, Device> posterior_of(const Var<T, 4, Device>& moments) {
    const auto half = C.latent_channels;
    return {contiguous(moments.slice(3, 0, half)),
            Var<T, 4, Device>(clamp(moments.slice(3, half, 2 * half), -30.0, 20.0))};
  }

  /// Image of unscaled latents [n, h', w', latent_channels]: divide the UNet's latents by `scaling_factor` first.
  Var<T, 4, Device, C.out_channels> decode(const Var<T, 4, Device>& latent) {
    return scoped(latent.tape(), [&] {
      auto h = latent;
      for (auto& layer : post_quant_conv) h = layer(h);
      return decoder(h);
    });
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("encoder", encoder);
    v("decoder", decoder);
    for (auto& layer : quant_conv) v("quant_conv", layer);
    for (auto& layer : post_quant_conv) v("post_quant_conv", layer);
  }
};

}  // namespace lpo::inline LPO_ABI
