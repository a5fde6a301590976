// SPDX-License-Identifier: MIT
// The score file of multi-preference consistent filtering: a CSV with a line for each pair of a preference set.
#pragma once

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lpo/base/extents.hpp>
#include <lpo/io/file.hpp>
#include <lpo/reward/mpcf.hpp>

namespace lpo::inline LPO_ABI {

/// Line i is about row i of the unfiltered set.
struct ScoredPair {
  PreferenceGaps gaps;
  bool tie = false;  ///< different_flag is 0
};

namespace detail {

/// Takes one line off `text` and returns its fields; quoted ones may hold commas, line ends and doubled quotes.
inline std::vector<std::string> take_csv_line(std::string_view& text) {
  std::vector<std::string> fields(1);
  bool quoted = false;
  std::size_t at = 0;
  for (; at < text.size(); ++at) {
    const char c = text[at];
    if (quoted) {
      if (c != '"') {
        fields.back() += c;
      } else if (at + 1 < text.size() && text[at + 1] == '"') {
        fields.back() += text[++at];
      } else {
        quoted = false;
      }
    } else if (c == '"') {
      quoted = true;
    } else if (c == ',') {
      fields.emplace_back();
    } else if (c == '\n') {
      break;
    } else if (c != '\r') {
      fields.back() += c;
    }
  }
  text.remove_prefix(std::min(text.size(), at + 1));
  return fields;
}

/// A finite number that fills the whole field; NaN otherwise.
inline double csv_number(std::string_view field) {
  if (field == "True" || field == "true") return 1;
  if (field == "False" || field == "false") return 0;
  double value = 0;
  const auto [end, error] = std::from_chars(field.data(), field.data() + field.size(), value);
  const bool whole = error == std::errc() && end == field.data() + field.size() && std::isfinite(value);
  return whole ? value : std::nan("");
}

}  // namespace detail

/// Columns different_flag (1 win-lose, 0 tie), aesthetic_gap, clipscore_gap and vqascore_gap, found by the names in the
/// first line; others are not looked at. Gaps are winner minus loser. FileError names the file, the line and the
/// column.
inline std::vector<ScoredPair> parse_preference_gaps(std::string_view text, const std::string& file) {
  constexpr std::array<const char*, 4> names = {"different_flag", "aesthetic_gap", "clipscore_gap", "vqascore_gap"};
  const auto fail = [&](const auto&... parts) { throw FileError(message("[scores] ", file, ": ", parts...)); };
  if (text.starts_with("\xef\xbb\xbf")) text.remove_prefix(3);
  const std::vector<std::string> header = detail::take_csv_line(text);
  std::array<std::size_t, 4> columns{};
  for (std::size_t i = 0; i < names.size(); ++i) {
    const auto found = std::find(header.begin(), header.end(), names[i]);
    if (found == header.end())
      fail("has no column \"", names[i],
           "\"; expected a first line with different_flag, aesthetic_gap, clipscore_gap, vqascore_gap");
    columns[i] = static_cast<std::size_t>(found - header.begin());
  }
  std::vector<ScoredPair> rows;
  while (text.find_first_not_of("\r\n") != std::string_view::npos) {
    const std::vector<std::string> fields = detail::take_csv_line(text);
    const std::size_t line = rows.size() + 2;
    if (fields.size() != header.size())
      fail("line ", line, " has ", fields.size(), " fields, expected ", header.size());
    std::array<double, 4> values{};
    for (std::size_t i = 0; i < names.size(); ++i) {
      values[i] = detail::csv_number(fields[columns[i]]);
      if (std::isnan(values[i]))
        fail("line ", line, ": ", names[i], " is \"", fields[columns[i]].substr(0, 40), "\", expected a number");
    }
    if (values[0] != 0 && values[0] != 1)
      fail("line ", line, ": different_flag is ", fields[columns[0]].substr(0, 40), ", expected 1 or 0");
    rows.push_back({{static_cast<float>(values[1]), static_cast<float>(values[2]), static_cast<float>(values[3])},
                    values[0] == 0});
  }
  return rows;
}

inline std::vector<ScoredPair> read_preference_gaps(const std::string& path) {
  const MappedFile file(path);
  return parse_preference_gaps(file.text(), path);
}

/// Pairs seen and kept by a filter.
struct PreferenceCounts {
  index_t win_lose = 0, ties = 0, kept_win_lose = 0, kept_ties = 0;

  index_t seen() const { return win_lose + ties; }
  index_t kept() const { return kept_win_lose + kept_ties; }
};

/// Decides pair by pair by a score file and counts.
class PreferenceFilter {
 public:
  PreferenceFilter() = default;  ///< keeps everything
  PreferenceFilter(std::string file, MpcfOptions options)
      : file_(std::move(file)),
        options_(options),
        rows_(options.strategy == 0 ? std::vector<ScoredPair>() : read_preference_gaps(file_)) {}

  /// `tie`: what the labels of row `row` say. FileError if the score file ends before it or says otherwise: then its
  /// lines are not about these pairs.
  bool keeps(index_t row, bool tie) {
    bool kept = true;
    if (options_.strategy != 0) {
      if (row < 0 || row >= static_cast<index_t>(rows_.size()))
        throw FileError(message("[scores] ", file_, ": has ", rows_.size(), " lines, but the set has a row ", row,
                                "; the file must have a line for each pair of the unfiltered set"));
      const ScoredPair& scored = rows_[static_cast<std::size_t>(row)];
      if (scored.tie != tie)
        throw FileError(message("[scores] ", file_, ": line ", row + 2, " says ", scored.tie ? "tie" : "win-lose",
                                ", the labels of row ", row, " say ", tie ? "tie" : "win-lose",
                                "; its lines are not in the order of the set"));
      kept = mpcf_keeps(scored.gaps, tie, options_);
    }
    ++(tie ? counts_.ties : counts_.win_lose);
    if (kept) ++(tie ? counts_.kept_ties : counts_.kept_win_lose);
    return kept;
  }

  const PreferenceCounts& counts() const { return counts_; }

 private:
  std::string file_;
  MpcfOptions options_{.strategy = 0};
  std::vector<ScoredPair> rows_;
  PreferenceCounts counts_;
};

}  // namespace lpo::inline LPO_ABI
