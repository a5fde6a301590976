// SPDX-License-Identifier: MIT
// Learning-rate schedules: the rate of optimiser step j, a pure function of j.
#pragma once

#include <algorithm>
#include <cmath>

#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>

namespace lpo::inline LPO_ABI {

enum class LearningRateKind {
  constant,
  constant_with_warmup,  ///< linear rise over `warmup` steps, then the peak
  linear,                ///< linear rise, then linear to 0 at `total`
  cosine,                ///< linear rise, then half a cosine to 0 at `total`
  log_warmup_decay,      ///< peak ln(k+1)/ln(warmup), then linear to 0 at `total` (DeepSpeed's WarmupDecayLR)
};

/// Rate of the very first optimiser step under log_warmup_decay: `zero` counts k = j; `official` reproduces a training
/// run whose scheduler starts one step late: step 0 at the peak, then k = j - 1.
enum class FirstStepRate { zero, official };

struct LearningRateSchedule {
  LearningRateKind kind = LearningRateKind::constant;
  double peak = 1e-5;
  index_t warmup = 0;
  index_t total = 1;
  FirstStepRate first_step = FirstStepRate::zero;

  /// Rate of step 0, 1, 2, ….
  double operator()(index_t step) const {
    if (step < 0) throw ValueError(message("[LearningRateSchedule] step ", step, " must not be negative"));
    if (kind == LearningRateKind::constant) return peak;
    if (kind == LearningRateKind::log_warmup_decay) {
      if (first_step == FirstStepRate::zero) return logarithmic(step);
      return step == 0 ? peak : logarithmic(step - 1);
    }
    if (step < warmup) return peak * static_cast<double>(step) / static_cast<double>(warmup);
    if (kind == LearningRateKind::constant_with_warmup) return peak;
    const double done =
        std::min(1.0, static_cast<double>(step - warmup) / static_cast<double>(std::max<index_t>(1, total - warmup)));
    return kind == LearningRateKind::linear ? peak * (1 - done)
                                            : peak * 0.5 * (1 + std::cos(3.14159265358979323846 * done));
  }

 private:
  double logarithmic(index_t counter) const {
    const index_t rise = std::max<index_t>(2, warmup);  // ln 1 = 0 would divide by zero
    if (counter < rise) return peak * std::log(static_cast<double>(counter + 1)) / std::log(static_cast<double>(rise));
    return peak * std::max(0.0, static_cast<double>(total - counter) /
                                    static_cast<double>(std::max<index_t>(1, total - rise)));
  }
};

}  // namespace lpo::inline LPO_ABI
