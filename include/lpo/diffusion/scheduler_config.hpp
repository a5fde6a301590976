// SPDX-License-Identifier: MIT
// SchedulerConfig: the fields of a diffusers scheduler_config.json that the diffusion room uses, as a plain struct.
#pragma once

#include <string_view>

#include <lpo/base/error.hpp>

namespace lpo::inline LPO_ABI {

/// How beta_t grows with t.
enum class BetaSchedule { linear, scaled_linear, squaredcos_cap_v2 };
/// What the network's output means: the noise, the velocity sqrt(abar) eps - sqrt(1-abar) x_0, or the clean sample.
enum class PredictionType { epsilon, v_prediction, sample };
/// How S of the T training timesteps are chosen.
enum class TimestepSpacing { leading, trailing, linspace };

/// Names and defaults follow diffusers' scheduler_config.json of Stable Diffusion.
struct SchedulerConfig {
  int num_train_timesteps = 1000;
  double beta_start = 0.00085;
  double beta_end = 0.012;
  BetaSchedule beta_schedule = BetaSchedule::scaled_linear;
  PredictionType prediction_type = PredictionType::epsilon;
  int steps_offset = 1;
  bool set_alpha_to_one = false;
  bool clip_sample = false;  ///< must stay false: latents have no bounds to clip to
  TimestepSpacing timestep_spacing = TimestepSpacing::leading;
  bool rescale_betas_zero_snr = false;
};

/// The enumerator with diffusers' name; ValueError lists the names that exist.
inline BetaSchedule parse_beta_schedule(std::string_view name) {
  if (name == "linear") return BetaSchedule::linear;
  if (name == "scaled_linear") return BetaSchedule::scaled_linear;
  if (name == "squaredcos_cap_v2") return BetaSchedule::squaredcos_cap_v2;
  throw ValueError(message("[SchedulerConfig] beta_schedule \"", name,
                           "\" is not supported; use linear, scaled_linear or squaredcos_cap_v2"));
}

inline PredictionType parse_prediction_type(std::string_view name) {
  if (name == "epsilon") return PredictionType::epsilon;
  if (name == "v_prediction") return PredictionType::v_prediction;
  if (name == "sample") return PredictionType::sample;
  throw ValueError(message("[SchedulerConfig] prediction_type \"", name,
                           "\" is not supported; use epsilon, v_prediction or sample"));
}

inline TimestepSpacing parse_timestep_spacing(std::string_view name) {
  if (name == "leading") return TimestepSpacing::leading;
  if (name == "trailing") return TimestepSpacing::trailing;
  if (name == "linspace") return TimestepSpacing::linspace;
  throw ValueError(
      message("[SchedulerConfig] timestep_spacing \"", name, "\" is not supported; use leading, trailing or linspace"));
}

inline std::string_view name_of(BetaSchedule schedule) {
  switch (schedule) {
    case BetaSchedule::linear:
      return "linear";
    case BetaSchedule::scaled_linear:
      return "scaled_linear";
    default:
      return "squaredcos_cap_v2";
  }
}

inline std::string_view name_of(PredictionType type) {
  switch (type) {
    case PredictionType::epsilon:
      return "epsilon";
    case PredictionType::v_prediction:
      return "v_prediction";
    default:
      return "sample";
  }
}

inline std::string_view name_of(TimestepSpacing spacing) {
  switch (spacing) {
    case TimestepSpacing::leading:
      return "leading";
    case TimestepSpacing::trailing:
      return "trailing";
    default:
      return "linspace";
  }
}

}  // namespace lpo::inline LPO_ABI
