// SPDX-License-Identifier: MIT
// AdamW over flat buffers: the moments of all parameters lie in one buffer, each span of parameters is one kernel call.
// 16-bit parameters have float masters beside the moments.
#pragma once

#include <cmath>
#include <utility>
#include <vector>

#include <lpo/base/scalar.hpp>
#include <lpo/kernel/adamw.hpp>
#include <lpo/tensor/operators.hpp>
#include <lpo/tensor/tensor.hpp>

namespace lpo::inline LPO_ABI {

/// `count` consecutive parameters and their gradients, on the optimiser's device.
template <class T>
struct ParameterSpan {
  T* parameter = nullptr;
  const T* gradient = nullptr;
  index_t count = 0;
};

// Named here for nvcc, which spells a type as it was written first; see backend/cuda/named_types.cuh.
static_assert(sizeof(ParameterSpan<bfloat16>) + sizeof(ParameterSpan<half>) > 0);

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 1e-4;
};

/// Adam with decoupled weight decay (arXiv 1711.05101). Moments are float (double for double parameters) and start at
/// 0. To resume, restore `first_moment()`, `second_moment()` and `set_step_count()`.
///
/// An update is often smaller than the spacing of 16-bit numbers. So 16-bit parameters have float masters: copies of
/// what the parameters are when the optimiser is made, which take the updates; the parameters are the masters, rounded.
/// To resume, restore `masters()` too, then call `round_masters()`.
template <class T, class Device>
class AdamW {
 public:
  using Moment = compute_t<T>;
  static constexpr bool has_masters = !std::is_same_v<T, Moment>;

  AdamW(Context<Device>& context, std::vector<ParameterSpan<T>> spans, const AdamWOptions& options = {})
      : context_(context), spans_(std::move(spans)), options_(options) {
    const auto valid = [](double beta) { return beta >= 0 && beta < 1; };
    if (!valid(options.beta1) || !valid(options.beta2) || !(options.epsilon > 0) || !(options.weight_decay >= 0))
      throw ValueError(message("[AdamW] betas ", options.beta1, ", ", options.beta2, ", epsilon ", options.epsilon,
                               ", weight_decay ", options.weight_decay,
                               "; expected 0 <= beta < 1, epsilon > 0, decay >= 0"));
    index_t total = 0;
    for (const auto& span : spans_) total += span.count;
    first_ = Tensor<Moment, 1, Device>(Extents<1>{total});
    second_ = Tensor<Moment, 1, Device>(Extents<1>{total});
    context.fill_zero(first_.data(), static_cast<std::size_t>(total) * sizeof(Moment));
    context.fill_zero(second_.data(), static_cast<std::size_t>(total) * sizeof(Moment));
    if constexpr (has_masters) {
      masters_ = Tensor<Moment, 1, Device>(Extents<1>{total});
      each_master([&](const View<Moment, 1, Device>& master, const View<T, 1, Device>& parameter) {
        evaluate(&context_, master, parameter);
      });
    }
  }

  /// One update. Gradients are multiplied by `gradient_scale` (clipping, averaging) first.
  void step(double learning_rate, double gradient_scale = 1.0) {
    ++step_count_;
    kernel::AdamWParams params;
    params.learning_rate = static_cast<float>(learning_rate);
    params.beta1 = static_cast<float>(options_.beta1);
    params.beta2 = static_cast<float>(options_.beta2);
    params.epsilon = static_cast<float>(options_.epsilon);
    params.weight_decay = static_cast<float>(options_.weight_decay);
    params.bias1 = static_cast<float>(1 - std::pow(options_.beta1, static_cast<double>(step_count_)));
    params.bias2 = static_cast<float>(1 - std::pow(options_.beta2, static_cast<double>(step_count_)));
    params.gradient_scale = static_cast<float>(gradient_scale);
    index_t begin = 0;
    for (const auto& span : spans_) {
      kernel::AdamW<Device>::step(context_, params, span.count, updated(span, begin), span.gradient,
                                  first_.data() + begin, second_.data() + begin);
      begin += span.count;
    }
    if constexpr (has_masters) round_masters();
  }

  const AdamWOptions& options() const { return options_; }
  const std::vector<ParameterSpan<T>>& spans() const { return spans_; }

  /// Number of updates done; part of the state, because the bias corrections depend on it.
  index_t step_count() const { return step_count_; }
  void set_step_count(index_t count) { step_count_ = count; }

  /// Moments of all spans, in their order, [total].
  View<Moment, 1, Device> first_moment() { return first_.view(); }
  View<Moment, 1, Device> second_moment() { return second_.view(); }

  /// What the updates add up in, all spans in their order, [total].
  View<Moment, 1, Device> masters() requires has_masters { return masters_.view(); }
  /// Writes the masters into the parameters.
  void round_masters() requires has_masters {
    each_master([&](const View<Moment, 1, Device>& master, const View<T, 1, Device>& parameter) {
      evaluate(&context_, parameter, master);
    });
  }

 private:
  /// What an update of the span that begins at `begin` writes.
  Moment* updated(const ParameterSpan<T>& span, index_t begin) {
    if constexpr (has_masters)
      return masters_.data() + begin;
    else
      return span.parameter;
  }

  template <class Visit>
  void each_master(Visit visit) {
    index_t begin = 0;
    for (const auto& span : spans_) {
      const Extents<1> extents{span.count};
      visit(View<Moment, 1, Device>(masters_.data() + begin, extents), View<T, 1, Device>(span.parameter, extents));
      begin += span.count;
    }
  }

  Context<Device>& context_;
  std::vector<ParameterSpan<T>> spans_;
  AdamWOptions options_;
  Tensor<Moment, 1, Device> first_, second_, masters_;
  index_t step_count_ = 0;
};

}  // namespace lpo::inline LPO_ABI
