// SPDX-License-Identifier: MIT
// report.html: one page without outside resources that says whether a run worked, and shows it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include <lpo/io/base64.hpp>
#include <lpo/io/png.hpp>

#include "../common/report_style.hpp"
#include "../common/svg_plot.hpp"
#include "report_data.hpp"
#include "report_json.hpp"
#include "report_picture.hpp"

namespace tinyworld {

namespace detail {

inline std::string percent(double share, int decimals = 0) {
  return examples::fixed_text(100 * share, decimals) + " %";
}

inline std::string signed_text(double value, int decimals) {
  const std::string text = examples::fixed_text(std::fabs(value), decimals);
  if (text.find_first_of("123456789") == std::string::npos) return text;
  return (value > 0 ? "+" : "−") + text;
}

inline std::string minutes_text(double seconds) {
  const long whole = std::lround(seconds);
  if (whole < 60) return examples::fixed_text(seconds, seconds < 10 ? 1 : 0) + " s";
  return std::to_string(whole / 60) + " min " + std::to_string(whole % 60) + " s";
}

/// A setting as short as it can be said.
inline std::string setting_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

}  // namespace detail

/// One sentence in plain words: did alignment work, and what to doubt.
inline std::string headline(const DemoReport& report) {
  const EvaluationReport& e = report.evaluation;
  const std::string interval =
      "(95 % interval " + detail::percent(e.win_rate_ci95.low) + " to " + detail::percent(e.win_rate_ci95.high) + ")";
  std::string text;
  if (e.win_rate_ci95.low > 0.5) {
    text = "It worked: given the same caption and the same noise, the aligned model draws the better picture in " +
           detail::percent(e.win_rate) + " of " + std::to_string(e.pictures) + " cases " + interval;
  } else if (e.win_rate_ci95.high < 0.5) {
    text = "It did not work: the aligned model draws the better picture in only " + detail::percent(e.win_rate) +
           " of " + std::to_string(e.pictures) + " cases " + interval;
  } else {
    text = "No clear effect: the aligned model draws the better picture in " + detail::percent(e.win_rate) + " of " +
           std::to_string(e.pictures) + " cases " + interval + ", which may be chance";
  }
  if (e.diversity_ratio < 0.8)
    text += std::string(e.win_rate_ci95.low > 0.5 ? ", but" : ", and") +
            " its pictures have become more alike: " + detail::percent(e.diversity_ratio) + " of the diversity is left";
  return text + ".";
}

namespace detail {

inline std::string tile(const std::string& value, const std::string& name, const std::string& note) {
  return "<div class=\"tile\"><b>" + value + "</b><span>" + name + "</span><small>" + note + "</small></div>";
}

inline std::string tiles(const DemoReport& report) {
  const EvaluationReport& e = report.evaluation;
  std::string html = "<div class=\"tiles\">";
  html += tile(percent(e.win_rate), "win rate over the base model",
               "95 % interval " + percent(e.win_rate_ci95.low) + " to " + percent(e.win_rate_ci95.high));
  html += tile(examples::fixed_text(e.score_before, 2) + " → " + examples::fixed_text(e.score_after, 2), "mean score",
               "gain " + signed_text(e.score_gain_ci95.low, 3) + " to " + signed_text(e.score_gain_ci95.high, 3));
  html += tile(percent(e.attribute_accuracy_before) + " → " + percent(e.attribute_accuracy_after), "attributes right",
               "shape, colour, size, place, …");
  html += tile(percent(e.diversity_ratio), "diversity kept", "distance between pictures of one caption");
  html += tile(percent(report.lrm_accuracy), "reward model right", "on held-out pairs, at the least noise");
  html += tile(minutes_text(total_seconds(report)), "for everything",
               std::to_string(report.threads) + (report.threads == 1 ? " thread, " : " threads, ") +
                   examples::fixed_text(report.peak_rss_mb, 0) + " MB");
  return html + "</div>";
}

inline std::string goal_list(const DemoReport& report) {
  std::string html = "<ul class=\"goals\">";
  for (const Goal& goal : goals(report)) {
    html += goal.reached ? "<li class=\"yes\"><i>✓</i> " : "<li class=\"no\"><i>✗</i> ";
    html += examples::escape_html(goal.text) + (goal.reached ? "" : " <em>missed</em>") + "</li>";
  }
  return html + "</ul>";
}

inline std::string picture(const Image& image, const std::string& alternative) {
  return "<img width=\"" + std::to_string(image.width) + "\" height=\"" + std::to_string(image.height) + "\" alt=\"" +
         examples::escape_html(alternative) + "\" src=\"data:image/png;base64," +
         lpo::base64(lpo::encode_png(enlarged(image))) + "\">";
}

inline std::string gallery(const std::vector<BeforeAfter>& grid) {
  std::string html = "<div class=\"gallery\">";
  for (const BeforeAfter& pair : grid) {
    const std::string before = examples::fixed_text(pair.score_before, 2),
                      after = examples::fixed_text(pair.score_after, 2);
    const char* trend = after == before                        ? ""
                        : pair.score_after > pair.score_before ? " class=\"up\""
                                                               : " class=\"down\"";
    html += "<figure><figcaption>" + examples::escape_html(pair.caption) + "</figcaption><div>";
    html += "<p>" + picture(pair.before, "base model") + "<span>before <b>" + before + "</b></span></p>";
    html += "<p>" + picture(pair.after, "aligned model") + "<span>after <b";
    html += trend;
    html += ">" + after + "</b></span></p></div></figure>\n";
  }
  return html + "</div>";
}

/// Two dots on a track: where a measure was, and where it is now; both in [0, 1].
inline std::string change_mark(double before, double after) {
  if (!std::isfinite(before) || !std::isfinite(after)) return "";
  char text[480];
  const double from = 6 + 308 * std::clamp(before, 0.0, 1.0), to = 6 + 308 * std::clamp(after, 0.0, 1.0);
  std::snprintf(text, sizeof text,
                "<svg class=\"mark\" viewBox=\"0 0 320 14\" aria-hidden=\"true\"><path class=\"track\" d=\"M6 7H314\"/>"
                "<path class=\"move\" d=\"M%.1f 7H%.1f\"/><circle class=\"f-b\" cx=\"%.1f\" cy=\"7\" r=\"4\"/>"
                "<circle class=\"f-a\" cx=\"%.1f\" cy=\"7\" r=\"5\"/></svg>",
                from, to, from, to);
  return text;
}

inline std::string measure_row(const std::string& name, const std::string& style, const std::string& before,
                               const std::string& after, const std::string& change, const std::string& mark) {
  return "<tr" + style + "><th>" + name + "</th><td>" + before + "</td><td>" + after + "</td><td>" + change +
         "</td><td class=\"wide\">" + mark + "</td></tr>";
}

inline std::string measures(const DemoReport& report) {
  const EvaluationReport& e = report.evaluation;
  std::string html =
      "<div class=\"scroll\"><table class=\"measures\"><thead><tr><th></th><th><i class=\"key f-b\"></i>base</th>"
      "<th><i class=\"key f-a\"></i>aligned</th><th>change</th><th class=\"wide\"></th></tr></thead><tbody>";
  html +=
      measure_row("Score, 0 to 1", "", examples::fixed_text(e.score_before, 3), examples::fixed_text(e.score_after, 3),
                  signed_text(e.score_after - e.score_before, 3), change_mark(e.score_before, e.score_after));
  html +=
      measure_row("Aesthetic, 0 to 10", "", examples::fixed_text(e.aesthetic_before, 2),
                  examples::fixed_text(e.aesthetic_after, 2), signed_text(e.aesthetic_after - e.aesthetic_before, 2),
                  change_mark(e.aesthetic_before / 10, e.aesthetic_after / 10));
  const auto share_row = [&](const std::string& name, const std::string& style, double before, double after) {
    if (!std::isfinite(before) || !std::isfinite(after)) return;
    html += measure_row(name, style, percent(before, 1), percent(after, 1), signed_text(100 * (after - before), 1),
                        change_mark(before, after));
  };
  share_row("Attributes right", "", e.attribute_accuracy_before, e.attribute_accuracy_after);
  for (std::size_t a = 0; a < kAttributeCount; ++a)
    share_row(std::string(kAttributeNames[a]), " class=\"part\"", e.accuracy_before[a], e.accuracy_after[a]);
  html += measure_row("Diversity, relative", "", percent(1), percent(e.diversity_ratio),
                      signed_text(100 * (e.diversity_ratio - 1), 1), "");
  return html + "</tbody></table></div>";
}

inline std::string card(const std::string& title, const std::string& text, const std::string& plot) {
  return "<section class=\"card\"><h3>" + title + "</h3><p>" + text + "</p>" + plot + "</section>\n";
}

/// A bar that fills `share` of its cell.
inline std::string bar(double share) {
  return "<div class=\"bar\" style=\"width:" + examples::fixed_text(100 * std::clamp(share, 0.0, 1.0), 1) +
         "%\"></div>";
}

inline examples::PlotSeries series_of(const lpo::MetricCurve& curve, bool smooth, bool markers = false) {
  return {"", curve.step, curve.value, "a", smooth, markers};
}

inline std::string reward_model_cards(const DemoReport& report) {
  const double none = std::nan("");
  std::string html = "<div class=\"cards\">";
  html += card("Training loss", "Cross entropy of the raters' choice; ln 2 is a coin toss.",
               examples::line_plot({series_of(report.lrm_loss, true)},
                                   {"reward model loss", "training step", "loss", {{0.693147, "ln 2"}}, none, none}));
  html += card(
      "Held-out accuracy while training", "Pairs that were never trained on, ties left out.",
      examples::line_plot({series_of(report.lrm_validation, false, true)},
                          {"held-out accuracy", "training step", "accuracy", {{0.5, "chance"}}, none, none, true}));
  examples::PlotSeries accuracy{"", {}, {}, "a", false, true};
  for (const auto& [timestep, value] : report.lrm_accuracy_by_timestep) {
    accuracy.x.push_back(timestep);
    accuracy.y.push_back(value);
  }
  std::vector<examples::PlotGuide> guides{{0.5, "chance"}};
  if (report.rater_ceiling > 0.5) guides.push_back({report.rater_ceiling, "a rater against the scorer"});
  html += card("Accuracy by timestep", "The more noise in the latent, the harder to tell which picture it becomes.",
               examples::line_plot(
                   {accuracy}, {"accuracy by timestep", "timestep (noise →)", "accuracy", guides, none, none, true}));
  html +=
      "<section class=\"card\"><h3>What it learned from</h3><p>Pictures by the base model, compared by simulated "
      "raters. The filter "
      "keeps pairs whose winner also fits the caption better and is not drawn much worse.</p><table "
      "class=\"funnel\"><tbody>";
  const auto row = [&](const char* name, const std::string& value, double share) {
    html +=
        std::string("<tr><th>") + name + "</th><td>" + value + "</td><td class=\"wide\">" + bar(share) + "</td></tr>";
  };
  const auto rated = static_cast<double>(report.pairs_rated);
  const auto pair_row = [&](const char* name, lpo::index_t count) {
    row(name, std::to_string(count), rated > 0 ? static_cast<double>(count) / rated : 0);
  };
  pair_row("pairs rated", report.pairs_rated);
  pair_row("kept by the filter", report.pairs_kept);
  pair_row("ties among those", report.pairs_tied);
  row("rater agrees with the scorer", percent(report.rater_ceiling), report.rater_ceiling);
  return html + "</tbody></table></section></div>";
}

inline std::string alignment_cards(const DemoReport& report) {
  const double none = std::nan("");
  const auto plot = [&](const lpo::MetricCurve& curve, const char* name, std::vector<examples::PlotGuide> guides = {},
                        bool percent_axis = false) {
    return examples::line_plot({series_of(curve, true)},
                               {name, "iteration", "", std::move(guides), none, none, percent_axis});
  };
  std::string html = "<div class=\"cards\">";
  html += card("Mean reward of the candidates", "What the reward model thinks of the latents that the policy samples.",
               plot(report.reward, "mean reward"));
  html += card("LPO loss", "Starts at ln 2, where policy and reference agree.",
               plot(report.lpo_loss, "LPO loss", {{0.693147, "ln 2"}}));
  html += card("Implicit accuracy",
               "Share of pairs whose winner has become likelier than the loser, relative to the reference.",
               plot(report.implicit_accuracy, "implicit accuracy", {{0.5, "chance"}}, true));
  html += card("Margin", "Mean difference of the two probability ratios.", plot(report.margin, "margin", {{0, ""}}));
  html += card("Kept pairs", "Pairs per roll-out whose best and worst candidate differ by more than the threshold.",
               plot(report.kept, "kept pairs"));
  std::vector<std::string> timesteps;
  for (const int timestep : report.timesteps) timesteps.push_back(std::to_string(timestep));
  examples::PlotSeries share{"share of pairs kept", {}, report.kept_share, "a"};
  examples::PlotSeries threshold{"threshold", {}, report.thresholds, "c"};
  html += card("Kept share by timestep",
               "Sampling goes from noise (left) to picture (right). A pair is kept if the reward model prefers one "
               "candidate by more "
               "than the threshold.",
               examples::bar_plot(timesteps, share, threshold,
                                  {"kept share by timestep", "timestep (← noise)", "", {}, 0, none}));
  return html + "</div>";
}

inline std::string time_table(const DemoReport& report) {
  const double total = total_seconds(report);
  std::string html = "<table><thead><tr><th>Stage</th><th>seconds</th><th class=\"wide\"></th></tr></thead><tbody>";
  for (const auto& [stage, seconds] : report.seconds) {
    html += "<tr><th>" + examples::escape_html(stage) + "</th><td>" + examples::fixed_text(seconds, 1) +
            "</td><td class=\"wide\">" + bar(total > 0 ? seconds / total : 0) + "</td></tr>";
  }
  return html + "<tr class=\"total\"><th>total</th><td>" + examples::fixed_text(total, 1) +
         "</td><td></td></tr></tbody></table>";
}

inline std::string fact_table(const DemoReport& report) {
  std::vector<std::pair<std::string, std::string>> facts{
      {"LPO roll-outs", std::to_string(report.lpo_iterations)},
      {"LPO optimiser steps", std::to_string(report.lpo_optimizer_steps)},
      {"LPO pairs", std::to_string(report.lpo_pairs)},
      {"seed", std::to_string(report.seed)}};
  for (const auto& [name, value] : report.settings) facts.emplace_back(name, setting_text(value));
  std::string html = "<table class=\"facts\"><tbody>";
  for (const auto& [name, value] : facts)
    html += "<tr><th>" + examples::escape_html(name) + "</th><td>" + examples::escape_html(value) + "</td></tr>";
  return html + "</tbody></table>";
}

}  // namespace detail

/// The whole page.
inline std::string report_html(const DemoReport& report) {
  const EvaluationReport& e = report.evaluation;
  const std::string sentence = headline(report);
  const std::size_t colon = sentence.find(':');
  std::string html =
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" "
      "content=\"light dark\"><title>lpo demo, seed " +
      std::to_string(report.seed) + "</title>\n<style>" + std::string(examples::kReportStyle) + "</style></head>\n<body><main>\n";
  html += "<header><p class=\"over\">Latent preference optimization · tiny world · seed " +
          std::to_string(report.seed) + "</p>";
  html += "<h1>" + examples::escape_html(sentence.substr(0, colon)) + "</h1><p class=\"lead\">";
  std::string rest = sentence.substr(std::min(sentence.size(), colon + 2));
  if (!rest.empty() && rest[0] >= 'a' && rest[0] <= 'z') rest[0] = static_cast<char>(rest[0] - 'a' + 'A');
  html += examples::escape_html(rest) + "</p></header>\n";
  html += detail::tiles(report) + "\n" + detail::goal_list(report) + "\n";
  if (!report.grid.empty())
    html +=
        "<h2>Before and after</h2><p class=\"intro\">Captions that no training saw; left the base model, right the "
        "aligned "
        "one, from the same noise. Not selected: the first " +
        std::to_string(report.grid.size()) + " captions of the evaluation, first picture each.</p>\n" +
        detail::gallery(report.grid);
  html += "\n<h2>Measured</h2><p class=\"intro\">" + std::to_string(e.captions) +
          " captions that were never trained on, " + std::to_string(e.pictures) +
          " pictures by each model, compared in pairs.</p>\n" + detail::measures(report);
  html += "\n<h2>Reward model</h2>\n" + detail::reward_model_cards(report);
  html += "\n<h2>Alignment</h2>\n" + detail::alignment_cards(report);
  html += "\n<div class=\"split\"><div><h2>Time</h2>" + detail::time_table(report) + "</div><div><h2>Settings</h2>" +
          detail::fact_table(report) + "</div></div>\n";
  html += "<footer><code>" + examples::escape_html(report.command) + "</code><br>lpo " +
          examples::escape_html(report.lpo_version) + " · " + examples::escape_html(report.compiler) + " · " +
          std::to_string(report.threads) + (report.threads == 1 ? " thread" : " threads") + " · at most " +
          examples::fixed_text(report.peak_rss_mb, 0) + " MB of memory</footer>\n</main></body></html>\n";
  return html;
}

}  // namespace tinyworld
