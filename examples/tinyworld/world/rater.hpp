// SPDX-License-Identifier: MIT
// Simulated raters: label pairs of pictures by a Bradley-Terry model with ties on the scorer's score.
#pragma once

#include <cmath>
#include <cstdint>

#include "scorer.hpp"

namespace tinyworld {

/// How reliable the raters are. With the defaults about one pair of a typical base model in twenty is a tie, and the
/// better picture wins about 88 % of the others.
struct RaterOptions {
  float temperature = 0.06f;  ///< score difference that shifts the log-odds by one
  float indifference = 0.3f;  ///< log-odds that a difference must overcome; 0 = no ties
};

/// One rated pair. Gaps are winner minus loser, for a tie first minus second; they are what MPCF filters on.
struct RatedPair {
  float label_0 = 0.5f;  ///< 1 if the first picture won, 0 if it lost, 1/2 for a tie
  float label_1 = 0.5f;
  float aesthetic_gap = 0;
  float clipscore_gap = 0;  ///< of Measurement::global_agreement
  float vqascore_gap = 0;   ///< of Measurement::question_agreement
  bool is_tie() const { return label_0 == label_1; }
};

/// Probability that the first of two pictures wins, given the difference of their scores (first minus second).
/// Source: Rao and Kupper 1967, the Bradley-Terry model with ties.
inline double win_probability(double score_gap, const RaterOptions& options = {}) {
  return 1.0 / (1.0 + std::exp(-(score_gap / options.temperature - options.indifference)));
}

/// Rates pair number `pair_index` of the campaign `seed`; the same arguments give the same label.
inline RatedPair rate_pair(const Measurement& first, const Measurement& second, std::uint64_t seed,
                           std::uint64_t pair_index, const RaterOptions& options = {}) {
  constexpr std::uint32_t kRaterOperation = 0x72617465u;
  const double gap = static_cast<double>(first.score) - static_cast<double>(second.score);
  const double first_wins = win_probability(gap, options);
  const double second_wins = win_probability(-gap, options);
  const auto block = lpo::philox_block(lpo::RandomKey{seed, kRaterOperation, 0}, pair_index);
  const double draw = (static_cast<double>(block.v[0]) + 0.5) / 4294967296.0;
  RatedPair result;
  if (draw < first_wins) {
    result.label_0 = 1, result.label_1 = 0;
  } else if (draw < first_wins + second_wins) {
    result.label_0 = 0, result.label_1 = 1;
  }
  const float sign = result.label_1 > result.label_0 ? -1.0f : 1.0f;
  result.aesthetic_gap = sign * (first.aesthetic - second.aesthetic);
  result.clipscore_gap = sign * (first.global_agreement - second.global_agreement);
  result.vqascore_gap = sign * (first.question_agreement - second.question_agreement);
  return result;
}

}  // namespace tinyworld
