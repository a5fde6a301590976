// SPDX-License-Identifier: MIT
// Preference pairs as a JSONL file beside a folder of pictures.
#pragma once

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>

#include <lpo/io/file.hpp>
#include <lpo/io/preference_record.hpp>

namespace lpo::inline LPO_ABI {

/// One line: the members of parse_preference_record with "image_0" and "image_1" as file names, relative to `folder`;
/// or "winner" and "loser" in place of both the file names and the labels. A file name is the picture's uid if it has
/// no other.
inline PreferenceRecord parse_preference_line(std::string_view line, const std::string& folder, std::string name) {
  auto json = parse_json<SortedJson>(line, "preferences", name);
  const auto fail = [&](const auto&... parts) { throw FileError(message("[preferences] ", name, ": ", parts...)); };
  const char* keys[2] = {"image_0", "image_1"};
  if (json.is_object() && (json.contains("winner") || json.contains("loser"))) {
    for (const char* key : {"label_0", "label_1", "image_0", "image_1"})
      if (json.contains(key)) fail("has both \"", key, "\" and a \"winner\" or \"loser\"; one of them says it");
    keys[0] = "winner", keys[1] = "loser";
    json["label_0"] = 1;
    json["label_1"] = 0;
  }
  PreferenceRecord record = parse_preference_record(json, name);
  for (std::size_t i = 0; i < 2; ++i) {
    const std::string file = detail::preference_text(json, keys[i], name);
    if (file.empty()) fail("has no \"", keys[i], "\"; expected the name of a picture's file");
    record.path[i] = file.front() == '/' ? file : folder + "/" + file;
    if (record.uid[i].empty()) record.uid[i] = file;
  }
  return record;
}

/// Calls `use(PreferenceRecord&&)` for each line of a JSONL text until it returns false; `row` counts from 0. Empty
/// lines are passed over. FileError names the file and the line.
template <class Use>
void parse_preference_lines(std::string_view text, const std::string& file, const Use& use) {
  index_t number = 0, row = 0;
  while (!text.empty()) {
    const std::size_t end = std::min(text.size(), text.find('\n'));
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(text.size(), end + 1));
    ++number;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    PreferenceRecord record = parse_preference_line(line, detail::directory_of(file), message(file, ":", number));
    if (record.row < 0) record.row = row;
    ++row;
    if (!use(std::move(record))) return;
  }
}

/// The same for a file. Pictures are not opened.
template <class Use>
void read_preference_lines(const std::string& path, const Use& use) {
  const MappedFile file(path);
  parse_preference_lines(file.text(), path, use);
}

}  // namespace lpo::inline LPO_ABI
