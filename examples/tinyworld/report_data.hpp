// SPDX-License-Identifier: MIT
// What one run of the demo found: the numbers and pictures that its report shows.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include <lpo/train/metrics.hpp>

#include "world/evaluate.hpp"
#include "world/image.hpp"

namespace tinyworld {

/// One picture of the grid, from the same noise under the base and the aligned model.
struct BeforeAfter {
  std::string caption;
  Image before, after;
  double score_before = 0, score_after = 0;
};

/// Everything that report.json and report.html contain.
struct DemoReport {
  std::uint64_t seed = 0;
  std::string lpo_version, compiler, command;
  int threads = 0;
  double peak_rss_mb = 0;
  std::vector<std::pair<std::string, double>> seconds;            ///< per stage, in order
  std::vector<std::pair<std::string, double>> peak_rss_by_stage;  ///< MB, highest so far at the end of each stage

  // Reward model
  lpo::index_t pairs_rated = 0, pairs_kept = 0, pairs_tied = 0;  ///< training pairs before and after MPCF; ties among those kept
  double lrm_accuracy = 0;  ///< held-out pairs, ties left out, at the least noisy timestep
  std::vector<std::pair<int, double>> lrm_accuracy_by_timestep;
  double rater_ceiling = 0;  ///< how often the raters agree with the scorer's order on those pairs
  lpo::MetricCurve lrm_loss, lrm_validation;

  // LPO
  lpo::MetricCurve lpo_loss, implicit_accuracy, margin, reward, kept;     ///< over iterations
  std::vector<int> timesteps;                                  ///< of the sampling steps
  std::vector<double> kept_share, thresholds;                  ///< per sampling step
  lpo::index_t lpo_iterations = 0, lpo_optimizer_steps = 0, lpo_pairs = 0;

  // Evaluation
  EvaluationReport evaluation;
  std::vector<BeforeAfter> grid;
  std::vector<std::pair<std::string, double>> settings;  ///< hyperparameters worth showing
};

}  // namespace tinyworld
