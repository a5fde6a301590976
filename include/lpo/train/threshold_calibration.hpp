// SPDX-License-Identifier: MIT
// Thresholds from the gaps of a few roll-outs: for reward models whose scores have another scale than the released ones'.
#pragma once

#include <utility>
#include <vector>

#include <lpo/distributed/collectives.hpp>
#include <lpo/preference/rollout.hpp>
#include <lpo/preference/threshold.hpp>

namespace lpo::inline LPO_ABI {

/// Keeps every pair of `rollouts` roll-outs, and sets the rollout's thresholds such that about the share `quantile` of
/// them would be rejected (calibrated_thresholds). `draw(i)` draws roll-out i; the pairs of all ranks count.
template <class Ranks, class T, class Device, class Draw>
void calibrate_thresholds(Ranks& ranks, Rollout<T, Device>& rollout, const NoiseSchedule& schedule,
                          const ThresholdOptions& options, double quantile, int rollouts, const Draw& draw) {
  const auto count = rollout.steps().size();
  const int steps = static_cast<int>(count);
  rollout.set_thresholds(std::vector<double>(count, 0.0));
  std::vector<std::vector<float>> gaps(count);
  for (int i = 0; i < rollouts; ++i) {
    draw(i);
    const auto records = rollout.pairs().records();
    for (const PairRecord& record : gather_values(ranks, std::vector<PairRecord>(records.begin(), records.end())))
      gaps[static_cast<std::size_t>(record.step)].push_back(record.gap);
  }
  ThresholdOptions unit = options;
  unit.minimum = 0, unit.maximum = 0.5, unit.table = ThresholdTable::closed_form;
  auto shares = pair_thresholds(schedule, steps, unit);
  for (double& share : shares) share *= 2;
  rollout.set_thresholds(
      pair_thresholds(schedule, steps, calibrated_thresholds(shares, std::move(gaps), quantile, options)));
}

}  // namespace lpo::inline LPO_ABI
