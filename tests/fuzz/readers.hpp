// SPDX-License-Identifier: MIT
// What fuzzing demands of each reader: any bytes give a good result or a FileError, and a good result keeps its
// promises.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <lpo/io/clip_tokenizer.hpp>
#include <lpo/io/gzip.hpp>
#include <lpo/io/json_config.hpp>
#include <lpo/io/npy.hpp>
#include <lpo/io/png.hpp>
#include <lpo/io/preference_folder.hpp>
#include <lpo/io/preference_gaps.hpp>
#include <lpo/io/safetensors.hpp>
#include <lpo/io/torch_file.hpp>
#include <lpo/io/zip_writer.hpp>

#if __has_include(<archive.h>)
#include <lpo/io/preference_shards.hpp>
#endif

namespace fuzz {

/// Not a FileError, so that both libFuzzer and the mutation test stop at it.
inline void demand(bool holds, const char* promise) {
  if (!holds) throw std::logic_error(promise);
}

/// Every reader below returns true if the bytes were accepted.
inline bool read_safetensors(std::string_view bytes) {
  try {
    const auto file = lpo::SafetensorsFile::from_memory(bytes.data(), bytes.size(), "fuzz.safetensors");
    lpo::SafetensorsWriter writer;
    for (const auto& [key, value] : file.metadata()) writer.set_metadata(key, value);
    std::size_t sum = 0;
    for (const std::string& key : file.keys()) {
      const lpo::TensorInfo& info = file.info(key);
      demand(file.read_vector<double>(key).size() == static_cast<std::size_t>(info.count()), "all elements are read");
      demand(info.count() * static_cast<lpo::index_t>(lpo::dtype_size(info.dtype)) ==
                 static_cast<lpo::index_t>(info.bytes),
             "bytes are whole elements");
      writer.add(key, info.dtype, info.shape, info.data);
      sum += info.bytes;
    }
    demand(sum < bytes.size(), "tensors lie in the file");
    const std::string again = writer.bytes();
    const auto copy = lpo::SafetensorsFile::from_memory(again.data(), again.size(), "copy.safetensors");
    demand(copy.keys() == file.keys() && copy.metadata() == file.metadata(), "a copy has the same tensors");
    for (const std::string& key : file.keys()) {
      const lpo::TensorInfo& a = file.info(key);
      const lpo::TensorInfo& b = copy.info(key);
      demand(a.dtype == b.dtype && a.shape == b.shape &&
                 std::string_view(reinterpret_cast<const char*>(a.data), a.bytes) ==
                     std::string_view(reinterpret_cast<const char*>(b.data), b.bytes),
             "a copy has the same bytes");
    }
  } catch (const lpo::FileError&) {
    return false;
  }
  return true;
}

/// A torch file; its tensors survive a copy as safetensors.
inline bool read_torch_file(std::string_view bytes) {
  try {
    const auto file = lpo::TorchFile::from_memory(bytes.data(), bytes.size(), "fuzz.pt");
    lpo::SafetensorsWriter writer;
    for (const auto& [key, value] : file.metadata()) writer.set_metadata(key, value);
    for (const std::string& key : file.keys()) {
      const lpo::TensorInfo& info = file.info(key);
      std::size_t count = 1;
      for (const lpo::index_t extent : info.shape) count *= static_cast<std::size_t>(extent);
      demand(info.bytes == count * lpo::dtype_size(info.dtype), "shape and bytes agree");
      demand(info.bytes <= 4 * bytes.size() + (1 << 20), "tensors are not much larger than the file");
      demand(file.read_vector<double>(key).size() == count, "all elements are read");
      if (key != "__metadata__") writer.add(key, info.dtype, info.shape, info.data);
    }
    (void)writer.bytes();
  } catch (const lpo::FileError&) {
    return false;
  }
  return true;
}

/// A pickle by itself, as mutation seldom gets one through the archive around it.
inline bool read_pickle(std::string_view bytes) {
  lpo::ZipWriter zip;
  zip.add("x/data.pkl", bytes);
  zip.add("x/data/0", std::string(48, '\1'));
  return read_torch_file(zip.bytes());
}

/// Asks for a value and ignores that it has another type.
template <class T>
void try_get(const lpo::JsonConfig& config, const std::string& key) {
  try {
    (void)config.get<T>(key);
    (void)config.get_per_level_or<T>(key, 4, T{});
  } catch (const lpo::FileError&) {
  }
}

inline bool read_json_config(std::string_view bytes) {
  try {
    const auto config = lpo::JsonConfig::from_text(bytes, "fuzz.json");
    demand(lpo::JsonConfig::from_text(config.text(), "again").original() == config.original(), "a copy is equal");
    for (const std::string& key : config.all_keys()) {
      try_get<int>(config, key);
      try_get<unsigned char>(config, key);
      try_get<double>(config, key);
      try_get<bool>(config, key);
      try_get<std::string>(config, key);
      try_get<std::optional<std::vector<lpo::index_t>>>(config, key);
      try_get<std::vector<std::vector<std::string>>>(config, key);
    }
    demand(config.unread_keys().empty(), "every key was asked for");
  } catch (const lpo::FileError&) {
    return false;
  }
  return true;
}

inline void check_tokens(const lpo::ClipTokenizer& tokenizer, std::string_view text) {
  const auto ids = tokenizer.encode(text);
  demand(static_cast<lpo::index_t>(ids.size()) == tokenizer.model_max_length(), "ids fill the length");
  demand(ids[0] == tokenizer.begin_id(), "ids begin with the begin token");
  bool ends = false;
  for (const std::int32_t id : ids) {
    demand(id >= 0 && id < tokenizer.vocabulary_size(), "ids are in the vocabulary");
    ends = ends || id == tokenizer.end_id();
  }
  demand(ends, "ids have an end token");
  (void)tokenizer.decode(tokenizer.tokenize(text));
}

/// Any text under a small vocabulary: clean-up and merging.
inline bool read_prompt(std::string_view bytes) {
  static const auto words = lpo::ClipTokenizer::for_words({"a red circle on the left isn't very small"});
  static const lpo::ClipTokenizer fast(words.vocabulary(), lpo::ClipCleanup::fast);
  check_tokens(words, bytes);
  check_tokens(fast, bytes);
  // Clean text stays as it is; characters that the clean-up takes apart or away are not clean.
  const std::u32string cleaned = lpo::detail::clean_clip_text(bytes, lpo::ClipCleanup::fast);
  demand(lpo::detail::encode_utf8(lpo::detail::decode_utf8(lpo::detail::encode_utf8(cleaned))) ==
             lpo::detail::encode_utf8(cleaned),
         "cleaned text is UTF-8");
  const std::u32string composed = lpo::detail::normalize_nfc(lpo::detail::decode_utf8(bytes));
  demand(lpo::detail::normalize_nfc(composed) == composed, "composing twice changes nothing");
  return true;
}

/// Vocabulary files: a merges text (gzip or not), or a tokenizer.json.
inline bool read_vocabulary(std::string_view bytes) {
  try {
    lpo::ClipVocabulary vocabulary;
    if (bytes.starts_with('{')) {
      lpo::detail::read_tokenizer_json(bytes, "fuzz.json", vocabulary);
    } else if (bytes.starts_with("\x1f\x8b")) {
      vocabulary = lpo::clip_vocabulary_of_merges(lpo::gunzip(bytes, "fuzz.gz", 1 << 20), "fuzz.gz");
    } else {
      vocabulary = lpo::clip_vocabulary_of_merges(bytes, "fuzz.txt");
    }
    const lpo::ClipTokenizer tokenizer(vocabulary);
    check_tokens(tokenizer, "a red circle! <|endoftext|> 12");
    check_tokens(tokenizer, bytes.substr(0, 200));
  } catch (const lpo::FileError&) {
    return false;
  }
  return true;
}

inline bool read_png(std::string_view bytes) {
  try {
    const auto content = lpo::decode_png(bytes, "fuzz.png", 1 << 16);
    demand(content.image.pixels.size() == static_cast<std::size_t>(content.image.width * content.image.height) * 3,
           "all pixels are there");
    const auto again = lpo::decode_png(lpo::encode_png(content.image), "again.png");
    demand(again.image == content.image, "a copy has the same pixels");
  } catch (const lpo::FileError&) {
    return false;
  }
  return true;
}

inline bool read_npy(std::string_view bytes) {
  try {
    const auto array = lpo::parse_npy<double>(bytes, "fuzz.npy");
    const auto again = lpo::parse_npy<double>(lpo::npy_bytes(array.values.data(), array.shape), "again.npy");
    demand(again.shape == array.shape, "a copy has the same shape");
  } catch (const lpo::FileError&) {
    return false;
  }
  return true;
}

inline void check_preference(const lpo::PreferenceRecord& record) {
  const auto& label = record.label;
  demand(!record.has_label || label.label_0 + label.label_1 == 1.0f, "labels share one");
  demand(label.num_examples == 0 || label.num_examples >= 1, "examples are counted");
  demand(record.row >= 0, "every record has a row");
  for (std::size_t i = 0; i < 2; ++i) {
    demand(record.path[i].empty() != record.encoded[i].empty(), "a picture is a file or in memory");
    demand(!record.uid[i].empty(), "every picture has a uid");
  }
}

inline bool read_preference_lines(std::string_view bytes) {
  try {
    lpo::parse_preference_lines(bytes, "fuzz/pairs.jsonl", [](const lpo::PreferenceRecord& record) {
      check_preference(record);
      return true;
    });
  } catch (const lpo::FileError&) {
    return false;
  }
  return true;
}

inline bool read_preference_gaps(std::string_view bytes) {
  try {
    const auto rows = lpo::parse_preference_gaps(bytes, "fuzz.csv");
    demand(rows.size() <= bytes.size() / 8, "a row has at least seven characters and an end");
    for (const lpo::ScoredPair& row : rows) (void)lpo::mpcf_keeps(row.gaps, row.tie);
  } catch (const lpo::FileError&) {
    return false;
  }
  return true;
}

inline bool read_preference_shard(std::string_view bytes) {
#if __has_include(<archive.h>)
  try {
    lpo::index_t used = 0;
    const lpo::index_t count =
        lpo::parse_preference_shard(bytes, "fuzz.tar", 0, [&](const lpo::PreferenceRecord& record) {
          check_preference(record);
          ++used;
          return true;
        });
    demand(used == count, "every record is used");
  } catch (const lpo::FileError&) {
    return false;
  }
  return true;
#else
  return bytes.empty();
#endif
}

}  // namespace fuzz
