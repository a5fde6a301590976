// SPDX-License-Identifier: MIT
// The blocks a UNet is made of: down (keeps its skips), middle, and up (consumes them), each with optional transformers.
#pragma once

#include <array>

#include <lpo/autograd/concat.hpp>
#include <lpo/nn/resnet_block.hpp>
#include <lpo/nn/sampling.hpp>
#include <lpo/nn/transformer.hpp>

namespace lpo::inline LPO_ABI {

/// What all blocks of one UNet share.
struct UNetBlockSpec {
  int time_width = 0;     ///< width of the time embedding
  int groups = 32;        ///< of every group norm
  int context_width = 0;  ///< of the text states
  bool linear_projection = false;
};

/// The transformers of one block: none when depth is 0.
struct TransformerSpec {
  int depth = 0;
  int heads = 1;
};

namespace detail {

/// The resnets of a block have equal types but for the first ones; this holds `Count` transformers or nothing.
template <int Channels, int Count, TransformerSpec A, UNetBlockSpec U, class T, class Device>
struct Transformers {
  using Model = Transformer2DModel<Channels, U.context_width, A.heads, A.depth, U.linear_projection, U.groups, T, Device>;
  std::array<Model, static_cast<std::size_t>(Count)> models;

  Var<T, 4, Device, Channels> operator()(int i, const Var<T, 4, Device, Channels>& x, const Var<T, 3, Device>& context) {
    return models[static_cast<std::size_t>(i)](x, context);
  }
  void visit_as(const char* name, ParameterVisitor<T, Device>& v) { v(name, models); }
};

template <int Channels, int Count, TransformerSpec A, UNetBlockSpec U, class T, class Device>
  requires(A.depth == 0)
struct Transformers<Channels, Count, A, U, T, Device> {
  Var<T, 4, Device, Channels> operator()(int, const Var<T, 4, Device, Channels>& x, const Var<T, 3, Device>&) { return x; }
  void visit_as(const char*, ParameterVisitor<T, Device>&) {}
};

/// A layer of a UNet: `run(inputs...)`, which may capture nothing but its module. Recomputed in backward when the tape
/// asks for that.
template <class Device, class Run, class... Inputs>
auto unet_layer(Tape<Device>& tape, const Run& run, const Inputs&... inputs) -> std::invoke_result_t<Run, Inputs...> {
  if (tape.recording() && tape.checkpointing()) return checkpoint(tape, run, inputs...);
  return run(inputs...);
}

}  // namespace detail

/// `Layers` x (resnet, transformer), then an optional downsampling. Each output is appended to the skips. `x` may have fewer rows
/// than time and context, as Transformer2DModel says; time's first rows are then x's.
template <int In, int Out, int Layers, bool Down, TransformerSpec A, UNetBlockSpec U, class T, class Device>
struct DownBlock2D {
  static constexpr int skips = Layers + (Down ? 1 : 0);

  ResnetBlock2D<In, Out, U.time_width, U.groups, T, Device> first;
  std::array<ResnetBlock2D<Out, Out, U.time_width, U.groups, T, Device>, static_cast<std::size_t>(Layers - 1)> rest;
  detail::Transformers<Out, Layers, A, U, T, Device> attentions;
  std::array<Downsample2D<Out, false, T, Device>, Down ? 1 : 0> downsamplers;

  Var<T, 4, Device, Out> operator()(const Var<T, 4, Device, In>& x, const Var<T, 2, Device>& time,
                                    const Var<T, 3, Device>& context, Var<T, 4, Device>* skip) {
    const auto run_first = [this](const auto& in, const auto& t, const auto& c) {
      return attentions(0, first(in, t.slice(0, 0, in.extent(0)), 1e-5f), c);
    };
    auto h = detail::unet_layer(x.tape(), run_first, x, time, context);  // [n, h, w, Out]
    *skip++ = h;
    for (int i = 1; i < Layers; ++i) {
      const auto run = [this, i](const auto& in, const auto& t, const auto& c) {
        return attentions(i, rest[static_cast<std::size_t>(i - 1)](in, t, 1e-5f), c);
      };
      h = detail::unet_layer(x.tape(), run, h, time, context);
      *skip++ = h;
    }
    if constexpr (Down) {
      h = downsamplers[0](h);  // [n, ceil(h / 2), ceil(w / 2), Out]
      *skip++ = h;
    }
    return h;
  }

  void visit(ParameterVisitor<T, Device>& v) {
    attentions.visit_as("attentions", v);
    v("resnets.0", first);
    for (std::size_t i = 0; i < rest.size(); ++i) v("resnets." + std::to_string(i + 1), rest[i]);
    v("downsamplers", downsamplers);
  }
};

/// resnet, transformer, resnet at the lowest resolution.
template <int Channels, TransformerSpec A, UNetBlockSpec U, class T, class Device>
struct MidBlock2D {
  ResnetBlock2D<Channels, Channels, U.time_width, U.groups, T, Device> before, after;
  detail::Transformers<Channels, 1, A, U, T, Device> attentions;

  Var<T, 4, Device, Channels> operator()(const Var<T, 4, Device, Channels>& x, const Var<T, 2, Device>& time,
                                         const Var<T, 3, Device>& context) {
    const auto run = [this](const auto& in, const auto& t, const auto& c) {
      return after(attentions(0, before(in, t, 1e-5f), c), t, 1e-5f);
    };
    return detail::unet_layer(x.tape(), run, x, time, context);
  }

  void visit(ParameterVisitor<T, Device>& v) {
    attentions.visit_as("attentions", v);
    v("resnets.0", before);
    v("resnets.1", after);
  }
};

/// `Layers` + 1 x (resnet of [x, skip], transformer), then an optional upsampling. `Prev` channels come in, `Skip` is the
/// width of the last (outermost) skip; the others are `Out` wide.
template <int Prev, int Out, int Skip, int Layers, bool Up, TransformerSpec A, UNetBlockSpec U, class T, class Device>
struct UpBlock2D {
  static constexpr int count = Layers + 1;
  static_assert(Layers >= 1, "lpo UpBlock2D: needs at least one layer");

  ResnetBlock2D<Prev + Out, Out, U.time_width, U.groups, T, Device> first;
  std::array<ResnetBlock2D<2 * Out, Out, U.time_width, U.groups, T, Device>, static_cast<std::size_t>(Layers - 1)> middle;
  ResnetBlock2D<Out + Skip, Out, U.time_width, U.groups, T, Device> last;
  detail::Transformers<Out, count, A, U, T, Device> attentions;
  std::array<Upsample2D<Out, T, Device>, Up ? 1 : 0> upsamplers;

  /// `skip` points behind the skips not consumed yet; the block takes `count` of them from the end.
  Var<T, 4, Device, Out> operator()(const Var<T, 4, Device, Prev>& x, const Var<T, 2, Device>& time,
                                    const Var<T, 3, Device>& context, Var<T, 4, Device>*& skip) {
    const auto layer = [&](int i, auto& resnet, const auto& h) {
      const auto run = [this, i, &resnet](const auto& in, const auto& joined, const auto& t, const auto& c) {
        return attentions(i, resnet(concat_channels(in, joined), t, 1e-5f), c);
      };
      const Var<T, 4, Device> input = h;
      --skip;
      return scoped(x.tape(), [&] { return detail::unet_layer(x.tape(), run, input, *skip, time, context); });
    };
    auto h = layer(0, first, x);
    for (auto& resnet : middle) h = layer(static_cast<int>(&resnet - middle.data()) + 1, resnet, h);
    h = layer(Layers, last, h);
    if constexpr (Up) h = upsamplers[0](h, skip[-1].extent(1), skip[-1].extent(2));
    return h;
  }

  void visit(ParameterVisitor<T, Device>& v) {
    attentions.visit_as("attentions", v);
    v("resnets.0", first);
    for (std::size_t i = 0; i < middle.size(); ++i) v("resnets." + std::to_string(i + 1), middle[i]);
    v("resnets." + std::to_string(Layers), last);
    v("upsamplers", upsamplers);
  }
};

}  // namespace lpo::inline LPO_ABI
