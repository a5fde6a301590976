// SPDX-License-Identifier: MIT
// What the command lines of the programs have in common.
#pragma once

#include <algorithm>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <lpo/io/dtype.hpp>
#include <lpo/io/file.hpp>
#include <lpo/io/json.hpp>
#include <lpo/io/unicode.hpp>

namespace examples {

/// "num_steps" -> "--num_steps,--num-steps": diffusers' spelling and the shell's.
inline std::string both_spellings(const std::string& name) {
  std::string dashed = name;
  for (char& c : dashed)
    if (c == '_') c = '-';
  return dashed == name ? "--" + name : "--" + name + ",--" + dashed;
}

/// "a,b" as its parts.
inline std::vector<std::string> comma_list(const std::string& text) {
  std::vector<std::string> parts;
  for (std::size_t begin = 0; begin <= text.size();) {
    const std::size_t end = std::min(text.find(',', begin), text.size());
    if (end > begin) parts.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return parts;
}

/// "float16" (diffusers' name) or "fp16" as a type; nothing for "keep" and what is none of them.
inline std::optional<lpo::DType> dtype_of(const std::string& name) {
  if (name == "float32" || name == "fp32") return lpo::DType::F32;
  if (name == "float16" || name == "fp16") return lpo::DType::F16;
  if (name == "bfloat16" || name == "bf16") return lpo::DType::BF16;
  return std::nullopt;
}

namespace detail {

inline std::vector<std::string> captions_of_json(const std::string& text, const std::string& path) {
  const auto list = lpo::parse_json<lpo::SortedJson>(text, "prompts", path);
  const auto fail = [&](const std::string& what) { throw lpo::FileError("[prompts] " + path + ": " + what); };
  if (!list.is_array()) fail("is " + lpo::json_kind(list) + ", expected a list of prompts");
  std::vector<std::string> captions;
  for (const auto& entry : list) {
    const auto found = entry.is_object() ? entry.find("caption") : entry.end();
    const lpo::SortedJson* const caption = entry.is_string()                           ? &entry
                                           : entry.is_object() && found != entry.end() ? &*found
                                                                                       : nullptr;
    if (caption == nullptr || !caption->is_string())
      fail("entry " + std::to_string(captions.size()) + " is " + lpo::json_preview(entry) +
           ", expected a text or an object with a \"caption\"");
    captions.push_back(caption->get<std::string>());
  }
  return captions;
}

/// Lines without the spaces around them; empty ones are left out.
inline std::vector<std::string> captions_of_text(std::string_view text, const std::string& path) {
  if (text.starts_with("\xEF\xBB\xBF")) text.remove_prefix(3);
  std::vector<std::string> captions;
  for (int line = 1; !text.empty(); ++line) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    const std::string_view whole = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::size_t first = whole.find_first_not_of(" \t\r");
    if (first == std::string_view::npos) continue;
    captions.emplace_back(whole.substr(first, whole.find_last_not_of(" \t\r") + 1 - first));
    if (lpo::detail::encode_utf8(lpo::detail::decode_utf8(captions.back())) != captions.back())
      throw lpo::FileError("[prompts] " + path + ": line " + std::to_string(line) +
                           " is not UTF-8; save the file as UTF-8 text, or as a JSON list");
  }
  return captions;
}

}  // namespace detail

/// Prompts of a file: a JSON list, whose entries are texts or objects with a "caption", or plain text, a prompt a line.
/// Files named .txt are plain text; of others, those that begin with a bracket are JSON.
inline std::vector<std::string> read_captions(const std::string& path) {
  const std::string text = lpo::read_text_file(path);
  const std::size_t first = text.find_first_not_of(" \t\r\n");
  const bool json = !path.ends_with(".txt") && first != std::string::npos && (text[first] == '[' || text[first] == '{');
  auto captions = json ? detail::captions_of_json(text, path) : detail::captions_of_text(text, path);
  if (captions.empty()) throw lpo::FileError("[prompts] " + path + ": has no prompts");
  return captions;
}

}  // namespace examples
