// SPDX-License-Identifier: MIT
// Pair selection: the best and the worst of K candidates, and the softmax gap between them.
#pragma once

#include <cmath>
#include <span>

#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>

namespace lpo::inline LPO_ABI {

/// The reward model gave something that is not a number: nothing can be learned from it.
class NotANumberScore : public ValueError {
 public:
  using ValueError::ValueError;
};

/// The preferred and the rejected candidate of one prompt at one step.
struct CandidatePair {
  int win = 0;
  int lose = 0;
  double delta = 0;  ///< score of win - score of lose, >= 0
  double gap = 0;    ///< softmax(win) - softmax(lose) = tanh(delta / 2)

  /// Whether the pair is worth training on: strictly above the threshold.
  bool kept(double threshold) const { return win != lose && gap > threshold; }
};

/// Best and worst of `candidates` scores that lie `stride` apart, from `first` on; ties take the lowest index.
/// NotANumberScore when a score is not a number.
inline CandidatePair select_pair(std::span<const float> scores, index_t first, index_t stride, int candidates) {
  CandidatePair pair;
  const auto score = [&](int k) { return scores[static_cast<std::size_t>(first + k * stride)]; };
  for (int k = 0; k < candidates; ++k) {
    if (std::isnan(score(k)))
      throw NotANumberScore(message("[select_pair] the score of row ", first + k * stride, " (candidate ", k,
                                    ") is not a number; check the reward model's precision and weights"));
    if (score(k) > score(pair.win)) pair.win = k;
    if (score(k) < score(pair.lose)) pair.lose = k;
  }
  if (pair.win == pair.lose) return pair;
  pair.delta = static_cast<double>(score(pair.win)) - static_cast<double>(score(pair.lose));
  pair.gap = std::tanh(pair.delta / 2);
  return pair;
}

/// The same for consecutive scores of one prompt.
inline CandidatePair select_pair(std::span<const float> scores) {
  return select_pair(scores, 0, 1, static_cast<int>(scores.size()));
}

}  // namespace lpo::inline LPO_ABI
