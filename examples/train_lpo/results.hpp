// SPDX-License-Identifier: MIT
// report.html of an LPO run, from its log, its pictures and what the trainer reports.
#pragma once

#include <chrono>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "../common/console.hpp"
#include "../common/memory_plan.hpp"
#include "../common/run_report.hpp"
#include "job.hpp"

namespace train_lpo {

class Results {
 public:
  explicit Results(const Job& job) : job_(job), begin_(std::chrono::steady_clock::now()) {}

  void finish(lpo::LpoTrainerReport report) { trained_ = std::move(report); }

  /// Items that the run trained on, in all its sessions.
  index_t trained_items() const { return trained_.pairs; }

  /// Writes output_dir/report.html; `end` says how the run ended.
  void write(const std::string& end) const {
    const std::string log = job_.options.output_dir + "/metrics.jsonl";
    if (!lpo::file_exists(log)) return;  // it ended before it began
    const auto kept = lpo::read_metric(log, "kept");
    examples::RunReport report;
    report.over = (job_.is("grpo")  ? "Step-wise GRPO"
                   : job_.is("spo") ? "Step-aware preference optimization"
                                    : "Latent preference optimization") +
                  std::string(" · ") + job_.model.name();
    report.title = job_.title() + " " + end;
    report.lead = lpo::message(kept.step.size(), " of ", job_.trainer.max_train_iterations, " iterations over ",
                               job_.prompts.size(), " prompts, with the reward model ", job_.rater(), ".");
    double pairs = 0;
    for (const double one : kept.value) pairs += one;
    report.tiles = {
        {std::to_string(kept.step.size()), "iterations", "a roll-out and its training each"},
        {examples::fixed_text(pairs, 0), "pairs trained on", "kept of the roll-outs' pairs"},
        {examples::last_metric(log, "reward_mean"), "mean reward", "of the last iteration's candidates"},
        {examples::last_metric(log, "train_margin"), "margin", "of the last iteration"},
        {examples::last_metric(log, "skipped_steps", 0), "steps left out", "gradients were not finite"},
        {examples::clock_text(seconds()), "this session", "at most " + examples::memory_text(examples::peak_memory())}};
    report.sections.push_back(curves(log));
    examples::add_validation_pictures(report, job_.options.output_dir + "/validation", job_.options.validation_prompts,
                                      job_.options.validation_images, job_.resolution);
    report.facts = examples::settings_facts(job_.settings);
    report.command = job_.command;
    report.version = LPO_VERSION_STRING;
    examples::write_report_page(job_.options.output_dir + "/report.html", report);
  }

 private:
  double seconds() const { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count(); }

  examples::ReportSection curves(const std::string& log) const {
    examples::ReportSection section{"Alignment", "", {}, {}};
    const auto add = [&](const char* metric, const char* title, const char* text,
                         std::vector<examples::PlotGuide> guides = {}, bool percent = false) {
      section.cards.push_back(examples::metric_card(log, metric, title, text, "iteration", std::move(guides), percent));
    };
    add("reward_mean", "Mean reward of the candidates",
        "What the reward model thinks of the latents that the policy samples.");
    add("train_loss", "LPO loss", "Starts at ln 2, where policy and reference agree.", {{0.693147, "ln 2"}});
    add("implicit_acc", "Implicit accuracy",
        "Share of pairs whose winner has become likelier than the loser, relative to the reference.", {{0.5, "chance"}},
        true);
    add("train_margin", "Margin", "Mean difference of the two probability ratios.", {{0, ""}});
    add("kept", "Kept pairs", "Pairs per roll-out whose best and worst candidate differ by more than the threshold.");
    add("grad_norm", "Gradient norm", "The largest of an iteration, before clipping.");
    if (trained_.timesteps.empty()) return section;
    std::vector<std::string> timesteps;
    examples::PlotSeries share{"share of pairs kept", {}, {}, "a"},
        threshold{"threshold", {}, trained_.thresholds, "c"};
    for (std::size_t i = 0; i < trained_.timesteps.size(); ++i) {
      timesteps.push_back(std::to_string(trained_.timesteps[i]));
      share.y.push_back(trained_.drawn_per_step[i] > 0 ? trained_.kept_per_step[i] / trained_.drawn_per_step[i] : 0.0);
    }
    constexpr double none = std::numeric_limits<double>::quiet_NaN();
    section.cards.push_back({"Kept share by timestep", "Sampling goes from noise (left) to picture (right).",
                             examples::bar_plot(timesteps, share, threshold,
                                                {"kept share by timestep", "timestep (← noise)", "", {}, 0, none})});
    return section;
  }

  const Job& job_;
  std::chrono::steady_clock::time_point begin_;
  lpo::LpoTrainerReport trained_;
};

}  // namespace train_lpo
