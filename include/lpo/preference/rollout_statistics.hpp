// SPDX-License-Identifier: MIT
// What a roll-out reports: scores, gaps and kept pairs per timestep.
#pragma once

#include <cmath>
#include <span>

#include <lpo/base/extents.hpp>

namespace lpo::inline LPO_ABI {

/// Running mean and standard deviation (Welford), in double.
class RunningMoments {
 public:
  void add(double value) {
    ++count_;
    const double distance = value - mean_;
    mean_ += distance / static_cast<double>(count_);
    squares_ += distance * (value - mean_);
  }
  /// Adds the values that another one saw.
  void merge(const RunningMoments& other) {
    if (other.count_ == 0) return;
    const double distance = other.mean_ - mean_, total = static_cast<double>(count_ + other.count_);
    const double share = static_cast<double>(other.count_) / total;
    squares_ += other.squares_ + distance * distance * static_cast<double>(count_) * share;
    mean_ += distance * share;
    count_ += other.count_;
  }
  index_t count() const { return count_; }
  double mean() const { return mean_; }
  /// Sample standard deviation (divides by n - 1); 0 for fewer than two values.
  double deviation() const { return count_ < 2 ? 0.0 : std::sqrt(squares_ / static_cast<double>(count_ - 1)); }

 private:
  index_t count_ = 0;
  double mean_ = 0, squares_ = 0;
};

/// One step of a roll-out over all prompts.
struct StepStatistics {
  int timestep = 0;
  double threshold = 0;
  RunningMoments scores;  ///< of all K*B candidates
  RunningMoments gaps;    ///< of the B best-worst pairs
  int kept = 0;           ///< pairs above the threshold

  /// Adds the same step of other prompts.
  void merge(const StepStatistics& other) {
    scores.merge(other.scores);
    gaps.merge(other.gaps);
    kept += other.kept;
  }
};

/// What all steps kept.
inline index_t kept_in_all(std::span<const StepStatistics> steps) {
  index_t kept = 0;
  for (const auto& step : steps) kept += step.kept;
  return kept;
}

/// Kept pairs by noise level, as the original run logs them.
struct KeptBuckets {
  int very_large = 0;  ///< t > 751
  int large = 0;       ///< 501 < t <= 751
  int middle = 0;      ///< 251 <= t <= 501
  int small = 0;       ///< t < 251
};

/// `small_includes_t1 = false` reproduces the original log, which counts pairs of t = 1 nowhere.
inline KeptBuckets kept_buckets(std::span<const StepStatistics> steps, bool small_includes_t1 = true) {
  KeptBuckets buckets;
  for (const auto& step : steps) {
    if (step.timestep > 751)
      buckets.very_large += step.kept;
    else if (step.timestep > 501)
      buckets.large += step.kept;
    else if (step.timestep >= 251)
      buckets.middle += step.kept;
    else if (step.timestep > 1 || small_includes_t1)
      buckets.small += step.kept;
  }
  return buckets;
}

}  // namespace lpo::inline LPO_ABI
