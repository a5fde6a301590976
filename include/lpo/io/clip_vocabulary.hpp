// SPDX-License-Identifier: MIT
// ClipVocabulary: what a CLIP tokenizer is made of, read from and written to the files that transformers uses.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>
#include <lpo/io/byte_pair_encoding.hpp>
#include <lpo/io/file.hpp>
#include <lpo/io/json.hpp>
#include <lpo/io/json_config.hpp>

namespace lpo::inline LPO_ABI {

/// Tokens, merges and settings of a CLIP tokenizer.
struct ClipVocabulary {
  BytePairEncoding merges;
  std::vector<std::string> tokens;          ///< by id, as spelled in vocab.json
  std::vector<std::string> special_tokens;  ///< found in a text as they stand; each is in `tokens`
  std::string begin_token = "<|startoftext|>";
  std::string end_token = "<|endoftext|>";
  std::string unknown_token = "<|endoftext|>";
  std::string pad_token = "<|endoftext|>";
  index_t model_max_length = 77;
};

namespace detail {

// transformers' CLIPTokenizer looks at no more merges than OpenAI's vocabulary has.
inline constexpr std::size_t clip_merge_limit = 49152 - 256 - 2;

/// Lines of a merges file without the first, which is its version; at most `clip_merge_limit`.
inline void read_merge_lines(std::string_view text, const std::string& file, BytePairEncoding& merges) {
  std::size_t line_number = 0;
  while (!text.empty() && merges.merges().size() < clip_merge_limit) {
    const std::size_t end = text.find('\n');
    std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    ++line_number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line_number == 1 || line.empty()) continue;
    const std::size_t space = line.find(' ');
    if (space == 0 || space == std::string_view::npos || space + 1 == line.size() ||
        line.find(' ', space + 1) != std::string_view::npos)
      throw FileError(message("[tokenizer] ", file, ": line ", line_number, " is ",
                              json_preview(SortedJson(std::string(line))), ", expected two symbols and a space"));
    merges.add_merge(std::string(line.substr(0, space)), std::string(line.substr(space + 1)));
  }
}

inline void place_token(std::vector<std::string>& tokens, const std::string& token, const SortedJson& id,
                        const std::string& file) {
  if (token.empty()) throw FileError(message("[tokenizer] ", file, ": a token is empty; expected a text"));
  constexpr std::uint64_t id_limit = 1 << 20;  // a hostile id would otherwise size the table
  if (!id.is_number_unsigned() || id.get<std::uint64_t>() >= id_limit)
    throw FileError(message("[tokenizer] ", file, ": token \"", token, "\" has id ", json_preview(id),
                            ", expected an integer from 0 to ", id_limit - 1));
  const auto index = id.get<std::size_t>();
  if (tokens.size() <= index) tokens.resize(index + 1);
  if (!tokens[index].empty() && tokens[index] != token)
    throw FileError(
        message("[tokenizer] ", file, ": tokens \"", tokens[index], "\" and \"", token, "\" have the same id ", index));
  tokens[index] = token;
}

inline void place_tokens(std::vector<std::string>& tokens, const SortedJson& vocabulary, const std::string& file) {
  if (!vocabulary.is_object() || vocabulary.empty())
    throw FileError(message("[tokenizer] ", file, ": vocabulary is ", json_kind(vocabulary),
                            ", expected an object of token to id"));
  for (const auto& [token, id] : vocabulary.items()) place_token(tokens, token, id, file);
}

/// tokenizer.json of the tokenizers library, model type BPE; `path` is for messages.
inline void read_tokenizer_json(std::string_view text, const std::string& path, ClipVocabulary& vocabulary) {
  const auto json = parse_json<SortedJson>(text, "tokenizer", path);
  const auto fail = [&](const auto&... parts) { throw FileError(message("[tokenizer] ", path, ": ", parts...)); };
  if (!json.is_object() || !json.contains("model") || !json["model"].is_object()) fail("has no object \"model\"");
  const SortedJson& model = json["model"];
  if (!model.contains("vocab") || !model.contains("merges") || !model["merges"].is_array())
    fail("model has no \"vocab\" and \"merges\"; expected a BPE model");
  place_tokens(vocabulary.tokens, model["vocab"], path);
  for (const SortedJson& merge : model["merges"]) {
    std::string left;
    std::string right;
    if (merge.is_string()) {
      const auto& pair = merge.get_ref<const std::string&>();
      const std::size_t space = pair.find(' ');
      left = pair.substr(0, space);
      right = space == std::string::npos ? "" : pair.substr(space + 1);
    } else if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      left = merge[0].get<std::string>();
      right = merge[1].get<std::string>();
    }
    if (left.empty() || right.empty()) fail("merge is ", json_preview(merge), ", expected two symbols");
    vocabulary.merges.add_merge(left, right);
  }
  if (!json.contains("added_tokens")) return;
  if (!json["added_tokens"].is_array())
    fail("added_tokens is ", json_kind(json["added_tokens"]), ", expected an array");
  for (const SortedJson& added : json["added_tokens"]) {
    if (!added.is_object() || !added.contains("content") || !added["content"].is_string() || !added.contains("id"))
      fail("added token is ", json_preview(added), ", expected an object with content and id");
    place_token(vocabulary.tokens, added["content"].get<std::string>(), added["id"], path);
    vocabulary.special_tokens.push_back(added["content"].get<std::string>());
  }
}

/// The text of a token setting: a string, or an object with "content"; nothing if it is missing or null.
inline std::optional<std::string> token_setting(const JsonConfig& config, const std::string& key) {
  if (!config.has(key)) return std::nullopt;
  if (config.original()[key].is_object()) return config.child(key).get<std::string>("content");
  return config.get<std::string>(key);
}

inline void read_token_settings(const JsonConfig& config, ClipVocabulary& vocabulary) {
  const std::pair<const char*, std::string*> settings[] = {{"bos_token", &vocabulary.begin_token},
                                                           {"eos_token", &vocabulary.end_token},
                                                           {"unk_token", &vocabulary.unknown_token},
                                                           {"pad_token", &vocabulary.pad_token}};
  for (const auto& [key, token] : settings)
    if (auto text = token_setting(config, key)) *token = std::move(*text);
}

/// tokenizer_config.json, special_tokens_map.json and added_tokens.json, each if it is there.
inline void read_tokenizer_settings(const std::string& directory, ClipVocabulary& vocabulary) {
  bool lists_added_tokens = false;
  if (const std::string path = directory + "/tokenizer_config.json"; file_exists(path)) {
    const JsonConfig config = JsonConfig::from_file(path);
    read_token_settings(config, vocabulary);
    // A tokenizer without a limit says 10^30.
    const double length = config.get_or<double>("model_max_length", 77.0);
    if (!(length >= 2))
      throw FileError(message("[tokenizer] ", path, ": model_max_length is ", length, ", expected at least 2"));
    vocabulary.model_max_length = length > 1e6 ? 77 : static_cast<index_t>(length);
    lists_added_tokens = config.has("added_tokens_decoder");
    if (lists_added_tokens) {
      const JsonConfig added = config.child("added_tokens_decoder");
      for (const std::string& id : added.all_keys()) {
        const auto content = added.child(id).get<std::string>("content");
        const bool is_number = !id.empty() && id.size() < 9 && id.find_first_not_of("0123456789") == std::string::npos;
        place_token(vocabulary.tokens, content, is_number ? SortedJson(std::stoul(id)) : SortedJson(id), path);
        vocabulary.special_tokens.push_back(content);
      }
    }
  }
  // transformers lets the older file decide unless the newer one lists the added tokens. Stable Diffusion 2 depends on
  // it.
  if (const std::string path = directory + "/special_tokens_map.json"; !lists_added_tokens && file_exists(path))
    read_token_settings(JsonConfig::from_file(path), vocabulary);
  if (const std::string path = directory + "/added_tokens.json"; !lists_added_tokens && file_exists(path)) {
    const auto added = parse_json<SortedJson>(read_text_file(path), "tokenizer", path);
    if (!added.is_object())
      throw FileError(message("[tokenizer] ", path, ": is ", json_kind(added), ", expected an object"));
    for (const auto& [token, id] : added.items()) {
      place_token(vocabulary.tokens, token, id, path);
      vocabulary.special_tokens.push_back(token);
    }
  }
}

/// The tokens that a list of merges implies, in OpenAI's order: bytes, bytes that end a word, merges, the two markers.
inline std::vector<std::string> tokens_of_merges(const BytePairEncoding& merges) {
  std::vector<std::string> tokens;
  for (const unsigned first : {0u, 256u})
    for (const unsigned byte : bytes_in_vocabulary_order()) tokens.push_back(merges.text_of(first + byte));
  for (const auto& [left, right] : merges.merges()) tokens.push_back(left + right);
  tokens.emplace_back("<|startoftext|>");
  tokens.emplace_back("<|endoftext|>");
  return tokens;
}

}  // namespace detail

/// Reads a tokenizer directory: vocab.json and merges.txt, or else tokenizer.json, and the settings beside them.
inline ClipVocabulary read_clip_vocabulary(const std::string& directory) {
  ClipVocabulary vocabulary;
  const std::string vocab = directory + "/vocab.json";
  if (file_exists(vocab)) {
    detail::place_tokens(vocabulary.tokens, parse_json<SortedJson>(read_text_file(vocab), "tokenizer", vocab), vocab);
    const std::string merges = directory + "/merges.txt";
    detail::read_merge_lines(read_text_file(merges), merges, vocabulary.merges);
  } else if (const std::string whole = directory + "/tokenizer.json"; file_exists(whole)) {
    detail::read_tokenizer_json(read_text_file(whole), whole, vocabulary);
  } else {
    throw FileError(message("[tokenizer] ", directory, ": has neither vocab.json nor tokenizer.json"));
  }
  detail::read_tokenizer_settings(directory, vocabulary);
  return vocabulary;
}

/// The vocabulary of a merges text alone, built as OpenAI's CLIP does it (`bpe_simple_vocab_16e6.txt`; for the packed
/// file see `read_gzip_file`). `name` is for messages.
inline ClipVocabulary clip_vocabulary_of_merges(std::string_view text, const std::string& name) {
  ClipVocabulary vocabulary;
  detail::read_merge_lines(text, name, vocabulary.merges);
  vocabulary.tokens = detail::tokens_of_merges(vocabulary.merges);
  return vocabulary;
}

/// Writes vocab.json, merges.txt, tokenizer_config.json and special_tokens_map.json, which transformers' CLIPTokenizer
/// and CLIPTokenizerFast load. The directory is made if it is missing.
inline void write_clip_vocabulary(const ClipVocabulary& vocabulary, const std::string& directory) {
  make_directories(directory);
  std::string vocab = "{";
  for (std::size_t id = 0; id < vocabulary.tokens.size(); ++id)
    if (!vocabulary.tokens[id].empty())
      vocab += message(vocab.size() == 1 ? "\n  " : ",\n  ", SortedJson(vocabulary.tokens[id]).dump(), ": ", id);
  write_text_file(directory + "/vocab.json", vocab + "\n}\n");
  std::string merges = "#version: 0.2\n";
  for (const auto& [left, right] : vocabulary.merges.merges()) merges += left + " " + right + "\n";
  write_text_file(directory + "/merges.txt", merges);
  JsonConfig special(directory + "/special_tokens_map.json");
  special.set("bos_token", vocabulary.begin_token);
  special.set("eos_token", vocabulary.end_token);
  special.set("pad_token", vocabulary.pad_token);
  special.set("unk_token", vocabulary.unknown_token);
  special.write(special.name());
  JsonConfig config = JsonConfig::from_text(special.text(), directory + "/tokenizer_config.json");
  config.set("add_prefix_space", false);
  config.set("clean_up_tokenization_spaces", true);
  config.set("do_lower_case", true);
  config.set("errors", "replace");
  config.set("model_max_length", vocabulary.model_max_length);
  config.set("tokenizer_class", "CLIPTokenizer");
  config.write(config.name());
}

}  // namespace lpo::inline LPO_ABI
