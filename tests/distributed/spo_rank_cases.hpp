// SPDX-License-Identifier: MIT
// rank_cases of SPO, which brings a rater of its own.
#pragma once

#include "../train/small_rater.hpp"
#include "rank_cases.hpp"

namespace rank_cases {

inline lpo::SpoTrainerOptions spo_options() { return small_world::spo_options(lpo_options()); }

template <class Ranks>
Outcome train_spo(lpo::Context<small_world::Device>& context, Ranks ranks, lpo::SpoTrainerOptions options,
                  lpo::RolloutTrainerReport* report = nullptr) {
  small_world::Policy policy;
  Outcome outcome;
  options.on_metrics = [&](lpo::index_t, const lpo::MetricValues& line) { outcome.lines.push_back(line); };
  const auto done = small_world::train_spo(context, policy, options, {}, ranks);
  if (report != nullptr) *report = done;
  outcome.weights = small_world::weights(policy.store);
  return outcome;
}

}  // namespace rank_cases
