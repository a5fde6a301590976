// SPDX-License-Identifier: MIT
// The spatial transformer of a UNet: self-attention, cross-attention and a gated feed-forward over image positions.
#pragma once

#include <array>

#include <lpo/autograd/checkpoint.hpp>
#include <lpo/autograd/concat.hpp>
#include <lpo/autograd/geglu.hpp>
#include <lpo/nn/attention.hpp>
#include <lpo/nn/conv2d.hpp>
#include <lpo/nn/normalization.hpp>

namespace lpo::inline LPO_ABI {

/// GEGLU feed-forward (arXiv 2002.05202): (value, gate) = proj(x); residual + out(value * gelu(gate)). Hidden width 4 *
/// Width.
template <int Width, class T, class Device>
struct GegluFeedForward {
  static constexpr int hidden = 4 * Width;
  Linear<Width, 2 * hidden, T, Device> project;
  Linear<hidden, Width, T, Device> out;

  template <int C>
  Var<T, 3, Device, Width> operator()(const Var<T, 3, Device, C>& x, const Var<T, 3, Device, Width>& residual) {
    detail::expect_channels<Width, C>();
    const Var<T, 3, Device> plain = x;
    const auto gated = geglu(detail::as_rows(plain), project.weight.on(x.tape()), project.bias.on(x.tape()));
    return out(detail::with_rows_of<hidden>(plain, gated), residual);  // [n, s, Width]
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("net.0.proj", project);
    v("net.2", out);
  }
};

/// Pre-norm block: x += attn1(norm1 x); x += attn2(norm2 x, context); x += ff(norm3 x). Key names as in diffusers.
/// Where the context has more rows, x is repeated when it meets it.
template <int Width, int ContextWidth, int Heads, class T, class Device>
struct BasicTransformerBlock {
  LayerNorm<Width, T, Device> norm1, norm2, norm3;
  Attention<Width, Width, Heads, T, Device> attn1;
  Attention<Width, ContextWidth, Heads, T, Device> attn2;
  GegluFeedForward<Width, T, Device> ff;

  template <int CC>
  Var<T, 3, Device, Width> operator()(const Var<T, 3, Device, Width>& input, const Var<T, 3, Device, CC>& context) {
    const auto normed = norm1(input);
    const auto x = repeat_batch(attn1(normed, normed, input), context.extent(0));
    const auto y = attn2(norm2(x), context, x);
    return ff(norm3(y), y);
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("attn1", attn1);
    v("norm1", norm1);
    v("attn2", attn2);
    v("norm2", norm2);
    v("ff", ff);
    v("norm3", norm3);
  }
};

/// x [n, h, w, Channels] + proj_out(blocks(proj_in(norm x))). `LinearProjection` tells how checkpoints store proj_in
/// and proj_out: matrices (SD2, SDXL) or 1x1 convolutions (SD1); the arithmetic is the same. With several texts for an
/// x (rows of context that are a multiple of x's) the result has a row per text, and what comes before the text is
/// computed once.
template <int Channels, int ContextWidth, int Heads, int Depth, bool LinearProjection, int Groups, class T, class Device>
struct Transformer2DModel {
  using Projection = std::conditional_t<LinearProjection, Linear<Channels, Channels, T, Device>,
                                        Conv2d<Channels, Channels, 1, T, Device>>;
  GroupNorm<Channels, Groups, T, Device> norm;
  Projection proj_in, proj_out;
  std::array<BasicTransformerBlock<Channels, ContextWidth, Heads, T, Device>, static_cast<std::size_t>(Depth)> transformer_blocks;

  template <int CC>
  Var<T, 4, Device, Channels> operator()(const Var<T, 4, Device, Channels>& x, const Var<T, 3, Device, CC>& context) {
    return scoped(x.tape(), [&] {
      const auto projected = proj_in(norm(x, 1e-6f));  // [n, h, w, Channels]
      auto tokens = projected.reshape(Extents<3>{x.extent(0), x.extent(1) * x.extent(2), Channels}).template with_channels<Channels>();
      for (auto& block : transformer_blocks) tokens = scoped(x.tape(), [&] { return block(tokens, context); });
      const auto residual = repeat_batch(x, context.extent(0));
      return proj_out(tokens.reshape(residual.extents()).template with_channels<Channels>(), residual);
    });
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("norm", norm);
    v("proj_in", proj_in);
    v("transformer_blocks", transformer_blocks);
    v("proj_out", proj_out);
  }
};

}  // namespace lpo::inline LPO_ABI
