// SPDX-License-Identifier: MIT
// What train_lrm leaves beside the weights: validation.json and report.html.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <lpo/io/json.hpp>

#include "../common/console.hpp"
#include "../common/memory_plan.hpp"
#include "../common/run_report.hpp"
#include "options.hpp"

namespace train_lrm {

/// Results of a run.
struct Results {
  lpo::LrmTrainerReport training;
  std::vector<lpo::TimestepAccuracy> accuracy;  ///< of the last weights; empty without validation
  std::string failure;                          ///< why training stopped early; empty if it did not
  examples::EncodeReport data;
  index_t pairs = 0, images = 0, validation_pairs = 0;
  double seconds = 0;
};

inline std::string percent_text(double share) { return examples::fixed_text(100 * share, 1) + " %"; }

/// Accuracy by timestep with the ends of its 95 % interval, of the last weights.
inline void write_validation(const std::string& path, const Results& results) {
  lpo::OrderedJson list = lpo::OrderedJson::array();
  for (const auto& [timestep, interval] : results.accuracy) {
    lpo::OrderedJson entry;
    entry["timestep"] = timestep;
    entry["accuracy"] = interval.accuracy;
    entry["low"] = interval.low;
    entry["high"] = interval.high;
    entry["pairs"] = results.validation_pairs;
    list.push_back(entry);
  }
  lpo::write_text_file(path, list.dump(1) + "\n");
}

namespace detail {

inline std::string accuracy_plot(const Results& results) {
  examples::PlotSeries middle{"accuracy", {}, {}, "a", false, true}, low{"95 % interval", {}, {}, "b", false, false},
      high{"", {}, {}, "b", false, false};
  for (const auto& [timestep, interval] : results.accuracy) {
    for (auto* series : {&middle, &low, &high}) series->x.push_back(timestep);
    middle.y.push_back(interval.accuracy);
    low.y.push_back(interval.low);
    high.y.push_back(interval.high);
  }
  examples::PlotOptions options{"accuracy by timestep", "timestep", "", {{0.5, "guessing"}}};
  options.percent = true;
  return examples::line_plot({middle, low, high}, options);
}

inline std::string filter_plot(const lpo::PreferenceCounts& counts) {
  const std::vector<std::string> names = {"win-lose", "ties"};
  examples::PlotSeries kept{
      "kept", {}, {static_cast<double>(counts.kept_win_lose), static_cast<double>(counts.kept_ties)}, "a"};
  examples::PlotSeries seen{"seen", {}, {static_cast<double>(counts.win_lose), static_cast<double>(counts.ties)}, "c"};
  examples::PlotOptions options;
  options.title = "pairs that the filter kept";
  return examples::bar_plot(names, kept, seen, options);
}

inline std::string lead_text(const Results& results) {
  if (!results.failure.empty()) return "Training stopped early: " + results.failure;
  return lpo::message("Trained for ", results.training.steps, " steps on ", results.pairs, " pairs of ", results.images,
                      " pictures.");
}

}  // namespace detail

inline void write_report(const std::string& path, const Job& job, const examples::ModelFamily& family,
                         const Results& results) {
  const Options& o = job.options;
  const auto& t = results.training;
  const std::string log = o.output_dir + "/metrics.jsonl";
  examples::RunReport page;
  page.over = lpo::message("lpo · latent reward model · ", family.name);
  page.title = results.failure.empty() ? "A latent reward model" : "Training stopped early";
  page.lead = detail::lead_text(results);
  if (!results.accuracy.empty()) {
    const auto& first = results.accuracy.front();
    page.tiles.push_back({percent_text(first.interval.accuracy), "validation accuracy",
                          lpo::message("t = ", first.timestep, ", 95 %: ", percent_text(first.interval.low), " to ",
                                       percent_text(first.interval.high))});
    page.tiles.push_back({percent_text(t.best_validation_accuracy), "best validation accuracy",
                          lpo::message("after step ", t.best_step)});
  }
  const auto losses = lpo::read_metric(log, "train_loss");
  if (!losses.value.empty())
    page.tiles.push_back({examples::fixed_text(losses.value.back(), 4), "last loss",
                          lpo::message("of step ", static_cast<long long>(losses.step.back()))});
  page.tiles.push_back(
      {lpo::message(results.pairs), "training pairs", lpo::message(results.images, " pictures, encoded once")});
  page.tiles.push_back({examples::clock_text(results.seconds), "time", "of this start of the program"});
  page.tiles.push_back(
      {examples::memory_text(examples::peak_memory()), "most memory",
       t.skipped_steps == 0 ? "no step was skipped" : lpo::message(t.skipped_steps, " steps were skipped")});
  examples::ReportSection training{
      "Training",
      "Every line of metrics.jsonl; the faint curve is the value, the strong one its running mean.",
      {},
      {}};
  training.cards.push_back(
      examples::metric_card(log, "train_loss", "Loss", "Bradley-Terry, ties at 0 when both pictures score the same."));
  training.cards.push_back(examples::metric_card(
      log, "implicit_acc", "Accuracy on the batch",
      "How often the preferred picture of a training pair has the higher score.", "step", {{0.5, "guessing"}}, true));
  training.cards.push_back(
      examples::metric_card(log, "train_margin", "Margin", "Score of the preferred picture minus the other's."));
  training.cards.push_back(examples::metric_card(log, "grad_norm", "Gradient norm", "Before clipping."));
  training.cards.push_back(examples::metric_card(log, "lr", "Learning rate", "As the schedule gave it."));
  page.sections.push_back(std::move(training));
  if (!results.accuracy.empty()) {
    examples::ReportSection validation{
        "Validation", lpo::message(results.validation_pairs, " pairs that were not trained on."), {}, {}};
    validation.cards.push_back(examples::metric_card(log, "validation_accuracy", "Accuracy during training",
                                                     lpo::message("At t = ", o.training.validation_timestep, "."),
                                                     "step", {{0.5, "guessing"}}, true));
    validation.cards.push_back({"Accuracy by timestep", "Of the last weights, on latents noised to each timestep.",
                                detail::accuracy_plot(results)});
    page.sections.push_back(std::move(validation));
  }
  if (results.data.counts.seen() > 0) {
    const auto& counts = results.data.counts;
    examples::ReportSection data{"Data",
                                 lpo::message(counts.seen(), " labelled pairs, ", counts.kept(), " kept; ",
                                              results.data.unlabelled, " without a label."),
                                 {},
                                 {}};
    data.cards.push_back({"Filter",
                          o.score_file.empty()
                              ? "No score file was given: all are kept."
                              : lpo::message("Multi-preference consistent filtering, strategy ", o.mpcf.strategy, "."),
                          detail::filter_plot(counts)});
    page.sections.push_back(std::move(data));
  }
  const auto number = [](double value) {
    char text[32];
    std::snprintf(text, sizeof text, "%g", value);
    return std::string(text);
  };
  page.facts = {
      {"base model", job.model.path()},
      {"training data", o.train_data},
      {"validation data",
       o.validation_data.empty() ? lpo::message(o.validation_pairs, " pairs held out") : o.validation_data},
      {"resolution", lpo::message(job.resolution)},
      {"loss", o.loss},
      {"pairs a step", lpo::message(o.training.train_batch_size)},
      {"learning rate", number(o.training.learning_rate) + ", " + o.lr_scheduler + ", " +
                            lpo::message(o.training.lr_warmup_steps, " steps of warm-up")},
      {"weight decay", number(o.training.optimizer.weight_decay)},
      {"gradient clipping", number(o.training.max_grad_norm)},
      {"pair noise", o.pair_noise},
      {"timesteps", lpo::message("1 to ", o.training.largest_timestep, " in steps of ", o.training.timestep_interval)},
      {"guidance of the features", number(static_cast<double>(o.features.guidance))},
      {"text encoder", o.freeze_text_encoder ? "frozen" : "trained"},
      {"seed", lpo::message(o.training.seed)}};
  page.command = job.command;
  page.version = LPO_VERSION_STRING;
  examples::write_report_page(path, page);
}

}  // namespace train_lrm
