// SPDX-License-Identifier: MIT
// MetricsLog: one JSON object per line, safe to append to across an interrupted and a resumed run.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <lpo/base/extents.hpp>
#include <lpo/io/file.hpp>

namespace lpo::inline LPO_ABI {

using MetricValues = std::vector<std::pair<std::string, double>>;

/// Writes `{"step": 12, "loss": 0.69, ...}` lines. Opening it at `first_step` drops lines of that step and later ones, which
/// an interrupted run wrote after its last checkpoint. Numbers that are not finite are written as null. An empty path logs
/// nowhere.
class MetricsLog {
 public:
  MetricsLog(std::string path, index_t first_step) : path_(std::move(path)) {
    if (path_.empty()) return;
    std::string kept;
    if (std::FILE* old = std::fopen(path_.c_str(), "rb")) {
      std::string text;
      char buffer[4096];
      for (std::size_t n; (n = std::fread(buffer, 1, sizeof buffer, old)) > 0;) text.append(buffer, n);
      std::fclose(old);
      kept = lines_before(text, first_step);
    }
    write_file_atomically(path_, [&](FileSink& sink) { sink.write(kept.data(), kept.size()); });
    file_ = std::fopen(path_.c_str(), "ab");
    if (file_ == nullptr) throw FileError(message("[MetricsLog] cannot append to ", path_, "; check the folder's permissions"));
  }
  MetricsLog(const MetricsLog&) = delete;
  MetricsLog& operator=(const MetricsLog&) = delete;
  ~MetricsLog() {
    if (file_ != nullptr) std::fclose(file_);
  }

  void write(index_t step, const MetricValues& values) {
    if (file_ == nullptr) return;
    nlohmann::ordered_json line;
    line["step"] = step;
    for (const auto& [name, value] : values) {
      if (std::isfinite(value))
        line[name] = value;
      else
        line[name] = nullptr;
    }
    const std::string text = line.dump() + "\n";
    if (std::fwrite(text.data(), 1, text.size(), file_) != text.size() || std::fflush(file_) != 0)
      throw FileError(message("[MetricsLog] cannot write to ", path_, "; is the disk full?"));
  }

 private:
  static std::string lines_before(std::string_view text, index_t first_step) {
    std::string kept;
    while (!text.empty()) {
      const std::size_t end = text.find('\n');
      if (end == std::string_view::npos) break;  // a line cut off by a crash
      const auto line = nlohmann::json::parse(text.substr(0, end), nullptr, false);
      if (line.is_object() && line.contains("step") && line["step"].is_number_integer() &&
          line["step"].get<index_t>() < first_step)
        kept.append(text.substr(0, end + 1));
      text.remove_prefix(end + 1);
    }
    return kept;
  }

  std::string path_;
  std::FILE* file_ = nullptr;
};

/// The lines of a metrics.jsonl as JSON objects; a line cut off by a crash is left out.
inline std::vector<nlohmann::json> read_metrics(const std::string& path) {
  std::vector<nlohmann::json> lines;
  const std::string text = read_text_file(path);
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.size(), text.find('\n', begin));
    auto line = nlohmann::json::parse(text.substr(begin, end - begin), nullptr, false);
    if (line.is_object()) lines.push_back(std::move(line));
    begin = end + 1;
  }
  return lines;
}

/// Points of a curve.
struct MetricCurve {
  std::vector<double> step, value;
};

/// One column of a metrics.jsonl; steps that have no number there are left out.
inline MetricCurve read_metric(const std::string& path, const std::string& name) {
  MetricCurve curve;
  for (const auto& line : read_metrics(path)) {
    if (!line.contains(name) || !line[name].is_number()) continue;
    curve.step.push_back(line["step"].get<double>());
    curve.value.push_back(line[name].get<double>());
  }
  return curve;
}

}  // namespace lpo::inline LPO_ABI
