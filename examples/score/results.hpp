// SPDX-License-Identifier: MIT
// Scores as an aligned table, CSV, JSON or a plot.
#pragma once

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include <lpo/io/json.hpp>

#include "../common/svg_plot.hpp"
#include "job.hpp"

namespace score {

inline std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4f", value);
  return text;
}

/// Quoted where CSV asks for it.
inline std::string csv_text(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

/// At most `limit` bytes, not cut inside a character.
inline std::string shortened(const std::string& text, std::size_t limit) {
  if (text.size() <= limit) return text;
  std::size_t end = limit - 3;
  while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  return text.substr(0, end) + "...";
}

/// A line per input and prompt, a column per timestep. The best input of each prompt and timestep has a star.
inline std::string table_text(const Job& job, const Scores& scores) {
  std::vector<std::vector<std::string>> lines = {{"input", "prompt"}};
  for (const int t : job.timesteps) lines[0].push_back("t = " + std::to_string(t));
  for (std::size_t i = 0; i < job.inputs.size(); ++i)
    for (std::size_t p = 0; p < job.prompts.size(); ++p) {
      lines.push_back({job.inputs[i].name, shortened(job.prompts[p], 40)});
      for (std::size_t t = 0; t < job.timesteps.size(); ++t) {
        bool best = job.inputs.size() > 1;
        for (std::size_t other = 0; other < job.inputs.size(); ++other)
          best = best && scores.at(other, p, t) <= scores.at(i, p, t);
        lines.back().push_back(number_text(static_cast<double>(scores.at(i, p, t))) + (best ? "*" : " "));
      }
    }
  std::vector<std::size_t> widths(lines[0].size(), 0);
  for (const auto& line : lines)
    for (std::size_t c = 0; c < line.size(); ++c) widths[c] = std::max(widths[c], line[c].size());
  std::string text;
  for (const auto& line : lines) {
    for (std::size_t c = 0; c < line.size(); ++c) {
      const std::string space(widths[c] - line[c].size(), ' ');
      text += (c == 0 ? "" : "  ") + (c < 2 ? line[c] + space : space + line[c]);
    }
    while (text.ends_with(' ')) text.pop_back();
    text += '\n';
  }
  return text;
}

inline std::string csv_lines(const Job& job, const Scores& scores) {
  std::string text = "input,prompt,timestep,score\n";
  for (std::size_t i = 0; i < job.inputs.size(); ++i)
    for (std::size_t p = 0; p < job.prompts.size(); ++p)
      for (std::size_t t = 0; t < job.timesteps.size(); ++t)
        text += csv_text(job.inputs[i].name) + "," + csv_text(job.prompts[p]) + "," + std::to_string(job.timesteps[t]) +
                "," + number_text(static_cast<double>(scores.at(i, p, t))) + "\n";
  return text;
}

inline std::string json_text(const Job& job, const Scores& scores) {
  lpo::OrderedJson list = lpo::OrderedJson::array();
  for (std::size_t i = 0; i < job.inputs.size(); ++i)
    for (std::size_t p = 0; p < job.prompts.size(); ++p) {
      lpo::OrderedJson entry;
      entry["input"] = job.inputs[i].name;
      entry["prompt"] = job.prompts[p];
      entry["timesteps"] = job.timesteps;
      entry["scores"] = lpo::OrderedJson::array();
      for (std::size_t t = 0; t < job.timesteps.size(); ++t) entry["scores"].push_back(scores.at(i, p, t));
      list.push_back(entry);
    }
  return list.dump(1) + "\n";
}

/// A curve per input and prompt over the timesteps, as an SVG file of its own.
inline std::string plot_svg(const Job& job, const Scores& scores) {
  const char* kinds[] = {"a", "b", "c", "d", "e", "f"};
  std::vector<examples::PlotSeries> series;
  for (std::size_t i = 0; i < job.inputs.size(); ++i)
    for (std::size_t p = 0; p < job.prompts.size(); ++p) {
      examples::PlotSeries one;
      one.name = job.inputs[i].name.substr(job.inputs[i].name.find_last_of('/') + 1);
      if (job.prompts.size() > 1) one.name += ": " + shortened(job.prompts[p], 24);
      one.kind = kinds[series.size() % 6];
      one.markers = true;
      std::vector<std::pair<int, float>> points;
      for (std::size_t t = 0; t < job.timesteps.size(); ++t) points.emplace_back(job.timesteps[t], scores.at(i, p, t));
      std::sort(points.begin(), points.end());
      for (const auto& [timestep, value] : points) {
        one.x.push_back(timestep);
        one.y.push_back(static_cast<double>(value));
      }
      series.push_back(std::move(one));
    }
  examples::PlotOptions options;
  options.title = "score of the latent reward model against the timestep";
  options.x_label = "timestep";
  options.y_label = "score";
  options.width = 640;
  options.height = 320;
  return examples::standalone_svg(examples::line_plot(series, options));
}

}  // namespace score
