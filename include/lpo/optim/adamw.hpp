// SPDX-License-Identifier: MIT
// AdamW over flat buffers: the moments of all parameters lie in one buffer, each span of parameters is one kernel call.
#pragma once

#include <cmath>
#include <vector>

#include <lpo/kernel/adamw.hpp>
#include <lpo/tensor/tensor.hpp>

namespace lpo::inline LPO_ABI {

/// `count` consecutive parameters and their gradients, on the optimiser's device.
template <class T>
struct ParameterSpan {
  T* parameter = nullptr;
  const T* gradient = nullptr;
  index_t count = 0;
};

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 1e-4;
};

/// Adam with decoupled weight decay (arXiv 1711.05101). Moments are float (double for double parameters) and start at
/// 0. To resume, restore `first_moment()`, `second_moment()` and `set_step_count()`.
template <class T, class Device>
class AdamW {
 public:
  using Moment = compute_t<T>;

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
      kernel::AdamW<Device>::step(context_, params, span.count, span.parameter, span.gradient, first_.data() + begin,
                                  second_.data() + begin);
      begin += span.count;
    }
  }

  const AdamWOptions& options() const { return options_; }
  const std::vector<ParameterSpan<T>>& spans() const { return spans_; }

  /// Number of updates done; part of the state, because the bias corrections depend on it.
  index_t step_count() const { return step_count_; }
  void set_step_count(index_t count) { step_count_ = count; }

  /// Moments of all spans, in their order, [total].
  View<Moment, 1, Device> first_moment() { return first_.view(); }
  View<Moment, 1, Device> second_moment() { return second_.view(); }

 private:
  Context<Device>& context_;
  std::vector<ParameterSpan<T>> spans_;
  AdamWOptions options_;
  Tensor<Moment, 1, Device> first_, second_;
  index_t step_count_ = 0;
};

}  // namespace lpo::inline LPO_ABI
