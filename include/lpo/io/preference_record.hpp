// SPDX-License-Identifier: MIT
// PreferenceRecord: one comparison of two pictures, from a JSON object with the columns of Pick-a-Pic.
#pragma once

#include <array>
#include <cmath>
#include <string>
#include <utility>

#include <lpo/io/json.hpp>
#include <lpo/reward/loss.hpp>

namespace lpo::inline LPO_ABI {

/// Pictures are either in memory as they were in the file (`encoded`), or files that are read when needed (`path`).
struct PreferenceRecord {
  std::string name;  ///< for messages: the file and the record in it
  index_t row = -1;  ///< in the set that score files are about; -1: as counted by the reader
  std::string caption;
  PreferenceLabel label;  ///< num_examples is 0 if the record does not say
  bool has_label = true;
  std::array<std::string, 2> uid;  ///< pictures of one uid are the same picture
  std::array<std::string, 2> path, encoded;
};

namespace detail {

inline constexpr const char* preference_format =
    "expected a \"caption\" and the labels \"label_0\", \"label_1\" as 1 and 0, 0 and 1, or 0.5 and 0.5";

/// A member of the wanted kind, or null if there is none; FileError if it is of another.
inline const SortedJson* preference_member(const SortedJson& json, const char* key, const std::string& name,
                                           bool (SortedJson::*is)() const noexcept, const char* wanted) {
  const auto found = json.find(key);
  if (found == json.end() || found->is_null()) return nullptr;
  if (!((*found).*is)())
    throw FileError(
        message("[preferences] ", name, ": \"", key, "\" is ", json_preview(*found), ", expected ", wanted));
  return &*found;
}

inline std::string preference_text(const SortedJson& json, const char* key, const std::string& name) {
  const auto* const value = preference_member(json, key, name, &SortedJson::is_string, "a text");
  return value == nullptr ? std::string() : value->get<std::string>();
}

inline float preference_number(const SortedJson& json, const char* key, const std::string& name) {
  const auto* const value = preference_member(json, key, name, &SortedJson::is_number, "a number");
  if (value == nullptr) throw FileError(message("[preferences] ", name, ": has no \"", key, "\"; ", preference_format));
  return value->get<float>();
}

}  // namespace detail

/// Reads "caption", "label_0", "label_1" and, where they are there, "num_example_per_prompt", "has_label", "row",
/// "image_0_uid" and "image_1_uid". Other members are not looked at. FileError that starts with `name`.
inline PreferenceRecord parse_preference_record(const SortedJson& json, std::string name) {
  PreferenceRecord record;
  record.name = std::move(name);
  const auto fail = [&](const auto&... parts) {
    throw FileError(message("[preferences] ", record.name, ": ", parts...));
  };
  if (!json.is_object()) fail("is ", json_kind(json), ", expected an object; ", detail::preference_format);
  if (json.find("caption") == json.end()) fail("has no \"caption\"; ", detail::preference_format);
  record.caption = detail::preference_text(json, "caption", record.name);
  record.uid = {detail::preference_text(json, "image_0_uid", record.name),
                detail::preference_text(json, "image_1_uid", record.name)};
  const auto* const labelled =
      detail::preference_member(json, "has_label", record.name, &SortedJson::is_boolean, "true or false");
  record.has_label = labelled == nullptr || labelled->get<bool>();
  if (const auto* row =
          detail::preference_member(json, "row", record.name, &SortedJson::is_number_unsigned, "a row number"))
    record.row = row->get<index_t>();
  record.label.num_examples = 0;
  if (json.find("num_example_per_prompt") != json.end()) {
    record.label.num_examples = detail::preference_number(json, "num_example_per_prompt", record.name);
    if (!(record.label.num_examples >= 1) || !std::isfinite(record.label.num_examples))
      fail("\"num_example_per_prompt\" is ", json_preview(json["num_example_per_prompt"]), ", expected at least 1");
  }
  if (!record.has_label) return record;
  const float first = detail::preference_number(json, "label_0", record.name);
  const float second = detail::preference_number(json, "label_1", record.name);
  const bool valid = (first == 1 && second == 0) || (first == 0 && second == 1) || (first == 0.5f && second == 0.5f);
  if (!valid)
    fail("labels are ", json_preview(json["label_0"]), " and ", json_preview(json["label_1"]), "; ",
         detail::preference_format);
  record.label.label_0 = first;
  record.label.label_1 = second;
  return record;
}

}  // namespace lpo::inline LPO_ABI
