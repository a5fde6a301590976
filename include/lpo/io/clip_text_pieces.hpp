// SPDX-License-Identifier: MIT
// The text side of the CLIP tokenizer: clean-up, and the cut into words, digits, contractions and punctuation.
#pragma once

#include <array>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/io/unicode.hpp>

namespace lpo::inline LPO_ABI {

/// Which clean-up precedes the cut. The two differ on control characters, unassigned code points, Chinese characters,
/// a final capital sigma, the iota below, and markers spelled with capitals.
enum class ClipCleanup {
  basic,  ///< transformers' CLIPTokenizer without ftfy: drops control characters, sets Chinese characters apart
  fast    ///< transformers' CLIPTokenizerFast: composes and lower-cases only
};

namespace detail {

/// Blocks of ideographs that BERT's and CLIP's clean-up sets apart.
inline bool is_ideograph(char32_t code) {
  return (code >= 0x4e00 && code <= 0x9fff) || (code >= 0x3400 && code <= 0x4dbf) ||
         (code >= 0x20000 && code <= 0x2a6df) || (code >= 0x2a700 && code <= 0x2ceaf) ||
         (code >= 0xf900 && code <= 0xfaff) || (code >= 0x2f800 && code <= 0x2fa1f);
}

/// Composed, lower-cased text with single spaces between words.
inline std::u32string clean_clip_text(std::string_view text, ClipCleanup cleanup) {
  std::u32string codes = decode_utf8(text);
  if (cleanup == ClipCleanup::basic) {
    std::u32string kept;
    kept.reserve(codes.size());
    for (const char32_t code : codes) {
      const bool plain_space = code == '\t' || code == '\n' || code == '\r' || code == ' ';
      if (!plain_space && (code == replacement_character || character_class(code) == CharacterClass::control)) continue;
      if (is_ideograph(code)) {
        kept += {U' ', code, U' '};
      } else {
        kept.push_back(code);
      }
    }
    codes = std::move(kept);
  }
  codes = normalize_nfc(codes);
  std::u32string cleaned;
  cleaned.reserve(codes.size());
  for (std::size_t i = 0; i < codes.size();) {
    std::size_t end = i;
    while (end < codes.size() && !is_white_space(codes[end])) ++end;
    if (end > i) {
      if (!cleaned.empty()) cleaned.push_back(U' ');
      cleaned += lower_case(std::u32string_view(codes).substr(i, end - i), cleanup == ClipCleanup::basic);
    }
    i = end + 1;
  }
  return cleaned;
}

/// Calls `function(u32string_view)` for each piece of cleaned text:
/// <|startoftext|>|<|endoftext|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+
template <class Function>
void for_each_clip_piece(std::u32string_view text, ClipCleanup cleanup, Function&& function) {
  enum class Kind { space, letter, number, other };
  const auto kind_of = [&](char32_t code) {
    if (is_white_space(code)) return Kind::space;
    // The iota below (U+0345) is a mark that folds to a letter: transformers' case-insensitive expression matches it
    // neither as the one nor as the other, and skips it.
    if (code == 0x345 && cleanup == ClipCleanup::basic) return Kind::space;
    switch (character_class(code)) {
      case CharacterClass::letter:
        return Kind::letter;
      case CharacterClass::number:
        return Kind::number;
      default:
        return Kind::other;
    }
  };
  // The long s folds to s, so transformers' case-insensitive expression takes it for one.
  const auto same = [&](char32_t found, char32_t wanted) {
    return found == wanted || (cleanup == ClipCleanup::basic && wanted == U's' && found == 0x17f);
  };
  const auto begins_with = [&](std::u32string_view rest, std::u32string_view prefix) {
    if (rest.size() < prefix.size()) return false;
    for (std::size_t i = 0; i < prefix.size(); ++i)
      if (!same(rest[i], prefix[i])) return false;
    return true;
  };
  static constexpr std::array<std::u32string_view, 7> contractions = {U"'s", U"'t",  U"'re", U"'ve",
                                                                      U"'m", U"'ll", U"'d"};
  static constexpr std::array<std::u32string_view, 2> markers = {U"<|startoftext|>", U"<|endoftext|>"};
  const auto marker_at = [&](std::u32string_view rest) -> std::size_t {
    for (const std::u32string_view marker : markers)
      if (begins_with(rest, marker)) return marker.size();
    return 0;
  };
  // CLIPTokenizerFast looks for markers in the lower-cased text before it cuts, so they end a run of punctuation.
  const auto ends_run = [&](std::u32string_view rest) { return cleanup == ClipCleanup::fast && marker_at(rest) > 0; };
  while (!text.empty()) {
    const Kind kind = kind_of(text[0]);
    if (kind == Kind::space) {
      text.remove_prefix(1);
      continue;
    }
    std::size_t length = 0;
    for (const std::u32string_view prefix : contractions)
      if (length == 0 && begins_with(text, prefix)) length = prefix.size();
    if (length == 0) length = marker_at(text);
    if (length == 0) {
      length = 1;
      if (kind != Kind::number)
        while (length < text.size() && kind_of(text[length]) == kind && !ends_run(text.substr(length))) ++length;
    }
    function(text.substr(0, length));
    text.remove_prefix(length);
  }
}

}  // namespace detail

}  // namespace lpo::inline LPO_ABI
