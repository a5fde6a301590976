// SPDX-License-Identifier: MIT
// report.html of a training run: one page without outside resources, with curves from its metrics.jsonl.
#pragma once

#include <sys/resource.h>

#include <algorithm>
#include <filesystem>
#include <limits>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include <lpo/io/base64.hpp>
#include <lpo/io/file.hpp>
#include <lpo/train/metrics.hpp>

#include "report_style.hpp"
#include "svg_plot.hpp"

namespace examples {

/// A number and what it is.
struct ReportTile {
  std::string value, name, note;
};

/// A plot and what it shows; `plot` is the SVG of line_plot or bar_plot.
struct ReportCard {
  std::string title, text, plot;
};

/// A picture as the bytes of a PNG file.
struct ReportPicture {
  std::string caption, png;
  int width = 0, height = 0;
};

/// A part of the page: cards in a grid, pictures in rows of equal size.
struct ReportSection {
  std::string title, text;
  std::vector<ReportCard> cards;
  std::vector<ReportPicture> pictures;
};

struct RunReport {
  std::string over, title, lead;  ///< the small line above, the headline, and a sentence or two
  std::vector<ReportTile> tiles;
  std::vector<ReportSection> sections;
  std::vector<std::pair<std::string, std::string>> facts;  ///< settings: name, value
  std::string command, version;
};

/// The most memory that this process had, in bytes.
inline double peak_memory() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) * 1024;
}

/// A card with the curve of one metric, smoothed; one without values says so.
inline ReportCard metric_card(const std::string& metrics_path, const std::string& metric, const std::string& title,
                              const std::string& text, const std::string& x_label = "step",
                              std::vector<PlotGuide> guides = {}, bool percent = false) {
  constexpr double none = std::numeric_limits<double>::quiet_NaN();
  auto curve = lpo::read_metric(metrics_path, metric);
  PlotSeries series{"", std::move(curve.step), std::move(curve.value), "a", true, false};
  return {title, text, line_plot({series}, {title, x_label, "", std::move(guides), none, none, percent})};
}

/// The newest value of a metric, a dash if there is none.
inline std::string last_metric(const std::string& metrics_path, const std::string& metric, int decimals = 3) {
  const auto curve = lpo::read_metric(metrics_path, metric);
  return curve.value.empty() ? "–" : fixed_text(curve.value.back(), decimals);
}

/// A settings file's lines as facts; comments are left out.
inline std::vector<std::pair<std::string, std::string>> settings_facts(const std::string& toml) {
  std::vector<std::pair<std::string, std::string>> list;
  for (std::size_t begin = 0; begin < toml.size();) {
    const std::size_t end = std::min(toml.find('\n', begin), toml.size());
    const std::string line = toml.substr(begin, end - begin);
    const std::size_t equals = line.find('=');
    if (!line.starts_with('#') && equals != std::string::npos)
      list.emplace_back(line.substr(0, equals), line.substr(equals + 1));
    begin = end + 1;
  }
  return list;
}

/// Sections of the first and the last validation pictures in `folder`, of whichever session drew them.
inline void add_validation_pictures(RunReport& report, const std::string& folder,
                                    const std::vector<std::string>& prompts, int images, int resolution) {
  std::vector<std::string> drawn;
  std::error_code error;
  for (std::filesystem::directory_iterator it(folder, error), end; !error && it != end; it.increment(error))
    drawn.push_back(it->path().filename().string());
  if (drawn.empty()) return;
  std::sort(drawn.begin(), drawn.end());
  const auto add = [&](const std::string& name, const char* title, const char* text) {
    ReportSection section{title + (" (" + name) + ")", text, {}, {}};
    for (std::size_t p = 0; p < prompts.size(); ++p)
      for (int i = 0; i < images; ++i) {
        const std::string path = lpo::message(folder, "/", name, "/", p, "-", i, ".png");
        if (lpo::file_exists(path))
          section.pictures.push_back({prompts[p], lpo::read_text_file(path), resolution, resolution});
      }
    report.sections.push_back(std::move(section));
  };
  add(drawn.front(), "First pictures", "Later ones start from the same noise.");
  if (drawn.size() > 1) add(drawn.back(), "Last pictures", "");
}

namespace detail {

inline std::string report_section(const ReportSection& section) {
  std::string html = "\n<h2>" + escape_html(section.title) + "</h2>";
  if (!section.text.empty()) html += "<p class=\"intro\">" + escape_html(section.text) + "</p>";
  if (!section.cards.empty()) html += "<div class=\"cards\">";
  for (const ReportCard& card : section.cards)
    html += "<section class=\"card\"><h3>" + escape_html(card.title) + "</h3><p>" + escape_html(card.text) + "</p>" +
            card.plot + "</section>\n";
  if (!section.cards.empty()) html += "</div>";
  if (section.pictures.empty()) return html;
  html += section.pictures.front().width <= 128 ? "<div class=\"pictures small\">" : "<div class=\"pictures\">";
  for (const ReportPicture& picture : section.pictures)
    html += "<figure><img width=\"" + std::to_string(picture.width) + "\" height=\"" + std::to_string(picture.height) +
            "\" alt=\"" + escape_html(picture.caption) + "\" src=\"data:image/png;base64," + lpo::base64(picture.png) +
            "\"><figcaption>" + escape_html(picture.caption) + "</figcaption></figure>\n";
  return html + "</div>";
}

}  // namespace detail

/// The whole page. All texts are escaped; plots are inserted as they are.
inline std::string report_page(const RunReport& report) {
  std::string html =
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><meta name=\"color-scheme\" "
      "content=\"light dark\"><title>";
  html +=
      escape_html(report.title) + "</title>\n<style>" + std::string(kReportStyle) + "</style></head>\n<body><main>\n";
  html += "<header><p class=\"over\">" + escape_html(report.over) + "</p><h1>" + escape_html(report.title) +
          "</h1><p class=\"lead\">" + escape_html(report.lead) + "</p></header>\n<div class=\"tiles\">";
  for (const ReportTile& tile : report.tiles)
    html += "<div class=\"tile\"><b>" + escape_html(tile.value) + "</b><span>" + escape_html(tile.name) +
            "</span><small>" + escape_html(tile.note) + "</small></div>";
  html += "</div>\n";
  for (const ReportSection& section : report.sections) html += detail::report_section(section);
  html += "\n<h2>Settings</h2><table class=\"facts\"><tbody>";
  for (const auto& [name, value] : report.facts)
    html += "<tr><th>" + escape_html(name) + "</th><td>" + escape_html(value) + "</td></tr>";
  html += "</tbody></table>\n<footer><code>" + escape_html(report.command) + "</code><br>lpo " +
          escape_html(report.version) + "</footer>\n</main></body></html>\n";
  return html;
}

/// Writes the page, entirely or not at all.
inline void write_report_page(const std::string& path, const RunReport& report) {
  lpo::write_text_file(path, report_page(report));
}

}  // namespace examples
