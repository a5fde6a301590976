// SPDX-License-Identifier: MIT
// What a LoRA file holds, as numbers: for the `inspect` and `check` commands, as text and as JSON.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include <lpo/io/json.hpp>
#include <lpo/io/lora_base.hpp>
#include <lpo/io/lora_file.hpp>

namespace lora_tool {

using lpo::index_t;

/// One adapter.
struct Module {
  std::string component, path;
  index_t rank = 0;
  double alpha = 0, scale = 0;
  std::vector<index_t> delta;  ///< shape of delta W, 1x1 kernels left out
  lpo::DType dtype = lpo::DType::F32;
  double norm = 0;  ///< Frobenius norm of delta W = scale * up * down
};

/// ||up * down|| of an adapter without forming the product: the squared norm is tr((up^T up) (down down^T)).
inline double product_norm(const std::vector<double>& up, const std::vector<double>& down, index_t rank) {
  const auto r = static_cast<std::size_t>(rank);
  std::vector<double> left(r * r), right(r * r);
  for (std::size_t row = 0; row < up.size() / r; ++row)
    for (std::size_t a = 0; a < r; ++a)
      for (std::size_t b = 0; b < r; ++b) left[a * r + b] += up[row * r + a] * up[row * r + b];
  const std::size_t columns = down.size() / r;
  for (std::size_t a = 0; a < r; ++a)
    for (std::size_t b = a; b < r; ++b) {
      double dot = 0;
      for (std::size_t c = 0; c < columns; ++c) dot += down[a * columns + c] * down[b * columns + c];
      right[a * r + b] = right[b * r + a] = dot;
    }
  double square = 0;
  for (std::size_t i = 0; i < r * r; ++i) square += left[i] * right[i];
  return square < 0 ? 0.0 : std::sqrt(square);  // rounding; NaN stays NaN
}

inline std::vector<Module> modules_of(const lpo::LoraFile& file) {
  std::vector<Module> modules;
  for (const auto* adapter : file.adapters()) {
    const auto& down = file.file().info(adapter->down);
    const auto& up = file.file().info(adapter->up);
    Module module{adapter->component, adapter->path,
                  adapter->rank,      adapter->alpha,
                  adapter->scale(),   lpo::detail::delta_shape(down.shape, up.shape),
                  down.dtype,         0};
    module.norm = std::fabs(module.scale) * product_norm(file.file().read_vector<double>(adapter->up),
                                                         file.file().read_vector<double>(adapter->down), adapter->rank);
    modules.push_back(std::move(module));
  }
  return modules;
}

/// The part of a path that targets name: "to_q", "to_out.0", "ff.net.0.proj".
inline std::string target_of(const std::string& path) {
  for (const char* block : {".attn1.", ".attn2.", ".self_attn.", ".mlp."})
    if (const std::size_t at = path.find(block); at != std::string::npos)
      return path.substr(at + std::string(block).size());
  if (const std::size_t at = path.find(".ff."); at != std::string::npos) return path.substr(at + 1);
  return path.substr(path.rfind('.') + 1);  // all of it where there is no dot
}

/// How many adapters have each value, per component: ranks, alphas, targets.
struct Counts {
  std::size_t adapters = 0;
  std::map<index_t, std::size_t> ranks;
  std::map<double, std::size_t> alphas;
  std::map<std::string, std::size_t> targets;
};

inline std::map<std::string, Counts> counts_of(const std::vector<Module>& modules) {
  std::map<std::string, Counts> counts;
  for (const Module& module : modules) {
    Counts& part = counts[module.component];
    ++part.adapters;
    ++part.ranks[module.rank];
    ++part.alphas[module.alpha];
    ++part.targets[target_of(module.path)];
  }
  return counts;
}

/// "4", "0.5": as short as the number allows.
inline std::string number_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}
inline std::string number_text(index_t value) { return std::to_string(value); }
inline const std::string& number_text(const std::string& text) { return text; }

/// "4 (110), 2 (18)", or the value alone where all have the same.
template <class Value>
std::string tally_text(const std::map<Value, std::size_t>& tally) {
  if (tally.size() == 1) return number_text(tally.begin()->first);
  std::string text;
  for (const auto& [value, count] : tally)
    text += (text.empty() ? "" : ", ") + number_text(value) + " (" + std::to_string(count) + ")";
  return text;
}

template <class Value>
lpo::OrderedJson tally_json(const std::map<Value, std::size_t>& tally) {
  auto json = lpo::OrderedJson::object();
  for (const auto& [value, count] : tally) json[number_text(value)] = count;
  return json;
}

inline std::vector<std::string> format_names(const lpo::LoraFile& file) {
  std::vector<std::string> names;
  for (const lpo::LoraFormat format : file.formats()) names.push_back(lpo::lora_format_name(format));
  return names;
}

inline lpo::OrderedJson inspect_json(const lpo::LoraFile& file) {
  const auto modules = modules_of(file);
  lpo::OrderedJson json;
  json["file"] = file.file().path();
  json["formats"] = format_names(file);
  json["components"] = lpo::OrderedJson::object();
  for (const auto& [name, part] : counts_of(modules))
    json["components"][name] = {{"adapters", part.adapters},
                                {"ranks", tally_json(part.ranks)},
                                {"alphas", tally_json(part.alphas)},
                                {"targets", tally_json(part.targets)}};
  json["modules"] = lpo::OrderedJson::array();
  for (const Module& m : modules)
    json["modules"].push_back({{"component", m.component},
                               {"path", m.path},
                               {"rank", m.rank},
                               {"alpha", m.alpha},
                               {"scale", m.scale},
                               {"shape", m.delta},
                               {"dtype", lpo::dtype_name(m.dtype)},
                               {"norm", m.norm}});
  json["unknown_keys"] = file.unknown_keys();
  json["other_kinds"] = lpo::OrderedJson::array();
  for (const auto& other : file.other_keys()) json["other_kinds"].push_back({{"key", other.key}, {"kind", other.kind}});
  json["metadata"] = file.file().metadata();
  return json;
}

inline std::string inspect_text(const lpo::LoraFile& file, bool list_modules) {
  const auto modules = modules_of(file);
  std::string text =
      "file        " + file.file().path() + "\nformat      " + lpo::detail::listed(format_names(file)) + "\n";
  for (const auto& [name, part] : counts_of(modules))
    text += name + ": " + std::to_string(part.adapters) + " adapters\n  rank      " + tally_text(part.ranks) +
            "\n  alpha     " + tally_text(part.alphas) + "\n  targets   " + tally_text(part.targets) + "\n";
  if (list_modules && !modules.empty()) {
    text += "modules (shape of delta W, rank, alpha, norm of delta W)\n";
    for (const Module& m : modules)
      text += "  " + m.component + "." + m.path + "  " + lpo::shape_text(m.delta) + "  " + number_text(m.rank) + "  " +
              number_text(m.alpha) + "  " + number_text(m.norm) + "\n";
  }
  if (!file.other_keys().empty()) {
    text += "adapters of other kinds, which lpo does not apply\n";
    for (const auto& other : file.other_keys()) text += "  " + other.key + "  (" + other.kind + ")\n";
  }
  if (!file.unknown_keys().empty()) {
    text += "keys of no adapter\n";
    for (const std::string& key : file.unknown_keys()) text += "  " + key + "\n";
  }
  if (!file.file().metadata().empty()) {
    text += "metadata\n";
    for (const auto& [key, value] : file.file().metadata())
      text += "  " + key + ": " + lpo::json_preview(lpo::OrderedJson(value)) + "\n";
  }
  return text;
}

/// What `check` found.
struct CheckResult {
  std::size_t matched = 0;
  std::map<std::string, std::size_t> matched_in;  ///< by component
  std::vector<std::string> unmatched, mismatched, problems;

  bool good() const { return matched > 0 && unmatched.empty() && mismatched.empty() && problems.empty(); }
};

/// Compares a LoRA with its base, and looks for values that cannot be meant: no numbers, or nothing but zeros.
inline CheckResult check_lora(const lpo::LoraFile& file, const std::vector<lpo::BaseComponent>& base) {
  const auto fit = lpo::fit_lora(file, base);
  CheckResult result;
  result.matched = fit.targets.size();
  for (const auto& target : fit.targets) ++result.matched_in[target.part->name];
  result.unmatched = fit.unmatched;
  result.mismatched = fit.mismatched;
  for (const auto& other : file.other_keys())
    result.problems.push_back("\"" + other.key + "\" belongs to an adapter of another kind (" + other.kind +
                              "), which lpo does not apply");
  bool zero = !file.adapters().empty();
  for (const Module& module : modules_of(file)) {
    zero = zero && module.norm == 0;
    if (!std::isfinite(module.norm))
      result.problems.push_back("\"" + module.path + "\" of " + module.component + " has values that are not finite");
  }
  if (zero) result.problems.push_back("all adapters are zero: the LoRA changes nothing");
  return result;
}

inline lpo::OrderedJson check_json(const CheckResult& result) {
  return {{"good", result.good()},         {"matched", result.matched},       {"matched_in", result.matched_in},
          {"unmatched", result.unmatched}, {"mismatched", result.mismatched}, {"problems", result.problems}};
}

inline std::string check_text(const CheckResult& result, std::size_t adapters) {
  std::string text = std::to_string(result.matched) + " of " + std::to_string(adapters) + " adapters match";
  for (const auto& [name, count] : result.matched_in) text += ", " + std::to_string(count) + " in " + name;
  text += "\n";
  const auto list = [&](const char* title, const std::vector<std::string>& lines) {
    if (lines.empty()) return;
    text += title;
    for (const std::string& line : lines) text += "  " + line + "\n";
  };
  list("keys that the base has no weight for\n", result.unmatched);
  list("shapes that differ\n", result.mismatched);
  list("problems\n", result.problems);
  return text + (result.good() ? "good\n" : "NOT good\n");
}

}  // namespace lora_tool
