// SPDX-License-Identifier: MIT
// Linear: y = x W^T + b over the innermost axis, with static widths; LoraLinear adds a low-rank adapter to it.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <type_traits>
#include <vector>

#include <lpo/autograd/adapted_linear.hpp>
#include <lpo/autograd/projections.hpp>
#include <lpo/nn/parameter.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// PyTorch's default for Linear and Conv2d: weights and biases uniform in +-1 / sqrt(fan in).
inline Initialization fan_in_uniform(index_t fan_in) {
  return {Initialization::Kind::uniform, 1.0f / std::sqrt(static_cast<float>(fan_in))};
}

/// A Var as rows x channels. Its outer axes must merge, which every dense Var and every batch slice does.
template <class T, int Rank, class Device>
Var<T, 2, Device> as_rows(const Var<T, Rank, Device>& x) {
  const index_t c = x.extent(Rank - 1);
  return x.reshape(Extents<2>{c == 0 ? 0 : x.size() / c, c});
}
template <class T, class Device>
Var<T, 2, Device> as_rows(const Var<T, 2, Device>& x) {
  return x;
}

/// A Var that may be absent as rows x channels.
template <class T, int Rank, class Device>
Var<T, 2, Device> addend_rows(const Var<T, Rank, Device>& addend) {
  return addend.present() ? as_rows(addend) : Var<T, 2, Device>();
}

/// rows x channels back under the outer axes of `like`.
template <int Out, class T, int Rank, class Device, int C>
Var<T, Rank, Device, Out> with_rows_of(const Var<T, Rank, Device, C>& like, const Var<T, 2, Device>& rows) {
  auto extents = like.extents();
  extents[Rank - 1] = rows.extent(1);
  return rows.reshape(extents).template with_channels<Out>();
}

template <int Expected, int Given>
constexpr void expect_channels() {
  static_assert(Given == Expected || Given == dynamic,
                "lpo Linear: input width differs from the layer's; project it or change the layer's In");
}

}  // namespace detail

/// x [..., In] -> [..., Out], added to `addend` [..., Out] if there is one. Keys: weight [Out, In], bias [Out].
template <int In, int Out, class T, class Device, bool Bias = true>
struct Linear {
  Parameter<T, 2, Device> weight{Extents<2>{Out, In}, detail::fan_in_uniform(In)};
  Parameter<T, 1, Device> bias{Extents<1>{Bias ? Out : 0}, detail::fan_in_uniform(In)};

  template <int Rank, int C>
  Var<T, Rank, Device, Out> operator()(const Var<T, Rank, Device, C>& x,
                                       const std::type_identity_t<Var<T, Rank, Device>>& addend = {}) {
    detail::expect_channels<In, C>();
    auto& tape = x.tape();
    Var<T, 1, Device> b;
    if constexpr (Bias) b = bias.on(tape);
    const Var<T, Rank, Device> plain = x;
    return detail::with_rows_of<Out>(x,
                                     linear(detail::as_rows(plain), weight.on(tape), b, detail::addend_rows(addend)));
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v("weight", weight);
    v("bias", bias);
  }
};

/// Low-rank adapter of one projection: delta(x) = (alpha / rank) * B(A(x)), arXiv 2106.09685. Absent while rank is 0.
/// Keys, as diffusers and peft write them: lora_A.weight [rank, in], lora_B.weight [out, rank].
template <class T, class Device>
struct LoraAdapter {
  Parameter<T, 2, Device> down{Extents<2>{0, 0}, {}};
  Parameter<T, 2, Device> up{Extents<2>{0, 0}, {}};
  index_t in = 0, out = 0, rank = 0;
  float scale = 1.0f;

  LoraAdapter(index_t in_width, index_t out_width) : in(in_width), out(out_width) {}

  /// A ~ N(0, (1 / rank)^2), B = 0, as peft's Gaussian initialization: the adapted projection starts equal to the plain
  /// one.
  void enable(index_t new_rank, float alpha) {
    if (new_rank < 1 || new_rank > std::min(in, out))
      throw ValueError(message("[LoRA] rank ", new_rank, " must be 1 to ", std::min(in, out), " for a ", in, " -> ", out, " projection"));
    rank = new_rank;
    scale = alpha / static_cast<float>(new_rank);
    down.resize(Extents<2>{rank, in}, {Initialization::Kind::normal, 1.0f / static_cast<float>(rank)});
    up.resize(Extents<2>{out, rank}, {Initialization::Kind::zeros, 0.0f});
  }
};

/// Linear that can carry a LoRA; the adapter contributes while the tape's adapters are on.
template <int In, int Out, class T, class Device, bool Bias>
struct LoraLinear {
  Parameter<T, 2, Device> weight{Extents<2>{Out, In}, detail::fan_in_uniform(In)};
  Parameter<T, 1, Device> bias{Extents<1>{Bias ? Out : 0}, detail::fan_in_uniform(In)};
  LoraAdapter<T, Device> lora{In, Out};

  template <int Rank, int C>
  Var<T, Rank, Device, Out> operator()(const Var<T, Rank, Device, C>& x,
                                       const std::type_identity_t<Var<T, Rank, Device>>& addend = {}) {
    detail::expect_channels<In, C>();
    auto& tape = x.tape();
    Var<T, 1, Device> b;
    if constexpr (Bias) b = bias.on(tape);
    const Var<T, Rank, Device> plain = x;
    const auto onto = detail::addend_rows(addend);
    const auto rows = detail::as_rows(plain);
    const auto y = lora.rank > 0 && tape.adapters()
                       ? adapted_linear(rows, weight.on(tape), b, lora.down.on(tape), lora.up.on(tape),
                                        static_cast<double>(lora.scale), onto)
                       : linear(rows, weight.on(tape), b, onto);
    return detail::with_rows_of<Out>(x, y);
  }

  /// What projections() takes of it; without a bias.
  ProjectionWeights<T, Device> weights_on(Tape<Device>& tape) {
    static_assert(!Bias, "lpo LoraLinear: projections with a bias run by themselves");
    ProjectionWeights<T, Device> weights{weight.on(tape), {}, {}, static_cast<double>(lora.scale)};
    if (lora.rank > 0 && tape.adapters()) weights.down = lora.down.on(tape), weights.up = lora.up.on(tape);
    return weights;
  }

  void visit(ParameterVisitor<T, Device>& v) {
    v.enter_adapter(lora);
    v("weight", weight);
    v("bias", bias);
    v("lora_A.weight", lora.down);
    v("lora_B.weight", lora.up);
  }
};

/// Turns on LoRA for the projections of a model whose names satisfy `adapts`, by default all (of a UNet: the attention
/// projections to_q, to_k, to_v, to_out.0). Call before the model is added to its ParameterStore, which lists the weights that
/// there are then. Returns how many projections were adapted.
template <class T, class Device, class Module>
int enable_lora(Module& module, index_t rank, float alpha, const std::function<bool(const std::string&)>& adapts = {}) {
  struct Visitor : ParameterVisitor<T, Device> {
    index_t rank;
    float alpha;
    const std::function<bool(const std::string&)>& adapts;
    int count = 0;
    Visitor(index_t r, float a, const std::function<bool(const std::string&)>& f) : rank(r), alpha(a), adapts(f) {}
    void parameter(const std::string&, AnyParameter<T, Device>&) override {}
    void adapter(const std::string& name, LoraAdapter<T, Device>& lora) override {
      if (adapts && !adapts(name)) return;
      lora.enable(rank, alpha);
      ++count;
    }
  } visitor(rank, alpha, adapts);
  visitor.model("", module);
  return visitor.count;
}

/// Whether a module's name is one of the `targets` or ends in ".target", as peft matches its target_modules.
inline bool is_lora_target(const std::string& name, const std::vector<std::string>& targets) {
  return std::any_of(targets.begin(), targets.end(), [&](const std::string& target) {
    return name == target ||
           (name.size() > target.size() && name.ends_with(target) && name[name.size() - target.size() - 1] == '.');
  });
}

/// True for the names of LoRA weights.
inline bool is_lora_name(const std::string& name) {
  return name.find(".lora_A.") != std::string::npos || name.find(".lora_B.") != std::string::npos;
}

}  // namespace lpo::inline LPO_ABI
