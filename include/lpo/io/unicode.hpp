// SPDX-License-Identifier: MIT
// The little of Unicode that a tokenizer needs: UTF-8, character classes, lower case, canonical composition (NFC).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>

#include <lpo/base/config.hpp>
#include <lpo/io/unicode_tables.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

enum class CharacterClass : std::uint8_t { other, letter, number, separator, control };

/// Value of a run-length table at `code`.
template <std::size_t Size>
std::uint8_t run_value(const std::uint32_t (&changes)[Size], char32_t code) {
  const auto key = (static_cast<std::uint32_t>(code) << 8) | 0xffu;
  return static_cast<std::uint8_t>(*std::prev(std::upper_bound(std::begin(changes), std::end(changes), key)));
}

inline CharacterClass character_class(char32_t code) {
  return static_cast<CharacterClass>(run_value(unicode_class_changes, code) & 7);
}

/// The White_Space property, which is what \s of a Unicode regular expression matches.
inline bool is_white_space(char32_t code) {
  return (code >= 0x09 && code <= 0x0d) || code == 0x20 || code == 0x85 || code == 0xa0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f ||
         code == 0x3000;
}

inline constexpr char32_t replacement_character = 0xfffd;

/// Code points of a UTF-8 text; each byte that is not part of a valid sequence becomes U+FFFD.
inline std::u32string decode_utf8(std::string_view text) {
  std::u32string codes;
  codes.reserve(text.size());
  for (std::size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const std::size_t length = lead < 0x80   ? 1
                               : lead < 0xc2 ? 0
                               : lead < 0xe0 ? 2
                               : lead < 0xf0 ? 3
                               : lead < 0xf5 ? 4
                                             : 0;
    char32_t code = length == 1 ? lead : length == 0 ? 0 : lead & (0x7fu >> length);
    bool valid = length != 0 && i + length <= text.size();
    for (std::size_t k = 1; valid && k < length; ++k) {
      const auto next = static_cast<unsigned char>(text[i + k]);
      valid = (next & 0xc0) == 0x80;
      code = (code << 6) | (next & 0x3fu);
    }
    constexpr char32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    valid = valid && code >= least[length] && code < 0x110000 && !(code >= 0xd800 && code < 0xe000);
    codes.push_back(valid ? code : replacement_character);
    i += valid ? length : 1;
  }
  return codes;
}

inline void append_utf8(std::string& text, char32_t code) {
  const auto byte = [&](std::uint32_t value) { text.push_back(static_cast<char>(static_cast<unsigned char>(value))); };
  if (code < 0x80) {
    byte(code);
  } else if (code < 0x800) {
    byte(0xc0 | (code >> 6));
    byte(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    byte(0xe0 | (code >> 12));
    byte(0x80 | ((code >> 6) & 0x3f));
    byte(0x80 | (code & 0x3f));
  } else {
    byte(0xf0 | (code >> 18));
    byte(0x80 | ((code >> 12) & 0x3f));
    byte(0x80 | ((code >> 6) & 0x3f));
    byte(0x80 | (code & 0x3f));
  }
}

inline std::string encode_utf8(std::u32string_view codes) {
  std::string text;
  text.reserve(codes.size());
  for (const char32_t code : codes) append_utf8(text, code);
  return text;
}

inline char32_t lower_case_of(char32_t code) {
  if (code < 0x80) return code >= 'A' && code <= 'Z' ? code + 32 : code;
  // Ranges are sorted by their first code point and do not overlap except with steps of 2, which are at most one apart.
  constexpr std::size_t count = std::size(unicode_lower_ranges) / 4;
  std::size_t low = 0;
  std::size_t high = count;
  while (low < high) {
    const std::size_t middle = (low + high) / 2;
    if (static_cast<char32_t>(unicode_lower_ranges[4 * middle]) <= code)
      low = middle + 1;
    else
      high = middle;
  }
  for (std::size_t back = 0; back < 2 && back < low; ++back) {
    const std::int32_t* const range = unicode_lower_ranges + 4 * (low - 1 - back);
    const auto signed_code = static_cast<std::int32_t>(code);
    if (signed_code <= range[1] && (signed_code - range[0]) % range[2] == 0)
      return static_cast<char32_t>(signed_code + range[3]);
  }
  return code;
}

/// True if the capital sigma at `position` ends a word (Unicode, SpecialCasing, Final_Sigma).
inline bool is_final_sigma(std::u32string_view codes, std::size_t position) {
  constexpr std::uint8_t cased = 8;
  constexpr std::uint8_t ignorable = 16;
  std::size_t before = position;
  while (before > 0 && (run_value(unicode_class_changes, codes[before - 1]) & ignorable) != 0) --before;
  if (before == 0 || (run_value(unicode_class_changes, codes[before - 1]) & cased) == 0) return false;
  std::size_t after = position + 1;
  while (after < codes.size() && (run_value(unicode_class_changes, codes[after]) & ignorable) != 0) ++after;
  return after == codes.size() || (run_value(unicode_class_changes, codes[after]) & cased) == 0;
}

/// Full lower-casing; `final_sigma` turns a word's last capital sigma into the final form, as Python does.
inline std::u32string lower_case(std::u32string_view codes, bool final_sigma) {
  std::u32string lowered;
  lowered.reserve(codes.size());
  for (std::size_t i = 0; i < codes.size(); ++i) {
    if (codes[i] == 0x130) {  // the one letter whose lower case is two code points
      lowered += U"i\u0307";
    } else if (codes[i] == 0x3a3 && final_sigma && is_final_sigma(codes, i)) {
      lowered.push_back(0x3c2);
    } else {
      lowered.push_back(lower_case_of(codes[i]));
    }
  }
  return lowered;
}

inline std::uint8_t combining_class(char32_t code) {
  return code < 0x300 ? std::uint8_t{0} : run_value(unicode_combining_changes, code);
}

// Hangul syllables are composed by arithmetic (The Unicode Standard, section 3.12).
inline constexpr char32_t hangul_first = 0xac00, hangul_lead = 0x1100, hangul_vowel = 0x1161, hangul_tail = 0x11a7;
inline constexpr char32_t hangul_leads = 19, hangul_vowels = 21, hangul_tails = 28;

inline void append_decomposed(std::u32string& out, char32_t code) {
  if (code < 0xc0) {
    out.push_back(code);
    return;
  }
  if (code >= hangul_first && code < hangul_first + hangul_leads * hangul_vowels * hangul_tails) {
    const char32_t index = code - hangul_first;
    out.push_back(hangul_lead + index / (hangul_vowels * hangul_tails));
    out.push_back(hangul_vowel + index / hangul_tails % hangul_vowels);
    if (index % hangul_tails != 0) out.push_back(hangul_tail + index % hangul_tails);
    return;
  }
  const auto* const end = std::end(unicode_decompositions);
  const auto* const found =
      std::lower_bound(std::begin(unicode_decompositions), end, static_cast<std::uint64_t>(code) << 42);
  if (found == end || (*found >> 42) != code) {
    out.push_back(code);
    return;
  }
  append_decomposed(out, static_cast<char32_t>((*found >> 21) & 0x1fffff));
  const auto second = static_cast<char32_t>(*found & 0x1fffff);
  if (second != 0) append_decomposed(out, second);
}

/// The primary composite of two code points, or 0.
inline char32_t composed(char32_t first, char32_t second) {
  if (first >= hangul_lead && first < hangul_lead + hangul_leads && second >= hangul_vowel &&
      second < hangul_vowel + hangul_vowels)
    return hangul_first + ((first - hangul_lead) * hangul_vowels + (second - hangul_vowel)) * hangul_tails;
  if (first >= hangul_first && first < hangul_first + hangul_leads * hangul_vowels * hangul_tails &&
      (first - hangul_first) % hangul_tails == 0 && second > hangul_tail && second < hangul_tail + hangul_tails)
    return first + (second - hangul_tail);
  const std::uint64_t wanted = (static_cast<std::uint64_t>(first) << 21) | second;
  constexpr std::uint64_t pair_mask = (std::uint64_t{1} << 42) - 1;
  const auto* const end = std::end(unicode_compositions);
  const auto* const found = std::lower_bound(
      std::begin(unicode_compositions), end, wanted,
      [](std::uint16_t index, std::uint64_t pair) { return (unicode_decompositions[index] & pair_mask) < pair; });
  if (found == end || (unicode_decompositions[*found] & pair_mask) != wanted) return 0;
  return static_cast<char32_t>(unicode_decompositions[*found] >> 42);
}

/// Unicode normalization form C.
inline std::u32string normalize_nfc(std::u32string_view codes) {
  // Nothing below U+0300 decomposes into anything but itself under NFC.
  if (std::all_of(codes.begin(), codes.end(), [](char32_t code) { return code < 0x300; })) return std::u32string(codes);
  std::u32string text;
  text.reserve(codes.size());
  for (const char32_t code : codes) append_decomposed(text, code);
  for (std::size_t i = 0; i < text.size();) {  // canonical order: marks between two starters, sorted by class
    if (combining_class(text[i]) == 0) {
      ++i;
      continue;
    }
    std::size_t end = i;
    while (end < text.size() && combining_class(text[end]) != 0) ++end;
    const auto by_class = [](char32_t a, char32_t b) { return combining_class(a) < combining_class(b); };
    std::stable_sort(text.begin() + static_cast<std::ptrdiff_t>(i), text.begin() + static_cast<std::ptrdiff_t>(end),
                     by_class);
    i = end;
  }
  std::u32string out;
  out.reserve(text.size());
  std::size_t starter = std::u32string::npos;
  int last_class = 0;  // of the last mark that was kept since the starter; 0 if there is none
  for (const char32_t code : text) {
    const int its_class = combining_class(code);
    const bool adjacent = starter != std::u32string::npos && starter + 1 == out.size();
    if (starter != std::u32string::npos && (adjacent || (last_class != 0 && last_class < its_class))) {
      const char32_t both = composed(out[starter], code);
      if (both != 0) {
        out[starter] = both;
        continue;
      }
    }
    if (its_class == 0) {
      starter = out.size();
      last_class = 0;
    } else {
      last_class = its_class;
    }
    out.push_back(code);
  }
  return out;
}

}  // namespace detail

}  // namespace lpo::inline LPO_ABI
