// SPDX-License-Identifier: MIT
// CLIPTextModel: CLIP's text encoder as a type; token ids to hidden states and one pooled embedding per prompt.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <lpo/autograd/checkpoint.hpp>
#include <lpo/autograd/embedding.hpp>
#include <lpo/model/clip_layers.hpp>
#include <lpo/model/clip_text_config.hpp>
#include <lpo/nn/normalization.hpp>

namespace lpo::inline LPO_ABI {

/// What diffusion models and reward models take from a text encoder; n prompts of s tokens.
template <class T, class Device>
struct ClipTextOutput {
  Var<T, 3, Device> last_hidden_state;  ///< after the final norm [n, s, width]: the context of SD1.5 and SD2.1
  Var<T, 3, Device> penultimate;        ///< before the last layer, not normalised [n, s, width]: the context of SDXL
  Var<T, 2, Device> pooled;             ///< last_hidden_state at the end token [n, width]
  Var<T, 2, Device> text_embedding;     ///< projected pooled [n, projection]; absent without projection
};

namespace detail {

/// Pre-norm layer: x += attention(norm1 x); x += mlp(norm2 x).
template <ClipTextConfig C, class T, class Device>
struct ClipLayer {
  ClipAttention<C.width, C.heads, true, T, Device> self_attn;
  LayerNorm<C.width, T, Device> layer_norm1, layer_norm2;
  ClipMlp<C.width, C.hidden, C.quick_gelu, T, Device> mlp;

  Var<T, 3, Device, C.width> operator()(const Var<T, 3, Device, C.width>& input) {
    const Var x = input + self_attn(layer_norm1(input));
    return Var<T, 3, Device, C.width>(x + mlp(layer_norm2(x)));
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("self_attn", self_attn);
    v("layer_norm1", layer_norm1);
    v("mlp", mlp);
    v("layer_norm2", layer_norm2);
  }
};

/// Starts like OpenCLIP: tokens N(0, 0.02^2), positions N(0, 0.01^2).
template <ClipTextConfig C, class T, class Device>
struct ClipEmbeddings {
  Parameter<T, 2, Device> token_embedding{Extents<2>{C.vocabulary, C.width}, {Initialization::Kind::normal, 0.02f}};
  Parameter<T, 2, Device> position_embedding{Extents<2>{C.positions, C.width}, {Initialization::Kind::normal, 0.01f}};

  Var<T, 3, Device, C.width> operator()(Tape<Device>& tape, std::span<const std::int32_t> ids, index_t rows) {
    const index_t tokens = static_cast<index_t>(ids.size()) / rows;
    const auto words = embedding(token_embedding.on(tape), ids).reshape(Extents<3>{rows, tokens, C.width});
    const auto places = position_embedding.on(tape).slice(0, 0, tokens).reshape(Extents<3>{1, tokens, C.width});
    return Var<T, 3, Device, C.width>(words + places);
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("token_embedding.weight", token_embedding);
    v("position_embedding.weight", position_embedding);
  }
};

}  // namespace detail

/// Weight names are those of transformers' CLIPTextModel and CLIPTextModelWithProjection. Every position is attended by
/// the later ones, padding too: there is no mask besides the causal one.
template <ClipTextConfig C, class T, class Device>
struct CLIPTextModel {
  static constexpr ClipTextConfig config = C;
  static_assert(C.layers >= 1, "lpo CLIPTextModel: needs at least one layer");
  using value_type = T;
  using device = Device;

  detail::ClipEmbeddings<C, T, Device> embeddings;
  std::array<detail::ClipLayer<C, T, Device>, static_cast<std::size_t>(C.layers)> layers;
  LayerNorm<C.width, T, Device> final_layer_norm;
  std::array<Linear<C.width, (C.projection > 0 ? C.projection : 1), T, Device, false>, (C.projection > 0) ? 1 : 0>
      text_projection;

  /// Pooling takes the first position of this id, and position 0 of prompts without it; -1 means the largest id of the
  /// prompt, which is CLIP's end token (eos_token_id 2 in a config means the same).
  std::int32_t end_token = -1;

  /// Token ids of `rows` prompts of equal length, one after the other; at most `config.positions` each.
  ClipTextOutput<T, Device> operator()(Tape<Device>& tape, std::span<const std::int32_t> ids, index_t rows) {
    const index_t count = static_cast<index_t>(ids.size()), tokens = rows > 0 ? count / rows : 0;
    if (rows <= 0 || tokens <= 0 || tokens * rows != count)
      throw ShapeError(message("[CLIPTextModel] ", count, " token ids cannot be split into ", rows, " prompts"));
    if (tokens > C.positions)
      throw ShapeError(message("[CLIPTextModel] prompts of ", tokens, " tokens, the model has ", C.positions,
                               " positions; truncate them"));
    ClipTextOutput<T, Device> out;
    auto h = scoped(tape, [&] { return embeddings(tape, ids, rows); });  // [n, s, width]
    for (auto& layer : layers) {
      out.penultimate = h;
      h = scoped(tape, [&] { return layer(h); });
    }
    out.last_hidden_state = final_layer_norm(h);
    const auto ends = end_positions(ids, rows);
    out.pooled = embedding(out.last_hidden_state.reshape(Extents<2>{rows * tokens, C.width}),
                           std::span<const std::int32_t>(ends));
    for (auto& project : text_projection) out.text_embedding = project(out.pooled);
    return out;
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("text_model.embeddings", embeddings);
    v("text_model.encoder.layers", layers);
    v("text_model.final_layer_norm", final_layer_norm);
    for (auto& project : text_projection) v("text_projection", project);
  }

 private:
  /// Row index among all positions where each prompt is pooled.
  std::vector<std::int32_t> end_positions(std::span<const std::int32_t> ids, index_t rows) const {
    const auto tokens = static_cast<std::ptrdiff_t>(ids.size()) / rows;
    std::vector<std::int32_t> ends;
    for (std::ptrdiff_t row = 0; row < rows; ++row) {
      const auto first = ids.begin() + row * tokens, last = first + tokens;
      const auto found = end_token < 0 ? std::max_element(first, last) : std::find(first, last, end_token);
      ends.push_back(static_cast<std::int32_t>(row * tokens + (found == last ? 0 : found - first)));
    }
    return ends;
  }
};

}  // namespace lpo::inline LPO_ABI
