// SPDX-License-Identifier: MIT
// report.html of a Diffusion-DPO run, from its log, its pictures and what the trainer reports.
#pragma once

#include <chrono>
#include <string>
#include <utility>
#include <vector>

#include "../common/console.hpp"
#include "../common/memory_plan.hpp"
#include "../common/run_report.hpp"
#include "job.hpp"

namespace train_dpo {

class Results {
 public:
  explicit Results(const Job& job) : job_(job), begin_(std::chrono::steady_clock::now()) {}

  void encoded(const examples::EncodeReport& report) { data_ = report; }
  void finish(const lpo::DpoTrainerReport& report) { trained_ = report; }

  /// Writes output_dir/report.html; `end` says how the run ended.
  void write(const std::string& end) const {
    const std::string log = job_.options.output_dir + "/metrics.jsonl";
    if (!lpo::file_exists(log)) return;  // it ended before it began
    const auto losses = lpo::read_metric(log, "grad_norm");
    examples::RunReport report;
    report.over = "Diffusion-DPO · " + job_.model.name();
    report.title = "Diffusion-DPO " + end;
    report.lead = lpo::message(losses.step.size(), " of ", job_.trainer.max_train_steps, " steps of ",
                               job_.trainer.train_batch_size, " pairs from ", job_.options.train_data, ".");
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
    report.tiles = {
        {std::to_string(losses.step.size()), "steps", "of the optimizer, or left out"},
        {trained_.pairs > 0 ? std::to_string(trained_.pairs) : "–", "pairs", "with a preference; ties are dropped"},
        {examples::last_metric(log, "train_loss"), "loss", "of the last step; ln 2 is no preference"},
        {examples::last_metric(log, "implicit_acc"), "implicit accuracy", "of the last step"},
        {examples::last_metric(log, "skipped_steps", 0), "steps left out", "gradients were not finite"},
        {examples::clock_text(seconds), "this session", "at most " + examples::memory_text(examples::peak_memory())}};
    report.sections.push_back(curves(log));
    if (data_.counts.seen() > 0)
      report.sections.push_back({"Data",
                                 lpo::message(data_.counts.seen(), " labelled pairs, ", data_.counts.kept(),
                                              " kept, of which ", data_.counts.kept_ties, " are ties; ",
                                              data_.unlabelled, " without a label; ", data_.images, " pictures."),
                                 {},
                                 {}});
    examples::add_validation_pictures(report, job_.options.output_dir + "/validation", job_.options.validation_prompts,
                                      job_.options.validation_images, job_.resolution);
    report.facts = examples::settings_facts(job_.settings);
    report.command = job_.command;
    report.version = LPO_VERSION_STRING;
    examples::write_report_page(job_.options.output_dir + "/report.html", report);
  }

 private:
  static examples::ReportSection curves(const std::string& log) {
    examples::ReportSection section{"Alignment", "", {}, {}};
    const auto add = [&](const char* metric, const char* title, const char* text,
                         std::vector<examples::PlotGuide> guides = {}, bool percent = false) {
      section.cards.push_back(examples::metric_card(log, metric, title, text, "step", std::move(guides), percent));
    };
    add("train_loss", "Loss", "Starts at ln 2, where policy and reference agree.", {{0.693147, "ln 2"}});
    add("implicit_acc", "Implicit accuracy",
        "Share of pairs where the policy denoises the preferred picture better than the other, relative to the "
        "reference.",
        {{0.5, "chance"}}, true);
    add("train_margin", "Margin", "Mean of what the loss's sigmoid sees: positive where the preferred picture gains.",
        {{0, ""}});
    add("grad_norm", "Gradient norm", "Before clipping.");
    add("lr", "Learning rate", "As the schedule gave it.");
    return section;
  }

  const Job& job_;
  std::chrono::steady_clock::time_point begin_;
  lpo::DpoTrainerReport trained_;
  examples::EncodeReport data_;
};

}  // namespace train_dpo
