// SPDX-License-Identifier: MIT
// ClipTokenizer: turns a prompt into the token ids that CLIP text encoders read, equal to transformers' CLIPTokenizer.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>
#include <lpo/io/clip_text_pieces.hpp>
#include <lpo/io/clip_vocabulary.hpp>
#include <lpo/io/unicode.hpp>

namespace lpo::inline LPO_ABI {

/// Byte-level BPE with lower-casing. Source: Radford et al., "Learning transferable visual models from natural language
/// supervision", 2021. Immutable but for `set_pad_token`; encoding from several threads is safe.
class ClipTokenizer {
 public:
  explicit ClipTokenizer(ClipVocabulary vocabulary, ClipCleanup cleanup = ClipCleanup::basic)
      : vocabulary_(std::move(vocabulary)), cleanup_(cleanup) {
    for (std::size_t id = 0; id < vocabulary_.tokens.size(); ++id)
      if (!vocabulary_.tokens[id].empty()) ids_[vocabulary_.tokens[id]] = static_cast<std::int32_t>(id);
    begin_id_ = required(vocabulary_.begin_token);
    end_id_ = required(vocabulary_.end_token);
    unknown_id_ = required(vocabulary_.unknown_token);
    if (vocabulary_.model_max_length < 2)
      throw ValueError(
          message("[tokenizer] model_max_length is ", vocabulary_.model_max_length, ", expected at least 2"));
    symbol_ids_.reserve(vocabulary_.merges.symbol_count());
    for (std::uint32_t symbol = 0; symbol < vocabulary_.merges.symbol_count(); ++symbol)
      symbol_ids_.push_back(id_of(vocabulary_.merges.text_of(symbol)));
    for (const std::string* token : {&vocabulary_.begin_token, &vocabulary_.end_token, &vocabulary_.unknown_token})
      vocabulary_.special_tokens.push_back(*token);
    set_pad_token(vocabulary_.pad_token);
  }

  /// Reads `vocab.json` and `merges.txt`, or `tokenizer.json`, and the settings beside them.
  static ClipTokenizer from_directory(const std::string& directory, ClipCleanup cleanup = ClipCleanup::basic) {
    return ClipTokenizer(read_clip_vocabulary(directory), cleanup);
  }

  /// The tokenizer of a merges text as OpenAI's CLIP ships it; the vocabulary follows from the merges.
  static ClipTokenizer from_merges(std::string_view text, const std::string& name = "merges") {
    return ClipTokenizer(clip_vocabulary_of_merges(text, name));
  }

  /// A small tokenizer in which every word of `texts` is one token. All bytes are tokens too, so any text can be
  /// encoded.
  static ClipTokenizer for_words(const std::vector<std::string>& texts, index_t model_max_length = 77) {
    ClipVocabulary vocabulary;
    vocabulary.model_max_length = model_max_length;
    BytePairEncoding& merges = vocabulary.merges;
    for (const std::string& text : texts) {
      const std::u32string cleaned = detail::clean_clip_text(text, ClipCleanup::basic);
      detail::for_each_clip_piece(cleaned, ClipCleanup::basic, [&](std::u32string_view piece) {
        const std::string word = detail::encode_utf8(piece);
        if (word == vocabulary.begin_token || word == vocabulary.end_token) return;
        // A later merge has a worse rank than all earlier ones, so it cannot change how earlier words are merged.
        for (auto symbols = merges.encode(word); symbols.size() > 1; symbols = merges.encode(word))
          merges.add_merge(std::string(merges.text_of(symbols[0])), std::string(merges.text_of(symbols[1])));
      });
    }
    vocabulary.tokens = detail::tokens_of_merges(merges);
    return ClipTokenizer(std::move(vocabulary));
  }

  /// Exactly `model_max_length` ids: begin, the text's tokens (cut off if too many), end, padding.
  std::vector<std::int32_t> encode(std::string_view text) const {
    std::vector<std::int32_t> ids = {begin_id_};
    const std::vector<std::int32_t> tokens = tokenize(text);
    const auto length = static_cast<std::size_t>(model_max_length());
    const std::size_t kept = std::min(tokens.size(), length - 2);
    ids.insert(ids.end(), tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(kept));
    ids.push_back(end_id_);
    ids.resize(length, pad_id_);
    return ids;
  }

  /// Ids of the text alone, however many. Invalid UTF-8 counts as U+FFFD. Special tokens stand for themselves where the
  /// text spells them out.
  std::vector<std::int32_t> tokenize(std::string_view text) const {
    std::vector<std::int32_t> ids;
    std::size_t plain = 0;
    for (std::size_t i = 0; i < text.size();) {
      const std::string* const special = special_token_at(text.substr(i));
      if (special == nullptr) {
        ++i;
        continue;
      }
      append_plain(text.substr(plain, i - plain), ids);
      ids.push_back(id_of(*special));
      i += special->size();
      plain = i;
    }
    append_plain(text.substr(plain), ids);
    return ids;
  }

  /// The text of ids, without begin, end and padding; bytes as they are, also where they are not valid UTF-8.
  std::string decode(const std::vector<std::int32_t>& ids) const {
    std::unordered_map<char32_t, char> byte_of;
    for (unsigned byte = 0; byte < 256; ++byte)
      byte_of[detail::byte_code_point(byte)] = static_cast<char>(static_cast<unsigned char>(byte));
    std::string text;
    for (const std::int32_t id : ids) {
      if (id == begin_id_ || id == end_id_ || id == pad_id_) continue;
      std::string_view token = token_of(id);
      const bool ends_word = token.ends_with(BytePairEncoding::word_end);
      if (ends_word) token.remove_suffix(BytePairEncoding::word_end.size());
      for (const char32_t code : detail::decode_utf8(token)) {
        const auto byte = byte_of.find(code);
        if (byte != byte_of.end()) text.push_back(byte->second);
      }
      if (ends_word) text.push_back(' ');
    }
    if (text.ends_with(' ')) text.pop_back();
    return text;
  }

  index_t model_max_length() const { return vocabulary_.model_max_length; }
  /// One more than the greatest id: the rows of a text encoder's token embedding.
  index_t vocabulary_size() const { return static_cast<index_t>(vocabulary_.tokens.size()); }
  std::int32_t begin_id() const { return begin_id_; }
  std::int32_t end_id() const { return end_id_; }
  std::int32_t pad_id() const { return pad_id_; }
  const ClipVocabulary& vocabulary() const { return vocabulary_; }

  /// The id of a token as vocab.json spells it, or the unknown token's.
  std::int32_t id_of(const std::string& token) const {
    const auto found = ids_.find(token);
    return found == ids_.end() ? unknown_id_ : found->second;
  }

  /// The token of an id, as vocab.json spells it.
  const std::string& token_of(std::int32_t id) const {
    if (id < 0 || id >= vocabulary_size())
      throw ValueError(message("[tokenizer] id ", id, " is outside the vocabulary of ", vocabulary_size()));
    return vocabulary_.tokens[static_cast<std::size_t>(id)];
  }

  /// Pads with this token from now on ("!" for SDXL's second tokenizer: id 0). As in transformers, the pad token then
  /// also stands for itself wherever a text contains it.
  void set_pad_token(const std::string& token) {
    pad_id_ = required(token);
    vocabulary_.pad_token = token;
    auto& special = vocabulary_.special_tokens;
    special.push_back(token);
    // The longest that fits is taken.
    std::sort(special.begin(), special.end(), [](const std::string& a, const std::string& b) {
      return a.size() != b.size() ? a.size() > b.size() : a < b;
    });
    special.erase(std::unique(special.begin(), special.end()), special.end());
  }

  /// Writes the files that transformers' CLIPTokenizer loads.
  void save(const std::string& directory) const { write_clip_vocabulary(vocabulary_, directory); }

 private:
  std::int32_t required(const std::string& token) const {
    const auto found = ids_.find(token);
    if (found == ids_.end())
      throw FileError(message("[tokenizer] the vocabulary has no token \"", token, "\", which the settings name"));
    return found->second;
  }

  const std::string* special_token_at(std::string_view text) const {
    for (const std::string& token : vocabulary_.special_tokens)
      if (text.starts_with(token)) return &token;
    return nullptr;
  }

  void append_plain(std::string_view text, std::vector<std::int32_t>& ids) const {
    const std::u32string cleaned = detail::clean_clip_text(text, cleanup_);
    detail::for_each_clip_piece(cleaned, cleanup_, [&](std::u32string_view piece) {
      const std::string word = detail::encode_utf8(piece);
      if (word == "<|startoftext|>" || word == "<|endoftext|>") {  // spelled with capitals: not split off above
        ids.push_back(id_of(word));
        return;
      }
      for (const std::uint32_t symbol : vocabulary_.merges.encode(word)) ids.push_back(symbol_ids_[symbol]);
    });
  }

  ClipVocabulary vocabulary_;
  ClipCleanup cleanup_;
  std::unordered_map<std::string, std::int32_t> ids_;
  std::vector<std::int32_t> symbol_ids_;
  std::int32_t begin_id_ = 0;
  std::int32_t end_id_ = 0;
  std::int32_t unknown_id_ = 0;
  std::int32_t pad_id_ = 0;
};

}  // namespace lpo::inline LPO_ABI
