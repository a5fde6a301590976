// SPDX-License-Identifier: MIT
// Evaluation: paired before/after statistics over captions: win rate, bootstrap interval, accuracies, diversity.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "scorer.hpp"

namespace tinyworld {

/// The pictures of one caption, one per seed, before and after; entry i of both started from the same noise.
struct CaptionOutcome {
  std::string caption;
  std::vector<Measurement> before;
  std::vector<Measurement> after;
  double diversity_before = 0;  ///< mean_pairwise_distance() of the pictures
  double diversity_after = 0;
};

struct Interval {
  double low = 0;
  double high = 0;
};

struct EvaluationOptions {
  double tie_gap = 0.005;  ///< score differences up to this count as half a win
  int bootstrap_rounds = 2000;
  std::uint64_t seed = 0;
};

/// Averages over all captions and seeds. Attribute accuracies are over the pictures whose caption asks.
struct EvaluationReport {
  int captions = 0;
  int pictures = 0;
  double win_rate = 0;  ///< share of pairs where the picture after scores higher, ties half
  Interval win_rate_ci95;
  double score_before = 0;
  double score_after = 0;
  Interval score_gain_ci95;
  double aesthetic_before = 0;
  double aesthetic_after = 0;
  double attribute_accuracy_before = 0;
  double attribute_accuracy_after = 0;
  std::array<double, kAttributeCount> accuracy_before{};
  std::array<double, kAttributeCount> accuracy_after{};
  double diversity_ratio = 0;
};

/// Root mean square RGB distance per value, averaged over all pairs of pictures; 0 for fewer than two.
/// Throws std::invalid_argument if their sizes differ.
inline double mean_pairwise_distance(const std::vector<Image>& images) {
  double sum = 0;
  int pairs = 0;
  for (std::size_t i = 0; i < images.size(); ++i) {
    for (std::size_t j = i + 1; j < images.size(); ++j) {
      if (images[i].rgb.size() != images[j].rgb.size()) {
        throw std::invalid_argument("[tinyworld::mean_pairwise_distance] the pictures differ in size");
      }
      double square = 0;
      for (std::size_t k = 0; k < images[i].rgb.size(); ++k) {
        const double d = static_cast<double>(images[i].rgb[k]) - static_cast<double>(images[j].rgb[k]);
        square += d * d;
      }
      sum += std::sqrt(square / static_cast<double>(std::max<std::size_t>(images[i].rgb.size(), 1)));
      ++pairs;
    }
  }
  return pairs > 0 ? sum / pairs : 0.0;
}

/// Percentile bootstrap of the mean of `values` at 95 %. Values are per caption: the seeds of one caption are not
/// independent, so captions are what is drawn again.
inline Interval bootstrap_mean(const std::vector<double>& values, int rounds, std::uint64_t seed) {
  if (values.empty() || rounds < 1) return {std::nan(""), std::nan("")};
  constexpr std::uint32_t kBootstrapOperation = 0x626f6f74u;
  lpo::RandomStream random(seed, kBootstrapOperation);
  const auto count = static_cast<std::uint32_t>(values.size());
  std::vector<double> means(static_cast<std::size_t>(rounds));
  for (double& mean : means) {
    double sum = 0;
    for (std::uint32_t i = 0; i < count; ++i) sum += values[random.uniform_int(count)];
    mean = sum / count;
  }
  std::sort(means.begin(), means.end());
  const auto at = [&](double quantile) {
    const double place = quantile * static_cast<double>(means.size() - 1);
    const auto low = static_cast<std::size_t>(place);
    const std::size_t high = std::min(low + 1, means.size() - 1);
    return means[low] + (place - static_cast<double>(low)) * (means[high] - means[low]);
  };
  return {at(0.025), at(0.975)};
}

/// Compares after with before. Throws std::invalid_argument if a caption lacks pictures or has unequal numbers of them.
inline EvaluationReport evaluate(const std::vector<CaptionOutcome>& outcomes, const EvaluationOptions& options = {}) {
  EvaluationReport report;
  std::vector<double> wins;
  std::vector<double> gains;
  std::array<double, kAttributeCount> asked{};
  double diversity_before = 0;
  double diversity_after = 0;
  for (const CaptionOutcome& outcome : outcomes) {
    const std::size_t seeds = outcome.before.size();
    if (seeds == 0 || outcome.after.size() != seeds) {
      throw std::invalid_argument("[tinyworld::evaluate] caption '" + outcome.caption + "' has " +
                                  std::to_string(seeds) + " pictures before and " +
                                  std::to_string(outcome.after.size()) + " after; both must be equal and positive");
    }
    double win = 0;
    double gain = 0;
    for (std::size_t i = 0; i < seeds; ++i) {
      const Measurement& before = outcome.before[i];
      const Measurement& after = outcome.after[i];
      const double gap = static_cast<double>(after.score) - static_cast<double>(before.score);
      win += std::fabs(gap) <= options.tie_gap ? 0.5 : gap > 0 ? 1.0 : 0.0;
      gain += gap;
      report.score_before += before.score;
      report.score_after += after.score;
      report.aesthetic_before += before.aesthetic;
      report.aesthetic_after += after.aesthetic;
      report.attribute_accuracy_before += before.accuracy;
      report.attribute_accuracy_after += after.accuracy;
      for (std::size_t a = 0; a < kAttributeCount; ++a) {
        if (std::isnan(before.hard[a]) || std::isnan(after.hard[a])) continue;
        report.accuracy_before[a] += before.hard[a];
        report.accuracy_after[a] += after.hard[a];
        asked[a] += 1;
      }
    }
    wins.push_back(win / static_cast<double>(seeds));
    gains.push_back(gain / static_cast<double>(seeds));
    diversity_before += outcome.diversity_before;
    diversity_after += outcome.diversity_after;
    report.pictures += static_cast<int>(seeds);
  }
  report.captions = static_cast<int>(outcomes.size());
  if (report.captions == 0) return report;
  const double pictures = report.pictures;
  for (double* mean : {&report.score_before, &report.score_after, &report.aesthetic_before, &report.aesthetic_after,
                       &report.attribute_accuracy_before, &report.attribute_accuracy_after}) {
    *mean /= pictures;
  }
  for (std::size_t a = 0; a < kAttributeCount; ++a) {
    report.accuracy_before[a] = asked[a] > 0 ? report.accuracy_before[a] / asked[a] : std::nan("");
    report.accuracy_after[a] = asked[a] > 0 ? report.accuracy_after[a] / asked[a] : std::nan("");
  }
  for (const double win : wins) report.win_rate += win / report.captions;
  report.win_rate_ci95 = bootstrap_mean(wins, options.bootstrap_rounds, options.seed);
  report.score_gain_ci95 = bootstrap_mean(gains, options.bootstrap_rounds, options.seed);
  report.diversity_ratio = diversity_before > 0 ? diversity_after / diversity_before : std::nan("");
  return report;
}

}  // namespace tinyworld
