// SPDX-License-Identifier: MIT
// CLIPVisionModel: CLIP's vision tower with projection as a type; normalised pictures to one embedding each.
#pragma once

#include <algorithm>
#include <array>
#include <type_traits>
#include <vector>

#include <lpo/autograd/checkpoint.hpp>
#include <lpo/autograd/concat.hpp>
#include <lpo/autograd/conv2d.hpp>
#include <lpo/model/clip_layers.hpp>
#include <lpo/model/clip_vision_config.hpp>
#include <lpo/nn/normalization.hpp>
#include <lpo/nn/resnet_block.hpp>

namespace lpo::inline LPO_ABI {

/// n pictures of p patches; position 0 is the class token.
template <class T, class Device>
struct ClipVisionOutput {
  Var<T, 3, Device> last_hidden_state;  ///< [n, 1 + p, width], not normalised
  Var<T, 2, Device> pooled;             ///< the class token after the final norm [n, width]
  Var<T, 2, Device> image_embedding;    ///< projected pooled [n, projection]
};

namespace detail {

/// Part `i` of a modulation [n, parts * width] as [n, 1, width].
template <class T, class Device>
Var<T, 3, Device> modulation_part(const Var<T, 2, Device>& all, int i, int width) {
  return contiguous(all.slice(1, i * width, (i + 1) * width)).reshape(Extents<3>{all.extent(0), 1, width});
}

/// Pre-norm layer: x += attention(norm1 x); x += mlp(norm2 x). Modulated by time, each norm's result is scaled by 1 + a
/// and shifted by b, and what is added is multiplied by a gate; all from one projection, whose order is shift, scale,
/// gate of the attention, then of the mlp. It starts as the plain layer: weights and biases 0, gates 1.
template <ClipVisionConfig C, class T, class Device>
struct ClipVisionLayer {
  using Modulation = Linear<C.width, 6 * C.width, T, Device>;
  ClipAttention<C.width, C.heads, false, T, Device> self_attn;
  LayerNorm<C.width, T, Device> layer_norm1, layer_norm2;
  ClipMlp<C.width, C.hidden, C.quick_gelu, T, Device> mlp;
  [[no_unique_address]] std::conditional_t<C.time_modulated, Modulation, Nothing> modulation;

  /// `time` is silu(time embedding) [n, width], absent without modulation.
  Var<T, 3, Device, C.width> operator()(const Var<T, 3, Device, C.width>& input, const Var<T, 2, Device>& time) {
    if constexpr (C.time_modulated) {
      const Var<T, 2, Device> all = modulation(time);
      const auto part = [&](int i) { return modulation_part(all, i, C.width); };
      const Var<T, 3, Device, C.width> a = layer_norm1(input) * (1.0 + part(1)) + part(0);
      const Var<T, 3, Device, C.width> x = input + self_attn(a) * part(2);
      const Var<T, 3, Device, C.width> b = layer_norm2(x) * (1.0 + part(4)) + part(3);
      return Var<T, 3, Device, C.width>(x + mlp(b) * part(5));
    } else {
      const Var x = input + self_attn(layer_norm1(input));
      return Var<T, 3, Device, C.width>(x + mlp(layer_norm2(x)));
    }
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("self_attn", self_attn);
    v("layer_norm1", layer_norm1);
    v("mlp", mlp);
    v("layer_norm2", layer_norm2);
    if constexpr (C.time_modulated) v("adaLN_modulation.1", modulation);
  }
};

/// The patches of pictures, a convolution whose stride is its size, and the class token before them.
template <ClipVisionConfig C, class T, class Device>
struct ClipVisionEmbeddings {
  static constexpr Initialization small{Initialization::Kind::normal, 0.02f};
  Parameter<T, 1, Device> class_embedding{Extents<1>{C.width}, small};
  Parameter<T, 4, Device> patch_embedding{Extents<4>{C.width, C.patch, C.patch, C.channels}, small,
                                          WeightLayout::convolution};
  Parameter<T, 2, Device> position_embedding{Extents<2>{1 + C.patches(), C.width}, small};

  Var<T, 3, Device, C.width> operator()(const Var<T, 4, Device>& images) {
    auto& tape = images.tape();
    const index_t n = images.extent(0);
    const auto patches = conv2d(images, patch_embedding.on(tape), {}, {C.patch, 0, 0, 0, 0});  // [n, rows, columns, w]
    const auto first = repeat_batch(class_embedding.on(tape).reshape(Extents<2>{1, C.width}), n);
    const auto tokens = concat_channels(first, patches.reshape(Extents<2>{n, C.patches() * C.width}))
                            .reshape(Extents<3>{n, 1 + C.patches(), C.width});
    const auto places = position_embedding.on(tape).reshape(Extents<3>{1, 1 + C.patches(), C.width});
    return Var<T, 3, Device, C.width>(tokens + places);
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("class_embedding", class_embedding);
    v("patch_embedding.weight", patch_embedding);
    v("position_embedding.weight", position_embedding);
  }
};

}  // namespace detail

/// Weight names are those of transformers' CLIPVisionModelWithProjection; those of the modulation are of SPO's
/// preference model.
template <ClipVisionConfig C, class T, class Device>
struct CLIPVisionModel {
  static constexpr ClipVisionConfig config = C;
  static_assert(C.layers >= 1 && C.image_size % C.patch == 0,
                "lpo CLIPVisionModel: needs at least one layer, and pictures of whole patches");
  using value_type = T;
  using device = Device;
  using Modulation = Linear<C.width, 2 * C.width, T, Device>;

  detail::ClipVisionEmbeddings<C, T, Device> embeddings;
  LayerNorm<C.width, T, Device> pre_layernorm, post_layernorm;
  std::array<detail::ClipVisionLayer<C, T, Device>, static_cast<std::size_t>(C.layers)> layers;
  [[no_unique_address]] std::conditional_t<C.time_modulated, Modulation, detail::Nothing> modulation;
  Linear<C.width, C.projection, T, Device, false> visual_projection;

  CLIPVisionModel() {
    if constexpr (C.time_modulated) {
      start_at_zero(modulation);
      for (auto& layer : layers) start_at_zero(layer.modulation);
    }
  }

  /// `images` [n, image_size, image_size, channels], normalised (clip_pixels). `time`: a time embedding [n, width]
  /// where the config has modulation, else absent.
  ClipVisionOutput<T, Device> operator()(const Var<T, 4, Device>& images, const Var<T, 2, Device>& time = {}) {
    const index_t n = images.extent(0);
    if (images.extent(1) != C.image_size || images.extent(2) != C.image_size || images.extent(3) != C.channels)
      throw ShapeError(message("[CLIPVisionModel] pictures ", to_string(images.extents()), ", expected ", C.image_size,
                               " x ", C.image_size, " x ", C.channels, "; prepare them with clip_pixels"));
    auto& tape = images.tape();
    Var<T, 2, Device> active;
    if constexpr (C.time_modulated) {
      if (!time.present() || time.extent(0) != n)
        throw ShapeError(message("[CLIPVisionModel] this tower needs a time embedding for each of ", n, " pictures"));
      active = Var<T, 2, Device>(silu(time));
    }
    ClipVisionOutput<T, Device> out;
    auto h = scoped(tape, [&] { return pre_layernorm(embeddings(images)); });  // [n, 1 + p, width]
    for (auto& layer : layers) h = scoped(tape, [&] { return layer(h, active); });
    out.last_hidden_state = h;
    const Var<T, 3, Device> all = h;
    const auto token = contiguous(all.reshape(Extents<2>{n, (1 + C.patches()) * C.width}).slice(1, 0, C.width));
    out.pooled = post_layernorm(token);
    if constexpr (C.time_modulated) {
      const Var<T, 2, Device> both = modulation(active);
      const Var<T, 2, Device> moved =
          out.pooled * (1.0 + both.slice(1, C.width, 2 * C.width)) + both.slice(1, 0, C.width);
      out.pooled = moved;
    }
    out.image_embedding = visual_projection(out.pooled);
    return out;
  }

  /// After initialising weights at random: the gates of the modulation are open, so that a tower starts as the plain
  /// one.
  void open_gates() requires(C.time_modulated) {
    for (auto& layer : layers) {
      std::vector<T> bias(static_cast<std::size_t>(6 * C.width), T(0.0f));
      for (const int gate : {2, 5}) std::fill_n(bias.begin() + gate * C.width, C.width, T(1.0f));
      DeviceMemory<Device>::copy_from_host(layer.modulation.bias.data(), bias.data(), bias.size() * sizeof(T));
    }
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("vision_model.embeddings", embeddings);
    v("vision_model.pre_layrnorm", pre_layernorm);  // transformers' spelling
    v("vision_model.encoder.layers", layers);
    v("vision_model.post_layernorm", post_layernorm);
    if constexpr (C.time_modulated) v("vision_model.adaLN_modulation.1", modulation);
    v("visual_projection", visual_projection);
  }

 private:
  template <class Layer>
  static void start_at_zero(Layer& layer) {
    layer.weight.initialization = layer.bias.initialization = {Initialization::Kind::zeros, 0.0f};
  }
};

}  // namespace lpo::inline LPO_ABI
