// SPDX-License-Identifier: MIT
// BytePairEncoding: merges the bytes of a word into symbols, by a ranked list of pairs, as CLIP does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <queue>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/io/unicode.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// The printable code point that stands for a byte in vocabulary files (the layout of GPT-2 and CLIP).
inline char32_t byte_code_point(unsigned byte) {
  const auto printable = [](unsigned b) { return (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad); };
  if (printable(byte)) return byte;
  char32_t code = 256;
  for (unsigned b = 0; b < byte; ++b) code += printable(b) ? 0 : 1;
  return code;
}

/// All bytes in the order in which such vocabularies number them: the printable ones first.
inline std::vector<unsigned> bytes_in_vocabulary_order() {
  std::vector<unsigned> order;
  for (const bool shifted : {false, true})
    for (unsigned byte = 0; byte < 256; ++byte)
      if ((byte_code_point(byte) >= 256) == shifted) order.push_back(byte);
  return order;
}

}  // namespace detail

/// Symbols are numbered: 0-255 the bytes inside a word, 256-511 the bytes that end a word (text `…</w>`), then results
/// of merges. Source: Sennrich, Haddow, Birch, "Neural machine translation of rare words with subword units", 2016.
class BytePairEncoding {
 public:
  static constexpr std::string_view word_end = "</w>";

  BytePairEncoding() {
    for (const std::string_view suffix : {std::string_view(), word_end}) {
      for (unsigned byte = 0; byte < 256; ++byte) {
        std::string text;
        detail::append_utf8(text, detail::byte_code_point(byte));
        symbol_of(text.append(suffix));
      }
    }
  }

  /// Appends a merge of two symbol texts; it ranks behind all earlier ones. Repeating a pair moves it to the end.
  void add_merge(const std::string& left, const std::string& right) {
    const std::uint32_t left_symbol = symbol_of(left);
    const std::uint32_t right_symbol = symbol_of(right);
    const std::uint32_t result = symbol_of(left + right);
    rules_[key(left_symbol, right_symbol)] = Rule{static_cast<std::uint32_t>(merges_.size()), result};
    merges_.emplace_back(left, right);
  }

  /// The merges in order of rank.
  const std::vector<std::pair<std::string, std::string>>& merges() const { return merges_; }

  std::size_t symbol_count() const { return texts_.size(); }

  /// Text of a symbol, as vocabulary files spell it.
  const std::string& text_of(std::uint32_t symbol) const { return texts_[symbol]; }

  /// Symbols of one word, given as its plain bytes. All places of the best-ranked pair are merged, from left to right,
  /// before the next pair is looked for; O(n log n).
  std::vector<std::uint32_t> encode(std::string_view word) const {
    const std::size_t length = word.size();
    if (length == 0) return {};
    std::vector<std::uint32_t> symbols(length);
    for (std::size_t i = 0; i < length; ++i) symbols[i] = static_cast<unsigned char>(word[i]);
    symbols[length - 1] += 256;

    std::vector<std::size_t> next(length);
    std::vector<std::size_t> previous(length);
    for (std::size_t i = 0; i < length; ++i) {
      next[i] = i + 1;
      previous[i] = i == 0 ? length : i - 1;
    }
    std::priority_queue<Candidate, std::vector<Candidate>, std::greater<>> queue;
    const auto consider = [&](std::size_t position) {
      if (position >= length || next[position] >= length) return;
      const auto rule = rules_.find(key(symbols[position], symbols[next[position]]));
      if (rule != rules_.end()) queue.push({rule->second.rank, position, rule->first, rule->second.result});
    };
    for (std::size_t i = 0; i + 1 < length; ++i) consider(i);
    std::vector<Candidate> round;
    while (!queue.empty()) {
      round.clear();
      do {
        round.push_back(queue.top());
        queue.pop();
      } while (!queue.empty() && queue.top().rank == round.front().rank);
      for (const Candidate& candidate : round) {
        const std::size_t left = candidate.position;
        if (symbols[left] == absorbed || next[left] >= length) continue;
        const std::size_t right = next[left];
        if (key(symbols[left], symbols[right]) != candidate.pair) continue;  // a neighbour was merged meanwhile
        symbols[left] = candidate.result;
        symbols[right] = absorbed;
        next[left] = next[right];
        if (next[left] < length) previous[next[left]] = left;
        consider(left);
        consider(previous[left]);
      }
    }
    std::vector<std::uint32_t> merged;
    for (const std::uint32_t symbol : symbols)
      if (symbol != absorbed) merged.push_back(symbol);
    return merged;
  }

 private:
  struct Rule {
    std::uint32_t rank;
    std::uint32_t result;
  };
  struct Candidate {
    std::uint32_t rank;
    std::size_t position;
    std::uint64_t pair;
    std::uint32_t result;
    friend bool operator>(const Candidate& a, const Candidate& b) {
      return a.rank != b.rank ? a.rank > b.rank : a.position > b.position;
    }
  };

  static constexpr std::uint32_t absorbed = 0xffffffffu;

  static std::uint64_t key(std::uint32_t left, std::uint32_t right) {
    return (static_cast<std::uint64_t>(left) << 32) | right;
  }

  std::uint32_t symbol_of(const std::string& text) {
    const auto [found, is_new] = symbols_.emplace(text, static_cast<std::uint32_t>(texts_.size()));
    if (is_new) texts_.push_back(text);
    return found->second;
  }

  std::vector<std::string> texts_;
  std::unordered_map<std::string, std::uint32_t> symbols_;
  std::vector<std::pair<std::string, std::string>> merges_;
  std::unordered_map<std::uint64_t, Rule> rules_;
};

}  // namespace lpo::inline LPO_ABI
