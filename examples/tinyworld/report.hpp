// SPDX-License-Identifier: MIT
// The report of a demo run: report.json, report.html and before_after.png, and a summary for the terminal.
#pragma once

#include <cmath>
#include <cstdio>
#include <string>

#include <lpo/io/file.hpp>
#include <lpo/io/png.hpp>

#include "report_html.hpp"
#include "report_json.hpp"
#include "report_picture.hpp"

namespace tinyworld {

/// Writes the three files into `out_dir`, which is made if it is missing; each file entirely or not at all.
/// lpo::FileError if that fails.
inline void write_report(const std::string& out_dir, const DemoReport& report) {
  lpo::make_directories(out_dir);
  if (!report.grid.empty())
    lpo::write_png(out_dir + "/before_after.png", draw_grid(report.grid), {{"Software", "lpo " + report.lpo_version}});
  // Captions and compiler names come from elsewhere: replace what is not UTF-8 instead of failing at the end of a run.
  lpo::write_text_file(out_dir + "/report.json",
                       report_json(report).dump(2, ' ', false, lpo::OrderedJson::error_handler_t::replace) + "\n");
  lpo::write_text_file(out_dir + "/report.html", report_html(report));
}

namespace detail {

inline void print_row(const char* name, const std::string& before, const std::string& after,
                      const std::string& change) {
  std::printf("  %-26s %10s %10s %10s\n", name, before.c_str(), after.c_str(), change.c_str());
}

/// A share as percent, signed if it is a difference.
inline std::string share_text(double share, bool difference = false) {
  if (!std::isfinite(share)) return "-";
  char text[32];
  std::snprintf(text, sizeof text, difference ? "%+.1f" : "%.1f %%", 100 * share);
  return text;
}

inline std::string plain_text(double value, int decimals, bool difference = false) {
  if (!std::isfinite(value)) return "-";
  char text[32];
  std::snprintf(text, sizeof text, difference ? "%+.*f" : "%.*f", decimals, value);
  return text;
}

}  // namespace detail

/// The same in short, on stdout. `out_dir` is where write_report put the files; nothing is said about them if empty.
inline void print_summary(const DemoReport& report, const std::string& out_dir = "") {
  using detail::plain_text;
  using detail::print_row;
  using detail::share_text;
  const EvaluationReport& e = report.evaluation;
  std::printf("\n%s\n\n", headline(report).c_str());
  print_row("", "base", "aligned", "change");
  print_row("score (0 to 1)", plain_text(e.score_before, 3), plain_text(e.score_after, 3),
            plain_text(e.score_after - e.score_before, 3, true));
  print_row("aesthetic (0 to 10)", plain_text(e.aesthetic_before, 2), plain_text(e.aesthetic_after, 2),
            plain_text(e.aesthetic_after - e.aesthetic_before, 2, true));
  print_row("attribute accuracy", share_text(e.attribute_accuracy_before), share_text(e.attribute_accuracy_after),
            share_text(e.attribute_accuracy_after - e.attribute_accuracy_before, true));
  for (std::size_t a = 0; a < kAttributeCount; ++a)
    print_row(("  " + std::string(kAttributeNames[a])).c_str(), share_text(e.accuracy_before[a]),
              share_text(e.accuracy_after[a]), share_text(e.accuracy_after[a] - e.accuracy_before[a], true));
  print_row("diversity", share_text(1.0), share_text(e.diversity_ratio), share_text(e.diversity_ratio - 1, true));
  std::printf("\n  %-26s %s (95 %% interval %s to %s), %d captions, %d pictures each way\n", "win rate",
              share_text(e.win_rate).c_str(), share_text(e.win_rate_ci95.low).c_str(),
              share_text(e.win_rate_ci95.high).c_str(), e.captions, e.pictures);
  std::printf("  %-26s %s of held-out pairs\n", "reward model accuracy", share_text(report.lrm_accuracy).c_str());
  std::printf("  %-26s %.0f s, at most %.0f MB of memory\n\n", "time", total_seconds(report), report.peak_rss_mb);
  for (const Goal& goal : goals(report)) std::printf("  [%s] %s\n", goal.reached ? "x" : " ", goal.text.c_str());
  if (out_dir.empty()) return;
  std::printf("\n  %s/report.html       open this one\n", out_dir.c_str());
  std::printf("  %s/report.json       the numbers\n", out_dir.c_str());
  std::printf("  %s/before_after.png  pictures\n", out_dir.c_str());
}

}  // namespace tinyworld
