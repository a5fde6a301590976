// SPDX-License-Identifier: MIT
// Multi-preference consistent filtering: keep the pairs on which aesthetics, alignment and question answering agree.
#pragma once

#include <cmath>

#include <lpo/base/error.hpp>

namespace lpo::inline LPO_ABI {

/// Score differences winner minus loser (for ties: first minus second, or its absolute value).
struct PreferenceGaps {
  float aesthetic = 0;  ///< by the aesthetic predictor
  float clip = 0;       ///< by CLIPScore: agreement with the prompt
  float vqa = 0;        ///< by VQAScore (visual question answering): the probability that the picture shows the prompt
};

/// Thresholds of arXiv 2502.01051, which trains with strategy 2.
struct MpcfOptions {
  int strategy = 2;       ///< 1: aesthetic > 0; 2: > -0.5; 3: > -1; 0 keeps everything
  bool tie_abs = true;    ///< `mpcf_tie_abs`: compare |gap| for ties; false is the official code
  bool inclusive = false; ///< the paper prints >= and <= where the code has > and <
  float tie_aesthetic = 0.2f, tie_clip = 0.03f, tie_vqa = 0.07f;
};

/// Whether a pair stays in the training set.
inline bool mpcf_keeps(const PreferenceGaps& gaps, bool tie, const MpcfOptions& options = {}) {
  if (options.strategy == 0) return true;
  if (options.strategy < 0 || options.strategy > 3)
    throw ValueError(message("[MPCF] strategy ", options.strategy, " must be 0, 1, 2 or 3"));
  const auto above = [&](float gap, float limit) { return options.inclusive ? gap >= limit : gap > limit; };
  const auto below = [&](float gap, float limit) {
    const float size = options.tie_abs ? std::fabs(gap) : gap;
    return options.inclusive ? size <= limit : size < limit;
  };
  if (tie)
    return below(gaps.aesthetic, options.tie_aesthetic) && below(gaps.clip, options.tie_clip) && below(gaps.vqa, options.tie_vqa);
  const float aesthetic_limit = options.strategy == 1 ? 0.0f : options.strategy == 2 ? -0.5f : -1.0f;
  return above(gaps.aesthetic, aesthetic_limit) && above(gaps.clip, 0.0f) && above(gaps.vqa, 0.0f);
}

}  // namespace lpo::inline LPO_ABI
