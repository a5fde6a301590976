// SPDX-License-Identifier: MIT
// Settings of a run as a TOML file: read with --config, and written back as they came out.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <istream>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include <toml++/toml.h>
#include <CLI/CLI.hpp>

#include <lpo/base/error.hpp>
#include <lpo/io/file.hpp>
#include <lpo/io/json.hpp>

namespace examples {

namespace detail {

/// The shortest digits that give the number back.
inline std::string number_text(double number) {
  char digits[32];
  return std::string(digits, std::to_chars(digits, digits + sizeof digits, number).ptr);
}

/// A value of a setting as the command line would have it. CLI::ConfigError when it is a table or a date.
inline std::string setting_text(std::string_view key, const toml::node& node) {
  if (const auto* text = node.as_string()) return text->get();
  if (const auto* flag = node.as_boolean()) return flag->get() ? "true" : "false";
  if (const auto* whole = node.as_integer()) return std::to_string(whole->get());
  if (const auto* number = node.as_floating_point()) return number_text(number->get());
  throw CLI::ConfigError(lpo::message("--config: line ", node.source().begin.line, ": ", key,
                                      " is no text, number, true or false; settings are lines `key = value`"));
}

/// CLI11's own reader ends values at a # or a comma inside a text, and knows no escapes.
/// Keys that are no options of `app` are an error that says so.
class TomlConfig : public CLI::ConfigBase {
 public:
  explicit TomlConfig(const CLI::App* app = nullptr) : app_(app) {}

  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    std::vector<CLI::ConfigItem> settings;
    std::vector<Unknown> unknown;
    try {
      for (const auto& [key, node] : toml::parse(input)) {
        CLI::ConfigItem setting;
        setting.name = std::string(std::string_view(key));
        if (app_ != nullptr && !has_option(setting.name)) unknown.push_back({setting.name, node.source().begin.line});
        if (const auto* list = node.as_array())
          for (const toml::node& one : *list) setting.inputs.push_back(setting_text(key, one));
        else
          setting.inputs.push_back(setting_text(key, node));
        if (!setting.inputs.empty()) settings.push_back(std::move(setting));
      }
    } catch (const toml::parse_error& error) {
      throw CLI::ConfigError(lpo::message("--config: line ", error.source().begin.line, ": ", error.description()));
    }
    if (!unknown.empty()) refuse(std::move(unknown));
    return settings;
  }

 private:
  struct Unknown {
    std::string name;
    toml::source_index line;
  };

  bool has_option(const std::string& name) const {
    return app_->get_option_no_throw("--" + name) != nullptr || app_->get_option_no_throw(name) != nullptr;
  }

  /// One or two are mistakes of writing; more are the settings of another program.
  [[noreturn]] void refuse(std::vector<Unknown> unknown) const {
    std::sort(unknown.begin(), unknown.end(), [](const Unknown& a, const Unknown& b) { return a.line < b.line; });
    const CLI::Option* const option = app_->get_config_ptr();
    const std::string file = option != nullptr && option->count() > 0 ? " " + option->results().back() : "";
    const Unknown& first = unknown.front();
    if (unknown.size() <= 2) {
      std::vector<std::string> names;
      for (const CLI::Option* const one : app_->get_options())
        if (one->get_configurable() && !one->get_group().empty()) names.push_back(one->get_single_name());
      throw CLI::ConfigError(lpo::message("--config", file, ": line ", first.line, ": there is no option ", first.name,
                                          lpo::detail::near_keys(first.name, names)));
    }
    std::string list;
    for (std::size_t i = 0; i < std::min<std::size_t>(unknown.size(), 3); ++i) list += (i > 0 ? ", " : "") + unknown[i].name;
    throw CLI::ConfigError(lpo::message("--config", file, ": ", unknown.size(), " of its keys are no options here (", list,
                                        unknown.size() > 3 ? ", ..." : "", "): these are the settings of another program"));
  }

  const CLI::App* app_;
};

/// Whether `value` is a number that setting_text() gives back as it is.
inline bool is_plain_number(const std::string& value) {
  const char *begin = value.data(), *end = begin + value.size();
  std::int64_t whole = 0;
  if (const auto read = std::from_chars(begin, end, whole); read.ptr == end && read.ec == std::errc())
    return std::to_string(whole) == value;
  double number = 0;
  const auto read = std::from_chars(begin, end, number);
  return read.ptr == end && read.ec == std::errc() && value.find_first_of(".e") != value.npos &&
         number_text(number) == value;
}

/// As TOML: numbers, true and false without quotes, everything else with.
inline std::string toml_value(const std::string& value) {
  if (is_plain_number(value) || value == "true" || value == "false") return value;
  std::string text = "\"";
  for (const char c : value) {
    char code[8];
    std::snprintf(code, sizeof code, "\\u%04x", static_cast<unsigned>(static_cast<unsigned char>(c)));
    const bool control = static_cast<unsigned char>(c) < 0x20 || c == 0x7f;
    text += c == '"' || c == '\\' ? std::string{'\\', c} : c == '\n' ? "\\n" : control ? code : std::string(1, c);
  }
  return text + "\"";
}

/// The option's value as it is in effect; empty where it has none.
inline std::string toml_value(const CLI::Option& option) {
  if (option.count() == 0) {
    const std::string value = option.get_default_str();
    if (value.empty() || value == "[]") return option.get_expected_min() == 0 ? "false" : "";
    return toml_value(value);
  }
  const auto results = option.reduced_results();
  if (results.size() == 1) return toml_value(results[0]);
  std::string list;
  for (const std::string& one : results) list += (list.empty() ? "[" : ", ") + toml_value(one);
  return list + "]";
}

}  // namespace detail

/// `--config FILE`: a TOML file of the program's options, which the command line overrides. Keys that are no options
/// are an error.
inline void add_config_option(CLI::App& app) {
  app.set_config("--config", "", "TOML file of these options; the command line wins");
  app.allow_config_extras(CLI::config_extras_mode::error);
  app.config_formatter(std::make_shared<detail::TomlConfig>(&app));
}

/// Every option of the help as it is in effect, with its description, as a file that `--config` reads. Options without a
/// value are comments: an empty text is not always one that an option takes.
inline std::string resolved_config(const CLI::App& app) {
  std::string text = "# " + app.get_description() + "\n";
  for (const CLI::Option* const option : app.get_options()) {
    if (!option->get_configurable() || option->get_group().empty()) continue;
    const std::string value = detail::toml_value(*option);
    text += "\n# " + option->get_description() + "\n";
    text += value.empty() ? "# " + option->get_single_name() + " =\n" : option->get_single_name() + "=" + value + "\n";
  }
  return text;
}

}  // namespace examples
