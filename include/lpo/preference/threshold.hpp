// SPDX-License-Identifier: MIT
// Dynamic thresholds: how large the score gap of a pair must be at each timestep of a run.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <vector>

#include <lpo/diffusion/ddim.hpp>

namespace lpo::inline LPO_ABI {

/// What the threshold grows with: the step's sigma, its variance, the timestep, or nothing.
enum class ThresholdMode { sigma, variance, linear, constant };
/// `closed_form` works for any schedule and step count; `official20` uses the rounded tables of the original run: 20
/// steps, timesteps 1, 51, ..., 951 only.
enum class ThresholdTable { closed_form, official20 };

/// Defaults are those of SD1.5 and SD2.1; SDXL uses 0.45 to 0.60.
struct ThresholdOptions {
  ThresholdMode mode = ThresholdMode::sigma;
  ThresholdTable table = ThresholdTable::closed_form;
  double minimum = 0.35;   ///< at the step with the smallest sigma
  double maximum = 0.50;   ///< at the step with the largest
  double constant = 0.50;  ///< mode constant
};

namespace detail {

/// sigma of t = 1, 51, ..., 951, rounded to four decimals.
inline constexpr std::array<double, 20> official_sigmas = {0.0206, 0.0406, 0.1673, 0.2144, 0.2509, 0.2836, 0.3144,
                                                           0.3442, 0.3732, 0.4016, 0.4293, 0.4565, 0.4829, 0.5087,
                                                           0.5336, 0.5576, 0.5807, 0.6029, 0.6241, 0.6444};

inline double official_measure(ThresholdMode mode, int timestep) {
  if (timestep < 1 || timestep > 951 || timestep % 50 != 1)
    throw ValueError(message("[thresholds] the official table has no timestep ", timestep,
                             "; it is for 20 leading steps, use ThresholdTable::closed_form"));
  const double sigma = official_sigmas[static_cast<std::size_t>(timestep / 50)];
  // The squares of the rounded sigmas, rounded again.
  return mode == ThresholdMode::variance ? std::nearbyint(sigma * sigma * 1e4) / 1e4 : sigma;
}

}  // namespace detail

/// One threshold per step: th = minimum + (maximum - minimum) (m - m_min) / (m_max - m_min), with m the sigma
/// (variance, timestep) of the DDIM step with eta 1 and m_min, m_max over this run. With a single step, `minimum`.
/// Source: arXiv 2502.01051.
inline std::vector<double> pair_thresholds(const NoiseSchedule& schedule, int steps,
                                           const ThresholdOptions& options = {}) {
  if (!(options.minimum >= 0 && options.maximum >= options.minimum && options.maximum < 1 && options.constant >= 0 &&
        options.constant < 1))
    throw ValueError(message("[thresholds] minimum ", options.minimum, ", maximum ", options.maximum, ", constant ",
                             options.constant, "; expected 0 <= minimum <= maximum < 1 and 0 <= constant < 1"));
  const auto chain = ddim_steps(schedule, steps, 1.0);
  if (options.mode == ThresholdMode::constant) return std::vector<double>(chain.size(), options.constant);
  std::vector<double> measure;
  for (const auto& step : chain) {
    if (options.mode == ThresholdMode::linear)
      measure.push_back(step.timestep);
    else if (options.table == ThresholdTable::official20)
      measure.push_back(detail::official_measure(options.mode, step.timestep));
    else
      measure.push_back(options.mode == ThresholdMode::variance ? step.sigma * step.sigma : step.sigma);
  }
  const auto [low, high] = std::minmax_element(measure.begin(), measure.end());
  const double least = *low, range = *high - *low;
  std::vector<double> thresholds;
  for (const double m : measure)
    thresholds.push_back(options.minimum +
                         (range > 0 ? (options.maximum - options.minimum) * (m - least) / range : 0.0));
  return thresholds;
}

/// Limits [minimum, maximum] for a reward model whose score gaps have another scale than the released ones': the line over
/// the threshold's measure (0 at the smallest, 1 at the largest) that fits the given quantile of each step's gaps best, in the
/// sense of least squares. `shares[i]` is step i's measure, `gaps[i]` the gaps seen there.
inline ThresholdOptions calibrated_thresholds(std::span<const double> shares, std::vector<std::vector<float>> gaps, double quantile,
                                              ThresholdOptions options = {}) {
  if (!(quantile > 0 && quantile < 1)) throw ValueError(message("[calibrated_thresholds] quantile ", quantile, " must lie between 0 and 1"));
  double n = 0, x1 = 0, x2 = 0, y1 = 0, xy = 0;
  for (std::size_t i = 0; i < gaps.size(); ++i) {
    if (gaps[i].empty()) continue;
    const auto at = static_cast<std::ptrdiff_t>(quantile * static_cast<double>(gaps[i].size() - 1) + 0.5);
    std::nth_element(gaps[i].begin(), gaps[i].begin() + at, gaps[i].end());
    const double x = shares[i], y = static_cast<double>(gaps[i][static_cast<std::size_t>(at)]);
    n += 1, x1 += x, x2 += x * x, y1 += y, xy += x * y;
  }
  const double spread = n * x2 - x1 * x1;
  if (n < 2 || !(spread > 0)) throw ValueError("[calibrated_thresholds] gaps of at least two steps are needed; draw a roll-out with thresholds 0");
  const double slope = (n * xy - x1 * y1) / spread, start = (y1 - slope * x1) / n;
  // A falling line would reject where the paper's rule accepts: then one threshold serves all steps.
  options.minimum = std::clamp(slope < 0 ? y1 / n : start, 0.0, 0.99);
  options.maximum = std::clamp(slope < 0 ? y1 / n : start + slope, options.minimum, 0.99);
  return options;
}

}  // namespace lpo::inline LPO_ABI
