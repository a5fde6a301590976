// SPDX-License-Identifier: MIT
// SchedulerConfig: the fields of a diffusers scheduler_config.json that the diffusion room uses, as a plain struct.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include <lpo/base/error.hpp>

namespace lpo::inline LPO_ABI {

/// How beta_t grows with t.
enum class BetaSchedule { linear, scaled_linear, squaredcos_cap_v2 };
/// What the network's output means: the noise, the velocity sqrt(abar) eps - sqrt(1-abar) x_0, or the clean sample.
enum class PredictionType { epsilon, v_prediction, sample };
/// How S of the T training timesteps are chosen.
enum class TimestepSpacing { leading, trailing, linspace };
/// Which sampler; `Sampler` makes the steps of each.
enum class SamplerKind { ddim, ddpm, euler, euler_ancestral, dpmpp_2m, dpmpp_2m_karras, pndm };
/// Where Euler and DPM++ end: at the clean sample, or at the noise level of training timestep 0.
enum class FinalSigmasType { zero, sigma_min };

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
  SamplerKind sampler = SamplerKind::ddim;  ///< the model's own, `_class_name` in the file
  bool use_karras_sigmas = false;           ///< Euler and DPM++: noise levels of arXiv 2206.00364 eq. 5
  FinalSigmasType final_sigmas_type = FinalSigmasType::zero;  ///< Euler and DPM++
  bool lower_order_final = true;  ///< DPM++: with fewer than 15 steps the last one is of first order
  bool euler_at_final = false;    ///< DPM++: the last step is of first order
  bool skip_prk_steps = true;     ///< PNDM: no Runge-Kutta steps at the start; must stay true
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

inline FinalSigmasType parse_final_sigmas_type(std::string_view name) {
  if (name == "zero") return FinalSigmasType::zero;
  if (name == "sigma_min") return FinalSigmasType::sigma_min;
  throw ValueError(
      message("[SchedulerConfig] final_sigmas_type \"", name, "\" is not supported; use zero or sigma_min"));
}

namespace detail {

struct SamplerNames {
  SamplerKind kind;
  std::string_view name, diffusers_class;
};

inline constexpr SamplerNames sampler_names[] = {
    {SamplerKind::ddim, "ddim", "DDIMScheduler"},
    {SamplerKind::ddpm, "ddpm", "DDPMScheduler"},
    {SamplerKind::euler, "euler", "EulerDiscreteScheduler"},
    {SamplerKind::euler_ancestral, "euler_a", "EulerAncestralDiscreteScheduler"},
    {SamplerKind::dpmpp_2m, "dpm++_2m", "DPMSolverMultistepScheduler"},
    {SamplerKind::dpmpp_2m_karras, "dpm++_2m_karras", "DPMSolverMultistepScheduler"},
    {SamplerKind::pndm, "pndm", "PNDMScheduler"},
};

/// "DPM++ 2M Karras", "dpm++_2m_karras" and "dpmpp_2m_karras" are one name: small letters and digits, "pp" for "++".
inline std::string plain_sampler_name(std::string_view name) {
  std::string plain;
  for (const char c : name) {
    if (c >= 'A' && c <= 'Z') plain += static_cast<char>(c - 'A' + 'a');
    if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) plain += c;
    if (c == '+') plain += 'p';
  }
  return plain;
}

}  // namespace detail

/// The sampler with this name or with diffusers' class name, whatever its case, spaces, '_' and '-', if there is one.
inline std::optional<SamplerKind> find_sampler(std::string_view name) {
  const std::string plain = detail::plain_sampler_name(name);
  for (const auto& [kind, short_name, diffusers_class] : detail::sampler_names)
    if (plain == detail::plain_sampler_name(short_name) || plain == detail::plain_sampler_name(diffusers_class))
      return kind;
  if (plain == "eulerancestral") return SamplerKind::euler_ancestral;
  if (plain == "plms") return SamplerKind::pndm;
  return std::nullopt;
}

/// The same; ValueError lists the names that exist.
inline SamplerKind parse_sampler(std::string_view name) {
  if (const auto kind = find_sampler(name)) return *kind;
  std::string known;
  for (const auto& names : detail::sampler_names) known += message(known.empty() ? "" : ", ", names.name);
  throw ValueError(message("[SchedulerConfig] sampler \"", name, "\" is not supported; use one of ", known));
}

/// "ddim", "euler_a", "dpm++_2m_karras" ...
inline std::string_view name_of(SamplerKind kind) { return detail::sampler_names[static_cast<int>(kind)].name; }

/// The `_class_name` of a scheduler_config.json.
inline std::string_view diffusers_class_of(SamplerKind kind) {
  return detail::sampler_names[static_cast<int>(kind)].diffusers_class;
}

inline std::string_view name_of(FinalSigmasType type) { return type == FinalSigmasType::zero ? "zero" : "sigma_min"; }

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
