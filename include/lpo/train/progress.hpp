// SPDX-License-Identifier: MIT
// Progress and cancellation of long work: one callback, called after every step.
#pragma once

#include <algorithm>
#include <chrono>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>

namespace lpo::inline LPO_ABI {

/// State of a running job. `metrics` are the newest numbers worth showing.
struct Progress {
  std::string stage;
  index_t step = 0;   ///< steps done
  index_t total = 0;  ///< steps in all
  double seconds = 0;  ///< since this run began (a resumed run starts at 0)
  index_t first_step = 0;  ///< where this run began
  std::vector<std::pair<std::string, double>> metrics;
  bool preparing = false;  ///< before the first step: what a checkpoint holds is not restored yet
  bool within_step = false;  ///< between micro-batches: a step is begun and not counted; to stop now drops it

  /// Seconds to go at the pace of this run; 0 before the first step, and past the last.
  double remaining() const {
    const index_t done = step - first_step, left = std::max(total - step, index_t{0});
    return done > 0 ? seconds / static_cast<double>(done) * static_cast<double>(left) : 0.0;
  }
};

/// Returning false stops the work: what is complete is saved and CancelledError is thrown.
using ProgressCallback = std::function<bool(const Progress&)>;

/// Calls a ProgressCallback with times filled in.
class ProgressReporter {
 public:
  ProgressReporter(std::string stage, index_t first_step, index_t total, ProgressCallback callback)
      : callback_(std::move(callback)), begin_(std::chrono::steady_clock::now()) {
    state_.stage = std::move(stage);
    state_.first_step = first_step;
    state_.step = first_step;
    state_.total = total;
  }

  /// False when the user wants to stop.
  bool report(index_t step, std::vector<std::pair<std::string, double>> metrics = {}) {
    state_.step = step;
    state_.seconds = seconds();
    state_.metrics = std::move(metrics);
    return !callback_ || callback_(state_);
  }

  /// The same while something is looked for before the first step.
  bool report_preparing() {
    state_.preparing = true;
    const bool go_on = report(state_.first_step);
    state_.preparing = false;
    return go_on;
  }

  /// The same between micro-batches, with the numbers of the last report.
  bool report_within_step() {
    state_.within_step = true;
    state_.seconds = seconds();
    const bool go_on = !callback_ || callback_(state_);
    state_.within_step = false;
    return go_on;
  }

  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }

 private:
  Progress state_;
  ProgressCallback callback_;
  std::chrono::steady_clock::time_point begin_;
};

}  // namespace lpo::inline LPO_ABI
