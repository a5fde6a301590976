// SPDX-License-Identifier: MIT
// The LPO objective of one pair as scalars: clipped ratios, loss, its derivatives, and the metrics of a mini-batch.
#pragma once

#include <algorithm>
#include <cmath>

#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>

namespace lpo::inline LPO_ABI {

/// Defaults are the released code's for SD1.5.
struct LpoLossOptions {
  double beta = 500;  ///< strength of the preference against the reference
  double clip = 0.1;  ///< ratios are limited to [1 - clip, 1 + clip]
  /// false reproduces the original -log(sigmoid(x)) in fp32: infinite loss, NaN gradient, when both ratios are clipped.
  bool stable_logsigmoid = true;
};

/// ratio = clamp(exp(Delta), 1 - clip, 1 + clip), Delta = logp_policy - logp_reference;
/// loss = -ln sigmoid(argument), argument = beta (ln ratio_win - ln ratio_lose). arXiv 2502.01051.
struct LpoPairTerms {
  double delta_win = 0, delta_lose = 0;
  double ratio_win = 1, ratio_lose = 1;
  double argument = 0;
  double loss = 0;
  double gradient_win = 0;   ///< d loss / d delta_win; 0 where the ratio is clipped
  double gradient_lose = 0;  ///< d loss / d delta_lose
  bool win_clipped = false, lose_clipped = false;
  double log_density_win = 0, log_density_lose = 0;  ///< mean over elements of ln p under the policy
  double reference_log_density_win = 0, reference_log_density_lose = 0;
};

/// The terms of one pair from Delta of win and lose (means over elements). ValueError unless beta > 0 and
/// 0 < clip < 1.
inline LpoPairTerms lpo_pair_terms(double delta_win, double delta_lose, const LpoLossOptions& options) {
  if (!(options.clip > 0 && options.clip < 1))
    throw ValueError(message("[lpo_loss] clip ", options.clip, " must lie above 0 and below 1"));
  if (!(options.beta > 0)) throw ValueError(message("[lpo_loss] beta ", options.beta, " must be positive: else losers are preferred"));
  // ln r is Delta limited in log space: no exp of an unbounded number, the same value.
  const double low = std::log1p(-options.clip), high = std::log1p(options.clip);
  const double log_win = std::clamp(delta_win, low, high), log_lose = std::clamp(delta_lose, low, high);
  LpoPairTerms terms;
  terms.delta_win = delta_win;
  terms.delta_lose = delta_lose;
  terms.ratio_win = std::exp(log_win);
  terms.ratio_lose = std::exp(log_lose);
  terms.win_clipped = delta_win < low || delta_win > high;
  terms.lose_clipped = delta_lose < low || delta_lose > high;
  terms.argument = options.beta * (log_win - log_lose);
  double slope = 0;  // d loss / d argument
  if (options.stable_logsigmoid) {
    const double tail = std::exp(-std::fabs(terms.argument));
    terms.loss = std::max(0.0, -terms.argument) + std::log1p(tail);
    slope = -(terms.argument >= 0 ? tail : 1.0) / (1 + tail);
  } else {
    const float sigmoid = 1.0f / (1.0f + std::exp(static_cast<float>(-terms.argument)));
    terms.loss = static_cast<double>(-std::log(sigmoid));
    slope = static_cast<double>(-(1.0f / sigmoid) * (sigmoid * (1.0f - sigmoid)));
  }
  // As automatic differentiation of clamp does: the slope times 0 or 1, so that a NaN slope stays visible.
  terms.gradient_win = slope * options.beta * (terms.win_clipped ? 0.0 : 1.0);
  terms.gradient_lose = -slope * options.beta * (terms.lose_clipped ? 0.0 : 1.0);
  return terms;
}

/// Means over the pairs that were added.
struct LpoMetrics {
  index_t pairs = 0;
  double loss = 0;
  double ratio_win = 0, ratio_lose = 0;
  double implicit_accuracy = 0;  ///< fraction with ratio_win > ratio_lose (clipped values; equal counts as wrong)
  double margin = 0;             ///< mean of ratio_win - ratio_lose
  double win_clipped = 0, lose_clipped = 0;
  double density_win = 0, density_lose = 0;  ///< mean of exp(log density) under the policy
  double reference_density_win = 0, reference_density_lose = 0;

  void add(const LpoPairTerms& terms) {
    ++pairs;
    const double weight = 1 / static_cast<double>(pairs);
    const auto mean = [weight](double& total, double value) { total += (value - total) * weight; };
    mean(loss, terms.loss);
    mean(ratio_win, terms.ratio_win);
    mean(ratio_lose, terms.ratio_lose);
    mean(implicit_accuracy, terms.ratio_win > terms.ratio_lose ? 1 : 0);
    mean(margin, terms.ratio_win - terms.ratio_lose);
    mean(win_clipped, terms.win_clipped ? 1 : 0);
    mean(lose_clipped, terms.lose_clipped ? 1 : 0);
    mean(density_win, std::exp(terms.log_density_win));
    mean(density_lose, std::exp(terms.log_density_lose));
    mean(reference_density_win, std::exp(terms.reference_log_density_win));
    mean(reference_density_lose, std::exp(terms.reference_log_density_lose));
  }
  /// Adds the pairs that another one saw.
  void merge(const LpoMetrics& other) {
    if (other.pairs == 0) return;
    pairs += other.pairs;
    const double share = static_cast<double>(other.pairs) / static_cast<double>(pairs);
    using M = LpoMetrics;
    for (const auto value : {&M::loss, &M::ratio_win, &M::ratio_lose, &M::implicit_accuracy, &M::margin, &M::win_clipped,
                             &M::lose_clipped, &M::density_win, &M::density_lose, &M::reference_density_win,
                             &M::reference_density_lose})
      this->*value += (other.*value - this->*value) * share;
  }
};

}  // namespace lpo::inline LPO_ABI
