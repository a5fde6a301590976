// SPDX-License-Identifier: MIT
// Exponential moving average of parameters.
#pragma once

#include <algorithm>
#include <type_traits>
#include <vector>

#include <lpo/optim/adamw.hpp>
#include <lpo/tensor/operators.hpp>

namespace lpo::inline LPO_ABI {

/// average = decay * average + (1 - decay) * parameter after each optimiser step. With `warm_up` the decay of update n
/// is at most (1 + n) / (10 + n), so that early averages forget the initial weights. Kept in float (double for double).
template <class T, class Device>
class Ema {
 public:
  using Number = compute_t<T>;

  Ema(Context<Device>& context, std::vector<ParameterSpan<T>> spans, double decay, bool warm_up = false)
      : context_(context), spans_(std::move(spans)), decay_(decay), warm_up_(warm_up) {
    if (!(decay >= 0 && decay < 1)) throw ValueError(message("[Ema] decay is ", decay, ", expected 0 <= decay < 1"));
    index_t total = 0;
    for (const auto& span : spans_) total += span.count;
    average_ = Tensor<Number, 1, Device>(Extents<1>{total});
    each([&](const View<Number, 1, Device>& average, const View<T, 1, Device>& parameter) {
      evaluate(&context_, average, parameter);
    });
  }

  void update() {
    ++updates_;
    const double n = static_cast<double>(updates_);
    const double decay = warm_up_ ? std::min(decay_, (1 + n) / (10 + n)) : decay_;
    each([&](const View<Number, 1, Device>& average, const View<T, 1, Device>& parameter) {
      evaluate(&context_, average, average + (1 - decay) * (parameter - average));
    });
  }

  /// Exchanges parameters and averages: once to evaluate or export with the averages, once more to train on. 16-bit
  /// parameters would take the averages' precision away: they are set aside meanwhile, and `average()` stays as it is.
  void swap() {
    if constexpr (std::is_same_v<T, Number>) {
      each([&](const View<Number, 1, Device>& average, const View<T, 1, Device>& parameter) {
        Scratch<Device> scratch(context_);
        const View<Number, 1, Device> kept(scratch.template allocate<Number>(average.size()), average.extents);
        evaluate(&context_, kept, parameter);
        evaluate(&context_, parameter, average);
        evaluate(&context_, average, kept);
      });
    } else {
      const bool swapped_in = aside_.size() != 0;
      if (!swapped_in) aside_ = Tensor<T, 1, Device>(average_.extents());
      T* kept_data = aside_.data();
      each([&](const View<Number, 1, Device>& average, const View<T, 1, Device>& parameter) {
        const View<T, 1, Device> kept(kept_data, parameter.extents);
        kept_data += parameter.size();
        if (swapped_in) {
          evaluate(&context_, parameter, kept);
        } else {
          evaluate(&context_, kept, parameter);
          evaluate(&context_, parameter, average);
        }
      });
      if (swapped_in) aside_ = Tensor<T, 1, Device>();
    }
  }

  /// Averages of all spans, in their order, [total]; with `updates()` the whole state.
  View<Number, 1, Device> average() { return average_.view(); }
  index_t updates() const { return updates_; }
  void set_updates(index_t updates) { updates_ = updates; }

 private:
  template <class Visit>
  void each(Visit visit) {
    index_t begin = 0;
    for (const auto& span : spans_) {
      const Extents<1> extents{span.count};
      visit(View<Number, 1, Device>(average_.data() + begin, extents), View<T, 1, Device>(span.parameter, extents));
      begin += span.count;
    }
  }

  Context<Device>& context_;
  std::vector<ParameterSpan<T>> spans_;
  double decay_;
  bool warm_up_;
  Tensor<Number, 1, Device> average_;
  Tensor<T, 1, Device> aside_;  ///< 16-bit parameters while the averages are in their place
  index_t updates_ = 0;
};

}  // namespace lpo::inline LPO_ABI
