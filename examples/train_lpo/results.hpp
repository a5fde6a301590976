// SPDX-License-Identifier: MIT
// report.html of an LPO run, from its log, its pictures and what the trainer reports.
#pragma once

#include <algorithm>
#include <chrono>
#include <filesystem>
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

  /// Writes output_dir/report.html; `end` says how the run ended.
  void write(const std::string& end) const {
    const std::string log = job_.options.output_dir + "/metrics.jsonl";
    if (!lpo::file_exists(log)) return;  // it ended before it began
    const auto kept = lpo::read_metric(log, "kept");
    examples::RunReport report;
    report.over = "Latent preference optimization · " + job_.model.name();
    report.title = "LPO " + end;
    report.lead = lpo::message(kept.step.size(), " of ", job_.trainer.max_train_iterations, " iterations over ",
                               job_.prompts.size(), " prompts, with the reward model ", job_.options.lrm, ".");
    double pairs = 0;
    for (const double one : kept.value) pairs += one;
    report.tiles = {
        {std::to_string(kept.step.size()), "iterations", "a roll-out and its training each"},
        {examples::fixed_text(pairs, 0), "pairs trained on", "kept of the roll-outs' pairs"},
        {last(log, "reward_mean"), "mean reward", "of the last iteration's candidates"},
        {last(log, "train_margin"), "margin", "of the last iteration"},
        {last(log, "skipped_steps", 0), "steps left out", "gradients were not finite"},
        {examples::clock_text(seconds()), "this session", "at most " + examples::memory_text(examples::peak_memory())}};
    report.sections.push_back(curves(log));
    add_pictures(report);
    report.facts = facts();
    report.command = job_.command;
    report.version = LPO_VERSION_STRING;
    examples::write_report_page(job_.options.output_dir + "/report.html", report);
  }

 private:
  static std::string last(const std::string& log, const char* name, int decimals = 3) {
    const auto curve = lpo::read_metric(log, name);
    return curve.value.empty() ? "–" : examples::fixed_text(curve.value.back(), decimals);
  }

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

  /// The first validation pictures and the last, of whichever session drew them.
  void add_pictures(examples::RunReport& report) const {
    const std::string folder = job_.options.output_dir + "/validation";
    std::vector<std::string> epochs;
    std::error_code error;
    for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
      epochs.push_back(it->path().filename().string());
    if (epochs.empty()) return;
    std::sort(epochs.begin(), epochs.end());
    const auto add = [&](const std::string& epoch, const char* title, const char* text) {
      examples::ReportSection section{title + (" (" + epoch) + ")", text, {}, {}};
      const auto& prompts = job_.options.validation_prompts;
      for (std::size_t p = 0; p < prompts.size(); ++p)
        for (int i = 0; i < job_.options.validation_images; ++i) {
          const std::string path = lpo::message(folder, "/", epoch, "/", p, "-", i, ".png");
          if (lpo::file_exists(path))
            section.pictures.push_back({prompts[p], lpo::read_text_file(path), job_.resolution, job_.resolution});
        }
      report.sections.push_back(std::move(section));
    };
    add(epochs.front(), "First pictures", "Later ones start from the same noise.");
    if (epochs.size() > 1) add(epochs.back(), "Last pictures", "");
  }

  /// The settings file's lines.
  std::vector<std::pair<std::string, std::string>> facts() const {
    std::vector<std::pair<std::string, std::string>> list;
    for (std::size_t begin = 0; begin < job_.settings.size();) {
      const std::size_t end = std::min(job_.settings.find('\n', begin), job_.settings.size());
      const std::string line = job_.settings.substr(begin, end - begin);
      const std::size_t equals = line.find('=');
      if (!line.starts_with('#') && equals != std::string::npos)
        list.emplace_back(line.substr(0, equals), line.substr(equals + 1));
      begin = end + 1;
    }
    return list;
  }

  const Job& job_;
  std::chrono::steady_clock::time_point begin_;
  lpo::LpoTrainerReport trained_;
};

}  // namespace train_lpo
