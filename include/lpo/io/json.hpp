// SPDX-License-Identifier: MIT
// JSON for files: nlohmann-json with the strictness that files from strangers need, and errors that name the file.
#pragma once

#include <algorithm>
#include <cstddef>
#include <exception>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>

namespace lpo::inline LPO_ABI {

/// Keeps keys in the order of the file, so that a config is written back as it was read.
using OrderedJson = nlohmann::ordered_json;

/// Sorted keys, logarithmic look-up: for big tables.
using SortedJson = nlohmann::json;

namespace detail {

/// What nlohmann-json says, without its "[json.exception.…]" prefix.
inline std::string json_reason(const std::exception& error) {
  const std::string_view text = error.what();
  const std::size_t end = text.find("] ");
  return std::string(end == std::string_view::npos ? text : text.substr(end + 2));
}

/// Python writes the numbers that JSON does not have as NaN, Infinity and -Infinity. A copy with null in their place.
inline std::string null_for_non_finite(std::string_view text) {
  std::string copy;
  bool in_string = false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const std::string_view rest = text.substr(i);
    std::size_t token = 0;
    if (!in_string)
      for (const std::string_view name : {"-Infinity", "Infinity", "NaN"})
        if (rest.starts_with(name)) token = std::max(token, name.size());
    if (token > 0) {
      copy += "null";
      i += token - 1;
      continue;
    }
    if (text[i] == '"') in_string = !in_string;
    if (in_string && text[i] == '\\' && i + 1 < text.size()) copy += text[i++];
    copy += text[i];
  }
  return copy;
}

}  // namespace detail

/// Parses a whole JSON text. Not JSON, not UTF-8, a key twice in one object, more than `depth_limit` levels, or
/// something after the value: FileError that starts with `[operation] file: `.
template <class Json>
Json parse_json(std::string_view text, const char* operation, const std::string& file, int depth_limit = 64) {
  std::vector<std::unordered_set<std::string>> keys_of_open_objects;
  // nlohmann-json keeps the last of two equal keys; two readers that differ on that would see two different files.
  const auto check = [&](int depth, typename Json::parse_event_t event, Json& parsed) {
    using Event = typename Json::parse_event_t;
    if (event == Event::object_start || event == Event::array_start) {
      if (depth >= depth_limit)
        throw FileError(message("[", operation, "] ", file, ": JSON nested deeper than ", depth_limit, " levels"));
      if (event == Event::object_start) keys_of_open_objects.emplace_back();
    } else if (event == Event::object_end) {
      keys_of_open_objects.pop_back();
    } else if (event == Event::key) {
      const auto& key = parsed.template get_ref<const std::string&>();
      if (!keys_of_open_objects.back().insert(key).second)
        throw FileError(message("[", operation, "] ", file, ": JSON key \"", key, "\" occurs twice in one object"));
    }
    return true;
  };
  try {
    return Json::parse(text.begin(), text.end(), check);
  } catch (const nlohmann::json::exception& error) {
    throw FileError(message("[", operation, "] ", file, ": not valid JSON: ", detail::json_reason(error)));
  }
}

/// "integer", "string", "array of 3" …: what a message says was found.
template <class Json>
std::string json_kind(const Json& value) {
  switch (value.type()) {
    case Json::value_t::null:
      return "null";
    case Json::value_t::object:
      return "an object";
    case Json::value_t::array:
      return message("an array of ", value.size());
    case Json::value_t::string:
      return "a string";
    case Json::value_t::boolean:
      return "a boolean";
    case Json::value_t::number_integer:
    case Json::value_t::number_unsigned:
      return "an integer";
    case Json::value_t::number_float:
      return "a number";
    default:
      return "something that is not JSON";
  }
}

/// The value as a short text for messages, at most about 60 characters.
template <class Json>
std::string json_preview(const Json& value) {
  std::string text = value.dump(-1, ' ', false, Json::error_handler_t::replace);
  if (text.size() > 60) {
    std::size_t end = 57;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;  // not inside a UTF-8 sequence
    text = text.substr(0, end) + "...";
  }
  return text;
}

namespace detail {

/// Levenshtein distance, for "did you mean".
inline std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({substituted, diagonal + 1, row[j] + 1});
    }
  }
  return row.back();
}

/// " (did you mean \"a\" or \"b\"?)" with the nearest of `candidates`, or "" if none is near.
template <class Candidates>
std::string near_keys(std::string_view wanted, const Candidates& candidates) {
  const std::size_t limit = std::max<std::size_t>(2, wanted.size() / 4);
  std::vector<std::pair<std::size_t, std::string>> found;
  for (const std::string& candidate : candidates) {
    if (candidate.size() > 512) continue;
    const std::size_t difference =
        candidate.size() > wanted.size() ? candidate.size() - wanted.size() : wanted.size() - candidate.size();
    // A prefix or suffix too many ("unet.", "module.", ".weight") is the commonest mistake, however long it is.
    const bool affix = wanted.size() >= 4 && candidate.size() >= 4 &&
                       (candidate.ends_with(wanted) || wanted.ends_with(candidate) || candidate.starts_with(wanted) ||
                        wanted.starts_with(candidate));
    if (affix) {
      found.emplace_back(1, candidate);
    } else if (difference <= limit) {
      const std::size_t distance = edit_distance(wanted, candidate);
      if (distance <= limit) found.emplace_back(distance, candidate);
    }
  }
  if (found.empty()) return "";
  std::sort(found.begin(), found.end());
  std::string text = " (did you mean ";
  for (std::size_t i = 0; i < found.size() && i < 3; ++i) {
    if (i != 0) text += " or ";
    text += "\"" + found[i].second + "\"";
  }
  return text + "?)";
}

/// "a, b, c and 7 more": lists stay readable however wrong the file is.
inline std::string listed(const std::vector<std::string>& items, std::size_t limit = 20) {
  std::string text;
  for (std::size_t i = 0; i < items.size() && i < limit; ++i) text += (i == 0 ? "" : ", ") + items[i];
  if (items.size() > limit) text += message(" and ", items.size() - limit, " more");
  return text;
}

}  // namespace detail

}  // namespace lpo::inline LPO_ABI
