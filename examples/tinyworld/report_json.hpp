// SPDX-License-Identifier: MIT
// report.json: the numbers of a run for programs, and the goals that a run is measured against.
#pragma once

#include <string>
#include <vector>

#include <lpo/io/json.hpp>

#include "report_data.hpp"

namespace tinyworld {

/// What a run shall reach, as a sentence and whether it did.
struct Goal {
  std::string key;
  std::string text;
  bool reached = false;
};

inline std::vector<Goal> goals(const DemoReport& report) {
  const EvaluationReport& e = report.evaluation;
  return {
      {"lrm_accuracy", "reward model right on at least 70 % of held-out pairs", report.lrm_accuracy >= 0.70},
      {"win_rate", "win rate at least 70 %, its interval above 62 %", e.win_rate >= 0.70 && e.win_rate_ci95.low > 0.62},
      {"attribute_accuracy", "attributes drawn more accurately than before",
       e.attribute_accuracy_after > e.attribute_accuracy_before},
      {"diversity_ratio", "at least 80 % of the diversity kept", e.diversity_ratio >= 0.8}};
}

inline double total_seconds(const DemoReport& report) {
  double total = 0;
  for (const auto& [stage, seconds] : report.seconds) total += seconds;
  return total;
}

/// Numbers that are not finite (an attribute that no caption asks for) become null.
inline lpo::OrderedJson report_json(const DemoReport& report) {
  using Json = lpo::OrderedJson;
  const EvaluationReport& e = report.evaluation;
  const auto by_attribute = [](const std::array<double, kAttributeCount>& values) {
    Json object = Json::object();
    for (std::size_t a = 0; a < kAttributeCount; ++a) object[std::string(kAttributeNames[a])] = values[a];
    return object;
  };
  Json json;
  json["lpo_version"] = report.lpo_version;
  json["compiler"] = report.compiler;
  json["command"] = report.command;
  json["seed"] = report.seed;
  json["threads"] = report.threads;
  json["peak_rss_mb"] = report.peak_rss_mb;
  json["peak_rss_mb_by_stage"] = Json::object();
  for (const auto& [stage, megabytes] : report.peak_rss_by_stage) json["peak_rss_mb_by_stage"][stage] = megabytes;

  json["lrm_accuracy"] = report.lrm_accuracy;
  json["win_rate"] = e.win_rate;
  json["win_rate_ci95"] = Json::array({e.win_rate_ci95.low, e.win_rate_ci95.high});
  json["score_before"] = e.score_before;
  json["score_after"] = e.score_after;
  json["score_gain_ci95"] = Json::array({e.score_gain_ci95.low, e.score_gain_ci95.high});
  json["attribute_accuracy_before"] = e.attribute_accuracy_before;
  json["attribute_accuracy_after"] = e.attribute_accuracy_after;
  json["accuracy_by_attribute_before"] = by_attribute(e.accuracy_before);
  json["accuracy_by_attribute_after"] = by_attribute(e.accuracy_after);
  json["aesthetic_before"] = e.aesthetic_before;
  json["aesthetic_after"] = e.aesthetic_after;
  json["diversity_ratio"] = e.diversity_ratio;
  json["captions"] = e.captions;
  json["pictures"] = e.pictures;
  Json reached = Json::object();
  for (const Goal& goal : goals(report)) reached[goal.key] = goal.reached;
  json["goals_reached"] = reached;

  json["seconds"] = Json::object();
  for (const auto& [stage, seconds] : report.seconds) json["seconds"][stage] = seconds;
  json["seconds"]["total"] = total_seconds(report);

  json["pairs"] = {{"rated", report.pairs_rated}, {"kept", report.pairs_kept}, {"tied", report.pairs_tied}};
  json["rater_agreement"] = report.rater_ceiling;
  json["lrm_accuracy_by_timestep"] = Json::array();
  for (const auto& [timestep, accuracy] : report.lrm_accuracy_by_timestep)
    json["lrm_accuracy_by_timestep"].push_back({{"timestep", timestep}, {"accuracy", accuracy}});

  json["lpo"] = {{"iterations", report.lpo_iterations},
                 {"optimizer_steps", report.lpo_optimizer_steps},
                 {"pairs", report.lpo_pairs}};
  json["lpo"]["by_timestep"] = Json::array();
  for (std::size_t i = 0; i < report.timesteps.size(); ++i) {
    Json row = {{"timestep", report.timesteps[i]}};
    if (i < report.kept_share.size()) row["kept_share"] = report.kept_share[i];
    if (i < report.thresholds.size()) row["threshold"] = report.thresholds[i];
    json["lpo"]["by_timestep"].push_back(row);
  }
  json["settings"] = Json::object();
  for (const auto& [name, value] : report.settings) json["settings"][name] = value;
  return json;
}

}  // namespace tinyworld
