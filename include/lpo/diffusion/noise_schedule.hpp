// SPDX-License-Identifier: MIT
// NoiseSchedule: beta_t and the cumulative product abar_t in double, and forward noising of latents.
#pragma once

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include <lpo/diffusion/scheduler_config.hpp>
#include <lpo/tensor/tensor.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// alpha_bar(time) of the squared-cosine schedule, arXiv 2102.09672 eq. 17.
inline double squared_cosine(double time) {
  const double c = std::cos((time + 0.008) / 1.008 * (3.14159265358979323846 / 2));
  return c * c;
}

/// Scales sqrt(abar) so that the last one is 0 and the first stays; arXiv 2305.08891 algorithm 1.
inline void rescale_zero_terminal_snr(std::vector<double>& betas) {
  std::vector<double> root(betas.size());
  double product = 1;
  for (std::size_t t = 0; t < betas.size(); ++t) root[t] = std::sqrt(product *= 1 - betas[t]);
  const double first = root.front(), last = root.back();
  for (double& value : root) value = (value - last) * first / (first - last);
  for (std::size_t t = betas.size(); t-- > 0;)
    betas[t] = 1 - root[t] * root[t] / (t == 0 ? 1.0 : root[t - 1] * root[t - 1]);
}

/// numpy's and torch's linspace; in float with one rounding per element, as torch's vector code does it.
template <class Number>
std::vector<Number> linear_space(double start, double end, int count) {
  std::vector<Number> values(static_cast<std::size_t>(count));
  const Number low = static_cast<Number>(start), high = static_cast<Number>(end);
  const Number step = count > 1 ? (high - low) / static_cast<Number>(count - 1) : Number(0);
  for (int i = 0; i < count; ++i)
    values[static_cast<std::size_t>(i)] = i < count / 2 ? std::fma(static_cast<Number>(i), step, low)
                                                        : std::fma(static_cast<Number>(i - count + 1), step, high);
  return values;
}

template <class Number>
std::vector<Number> make_betas(const SchedulerConfig& config) {
  const int count = config.num_train_timesteps;
  if (config.beta_schedule == BetaSchedule::squaredcos_cap_v2) {
    std::vector<Number> betas(static_cast<std::size_t>(count));
    for (int t = 0; t < count; ++t)
      betas[static_cast<std::size_t>(t)] = static_cast<Number>(
          std::min(1 - squared_cosine((t + 1.0) / count) / squared_cosine(static_cast<double>(t) / count), 0.999));
    return betas;
  }
  if (config.beta_schedule == BetaSchedule::linear)
    return linear_space<Number>(config.beta_start, config.beta_end, count);
  auto betas = linear_space<Number>(std::sqrt(config.beta_start), std::sqrt(config.beta_end), count);
  for (Number& beta : betas) beta *= beta;
  return betas;
}

}  // namespace detail

/// The noise levels of T training timesteps 0..T-1: abar_t = prod_{s<=t} (1 - beta_s). Immutable.
class NoiseSchedule {
 public:
  /// ValueError when the numbers are outside their ranges.
  explicit NoiseSchedule(const SchedulerConfig& config = {}) : config_(config) {
    if (config.num_train_timesteps < 1)
      throw ValueError(
          message("[NoiseSchedule] num_train_timesteps is ", config.num_train_timesteps, ", expected at least 1"));
    if (!(config.beta_start > 0 && config.beta_end >= config.beta_start && config.beta_end < 1))
      throw ValueError(message("[NoiseSchedule] beta_start ", config.beta_start, " and beta_end ", config.beta_end,
                               " must satisfy 0 < beta_start <= beta_end < 1"));
    if (config.clip_sample)
      throw ValueError("[NoiseSchedule] clip_sample is for models of pixels; latents are unbounded, set it to false");
    betas_ = detail::make_betas<double>(config);
    if (config.rescale_betas_zero_snr) detail::rescale_zero_terminal_snr(betas_);
    double product = 1;
    alpha_bars_.reserve(betas_.size());
    for (const double beta : betas_) alpha_bars_.push_back(product *= 1 - beta);
  }

  const SchedulerConfig& config() const { return config_; }
  int train_timesteps() const { return config_.num_train_timesteps; }
  std::span<const double> betas() const { return betas_; }
  std::span<const double> alpha_bars() const { return alpha_bars_; }

  /// abar_t for 0 <= t < T.
  double alpha_bar(int timestep) const {
    if (timestep < 0 || timestep >= train_timesteps())
      throw ValueError(message("[NoiseSchedule] timestep ", timestep, " is outside 0..", train_timesteps() - 1));
    return alpha_bars_[static_cast<std::size_t>(timestep)];
  }

  /// The same between timesteps: sigma = sqrt((1 - abar)/abar) is linear there, as Euler samplers take it.
  double alpha_bar(double timestep) const {
    if (!(timestep >= 0 && timestep <= train_timesteps() - 1))
      throw ValueError(message("[NoiseSchedule] timestep ", timestep, " is outside 0..", train_timesteps() - 1));
    const int below = static_cast<int>(timestep);
    const double part = timestep - below, low = alpha_bar(below);
    if (part == 0) return low;
    const double high = alpha_bar(below + 1);
    const double sigma = (1 - part) * std::sqrt((1 - low) / low) + part * std::sqrt((1 - high) / high);
    return 1 / (1 + sigma * sigma);
  }

  /// abar after the last step as diffusers' DDIM takes it for an arrival below 0: 1 or abar_0.
  double final_alpha_bar() const { return config_.set_alpha_to_one ? 1.0 : alpha_bars_.front(); }

  /// torch's table, bit for bit (2.11, CPU): betas in float, the product accumulated in double and each entry rounded
  /// to float. Differs from `alpha_bars` by up to 2e-6 relative.
  std::vector<float> torch_alpha_bars() const {
    auto betas = detail::make_betas<float>(config_);
    if (config_.rescale_betas_zero_snr)
      for (std::size_t t = 0; t < betas.size(); ++t) betas[t] = static_cast<float>(betas_[t]);
    std::vector<float> table;
    table.reserve(betas.size());
    double product = 1;
    for (const float beta : betas) table.push_back(static_cast<float>(product *= static_cast<double>(1.0f - beta)));
    return table;
  }

 private:
  SchedulerConfig config_;
  std::vector<double> betas_, alpha_bars_;
};

namespace detail {

/// One coefficient per row, copied to the device as a [rows, 1, 1, 1] view that broadcasts over a latent batch.
template <class T, class Device>
View<const T, 4, Device> row_coefficients(Context<Device>& context, T* device_memory, std::span<const double> values) {
  std::vector<T> converted(values.size());
  for (std::size_t i = 0; i < values.size(); ++i) converted[i] = static_cast<T>(values[i]);
  context.copy_from_host(device_memory, converted.data(), converted.size() * sizeof(T));
  return {device_memory, Extents<4>{static_cast<index_t>(values.size()), 1, 1, 1}};
}

}  // namespace detail

/// Forward noising, one timestep per row: noisy[i] = sqrt(abar) clean[i] + sqrt(1 - abar) noise[i] with abar at
/// timesteps[i] (arXiv 2006.11239 eq. 4). All views [n, h, w, c]; `noisy` may be `clean` or `noise`.
template <class T, class Device>
void add_noise(Context<Device>& context, const NoiseSchedule& schedule, std::span<const int> timesteps,
               std::type_identity_t<View<const T, 4, Device>> clean,
               std::type_identity_t<View<const T, 4, Device>> noise, const View<T, 4, Device>& noisy) {
  detail::expect_same("add_noise", "clean", clean.extents, "noise", noise.extents);
  detail::expect_same("add_noise", "clean", clean.extents, "noisy", noisy.extents);
  const auto rows = static_cast<index_t>(timesteps.size());
  if (rows != clean.extent(0))
    throw ShapeError(message("[add_noise] ", rows, " timesteps for latents ", to_string(clean.extents),
                             "; give one timestep per row"));
  std::vector<double> signal, spread;
  for (const int timestep : timesteps) {
    const double alpha_bar = schedule.alpha_bar(timestep);
    signal.push_back(std::sqrt(alpha_bar));
    spread.push_back(std::sqrt(1 - alpha_bar));
  }
  using Number = compute_t<T>;
  Scratch<Device> scratch(context);
  const auto a = detail::row_coefficients(context, scratch.template allocate<Number>(rows), signal);
  const auto b = detail::row_coefficients(context, scratch.template allocate<Number>(rows), spread);
  evaluate(&context, noisy, bcast_last(a) * clean + bcast_last(b) * noise);
}

}  // namespace lpo::inline LPO_ABI
