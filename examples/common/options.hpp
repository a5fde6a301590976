// SPDX-License-Identifier: MIT
// What the command lines of the programs have in common.
#pragma once

#include <string>
#include <vector>

#include <lpo/io/file.hpp>
#include <lpo/io/json.hpp>

namespace examples {

/// "num_steps" -> "--num_steps,--num-steps": diffusers' spelling and the shell's.
inline std::string both_spellings(const std::string& name) {
  std::string dashed = name;
  for (char& c : dashed)
    if (c == '_') c = '-';
  return dashed == name ? "--" + name : "--" + name + ",--" + dashed;
}

/// Prompts of a JSON list, whose entries are texts or objects with a "caption".
inline std::vector<std::string> read_captions(const std::string& path) {
  const auto list = lpo::parse_json<lpo::SortedJson>(lpo::read_text_file(path), "prompts", path);
  const auto fail = [&](const std::string& what) { throw lpo::FileError("[prompts] " + path + ": " + what); };
  if (!list.is_array()) fail("is " + lpo::json_kind(list) + ", expected a list of prompts");
  std::vector<std::string> captions;
  for (const auto& entry : list) {
    const auto found = entry.is_object() ? entry.find("caption") : entry.end();
    const lpo::SortedJson* const text = entry.is_string()                           ? &entry
                                        : entry.is_object() && found != entry.end() ? &*found
                                                                                    : nullptr;
    if (text == nullptr || !text->is_string())
      fail("entry " + std::to_string(captions.size()) + " is " + lpo::json_preview(entry) +
           ", expected a text or an object with a \"caption\"");
    captions.push_back(text->get<std::string>());
  }
  if (captions.empty()) fail("has no prompts");
  return captions;
}

}  // namespace examples
