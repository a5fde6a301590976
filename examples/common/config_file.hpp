// SPDX-License-Identifier: MIT
// Settings of a run as a TOML file: read with --config, and written back as they came out.
#pragma once

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <istream>
#include <iterator>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include <lpo/io/file.hpp>
#include <lpo/io/unicode.hpp>

namespace examples {

namespace detail {

/// The TOML of settings: lines `key = value`, where a value is a text in quotes, a word without (a number, true, false),
/// or a list of these. CLI::ConfigError names the line.
class TomlSettings {
 public:
  explicit TomlSettings(std::string text) : text_(std::move(text)) {}

  std::vector<CLI::ConfigItem> read() {
    std::vector<CLI::ConfigItem> items;
    for (skip_lines(); at_ < text_.size(); skip_lines()) {
      if (peek() == '[') fail("has a section; settings are lines `key = value`");
      CLI::ConfigItem item;
      item.name = CLI::detail::trim_copy(word("=#\n"));
      CLI::detail::remove_quotes(item.name);
      if (!take('=')) fail("expected `key = value`, found `" + item.name + "`");
      skip_spaces();
      if (take('[')) {
        for (skip_lines(); !take(']'); skip_lines()) {
          item.inputs.push_back(value(",]#\n"));
          skip_lines();
          if (!take(',') && peek() != ']') fail("expected , or ] after `" + item.inputs.back() + "`");
        }
      } else {
        item.inputs.push_back(value("#\n"));
      }
      skip_spaces();
      if (peek() != '#' && peek() != '\n' && at_ < text_.size()) fail("expected the line to end after the value");
      if (!items.empty() && items.back().name == item.name)
        items.back().inputs.insert(items.back().inputs.end(), item.inputs.begin(), item.inputs.end());
      else if (!item.inputs.empty())
        items.push_back(std::move(item));
    }
    return items;
  }

 private:
  [[noreturn]] void fail(const std::string& what) const {
    throw CLI::ConfigError(lpo::message("--config: line ", line_, ": ", what));
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(char wanted) {
    if (at_ >= text_.size() || text_[at_] != wanted) return false;
    if (text_[at_++] == '\n') ++line_;
    return true;
  }
  void skip_spaces() {
    while (take(' ') || take('\t') || take('\r')) {
    }
  }
  /// To what comes next, over comments and ends of lines.
  void skip_lines() {
    for (skip_spaces(); peek() == '#' || peek() == '\n'; skip_spaces()) {
      if (peek() == '#') word("\n");
      take('\n');
    }
  }
  std::string word(const char* ends) {
    const std::size_t begin = std::exchange(at_, std::min(text_.find_first_of(ends, at_), text_.size()));
    return text_.substr(begin, at_ - begin);
  }

  std::string value(const char* ends) {
    const bool plain = take('\'');
    if (!plain && !take('"')) {
      const std::string bare = CLI::detail::trim_copy(word(ends));
      if (bare.empty()) fail("expected a value");
      return bare;
    }
    std::string text;
    while (!take(plain ? '\'' : '"')) {
      if (at_ >= text_.size() || peek() == '\n') fail("expected the text to end with its quote");
      const char c = text_[at_++];
      text += c == '\\' && !plain ? escaped() : std::string(1, c);
    }
    return text;
  }

  /// What follows a backslash.
  std::string escaped() {
    constexpr std::string_view letters = "btnfr\"\\", meanings = "\b\t\n\f\r\"\\";
    const char letter = peek();
    ++at_;
    if (const std::size_t found = letters.find(letter); found != letters.npos) return std::string(1, meanings[found]);
    const std::size_t digits = letter == 'u' ? 4 : letter == 'U' ? 8 : 0;
    std::uint32_t code = 0;
    if (digits == 0 || at_ + digits > text_.size() ||
        std::from_chars(text_.data() + at_, text_.data() + at_ + digits, code, 16).ptr != text_.data() + at_ + digits ||
        code > 0x10ffff || (code >= 0xd800 && code < 0xe000))
      fail("expected one of b t n f r \" \\ uXXXX UXXXXXXXX after a backslash; in '...' it stands for itself");
    at_ += digits;
    return lpo::detail::encode_utf8(std::u32string(1, code));
  }

  std::string text_;
  std::size_t at_ = 0;
  int line_ = 1;
};

/// CLI11's own reader ends values at a # or a comma inside a text, and knows no escapes.
class TomlConfig : public CLI::ConfigBase {
 public:
  std::vector<CLI::ConfigItem> from_config(std::istream& input) const override {
    return TomlSettings(std::string(std::istreambuf_iterator<char>(input), {})).read();
  }
};

/// As TOML: numbers, true and false without quotes, everything else with.
inline std::string toml_value(const std::string& value) {
  char* end = nullptr;
  std::strtod(value.c_str(), &end);
  const bool number = !value.empty() && *end == '\0' && value.find_first_not_of("0123456789+-.eE") == std::string::npos;
  if (number || value == "true" || value == "false") return value;
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
  app.config_formatter(std::make_shared<detail::TomlConfig>());
}

/// Writes every option as it is in effect, with its description; `--config` reads the file back. Options without a
/// value are comments: an empty text is not always one that an option takes.
inline void save_resolved_config(const CLI::App& app, const std::string& path) {
  std::string text = "# " + app.get_description() + "\n";
  for (const CLI::Option* const option : app.get_options()) {
    if (!option->get_configurable()) continue;
    const std::string value = detail::toml_value(*option);
    text += "\n# " + option->get_description() + "\n";
    text += value.empty() ? "# " + option->get_single_name() + " =\n" : option->get_single_name() + "=" + value + "\n";
  }
  lpo::write_text_file(path, text);
}

}  // namespace examples
