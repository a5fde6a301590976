// SPDX-License-Identifier: MIT
// The forms in which the programs take preference pairs: pictures with a JSONL file, tar shards, or latents.
#pragma once

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include <lpo/io/preference_folder.hpp>

#if __has_include(<archive.h>)
#define LPO_WITH_SHARDS
#include <lpo/io/preference_shards.hpp>
#endif

namespace examples {

struct DataSet {
  enum class Kind { none, lines, shards, cache, latents } kind = Kind::none;
  std::string path;
  std::vector<std::string> files;  ///< the JSONL file, or the shards in their order

  /// True where pictures must be encoded first.
  bool has_pictures() const { return kind == Kind::lines || kind == Kind::shards; }
};

inline bool is_shard(const std::string& path) {
  return path.ends_with(".tar") || path.ends_with(".tar.gz") || path.ends_with(".tgz");
}

/// A folder with pairs.jsonl or metadata.jsonl, with *.tar files, or with the cache of an earlier run; a .jsonl, .tar
/// or .safetensors file. FileError if it is none of these.
inline DataSet open_data_set(const std::string& path) {
  using Kind = DataSet::Kind;
  DataSet data{Kind::none, path, {}};
  const auto is = [&](Kind kind, std::vector<std::string> files) {
    data.kind = kind;
    data.files = std::move(files);
#ifndef LPO_WITH_SHARDS
    if (kind == Kind::shards)
      throw lpo::FileError("[data] " + path + ": holds tar shards, and this program was compiled without libarchive");
#endif
    return data;
  };
  if (path.empty()) return data;
  if (lpo::file_exists(path)) {
    if (path.ends_with(".jsonl")) return is(Kind::lines, {path});
    if (path.ends_with(".safetensors")) return is(Kind::latents, {path});
    if (is_shard(path)) return is(Kind::shards, {path});
    throw lpo::FileError("[data] " + path + ": is no .jsonl, .tar or .safetensors file");
  }
  if (!lpo::directory_exists(path)) throw lpo::FileError("[data] " + path + ": there is no such file or folder");
  if (lpo::file_exists(path + "/cache.json")) return is(Kind::cache, {});
  for (const char* name : {"pairs.jsonl", "metadata.jsonl"})
    if (lpo::file_exists(path + "/" + name)) return is(Kind::lines, {path + "/" + name});
  std::vector<std::string> shards;
  for (const auto& entry : std::filesystem::directory_iterator(path))
    if (is_shard(entry.path().filename().string())) shards.push_back(entry.path().string());
  std::sort(shards.begin(), shards.end());
  if (!shards.empty()) return is(Kind::shards, std::move(shards));
  throw lpo::FileError("[data] " + path +
                       ": holds neither pairs.jsonl nor *.tar shards nor the cache of an earlier run");
}

/// Calls `use(PreferenceRecord&&)` for every record, in the order of the files, until it returns false.
template <class Use>
void for_each_record(const DataSet& data, const Use& use) {
  if (data.kind == DataSet::Kind::lines) lpo::read_preference_lines(data.files.front(), use);
#ifdef LPO_WITH_SHARDS
  bool more = true;
  lpo::index_t row = 0;
  if (data.kind == DataSet::Kind::shards)
    for (const std::string& shard : data.files)
      if (more)
        row += lpo::read_preference_shard(shard, row,
                                          [&](lpo::PreferenceRecord record) { return more = use(std::move(record)); });
#endif
}

/// How many records a set has: counted for lines, guessed from the bytes seen so far for shards, which do not say.
class RecordCount {
 public:
  explicit RecordCount(const DataSet& data) {
    if (data.kind == DataSet::Kind::lines) {
      const lpo::MappedFile file(data.files.front());
      const std::string_view text = file.text();
      lines_ = std::count(text.begin(), text.end(), '\n') + (text.empty() || text.ends_with('\n') ? 0 : 1);
    }
    for (const std::string& shard : data.files) bytes_ += static_cast<double>(std::filesystem::file_size(shard));
  }

  /// After `seen` records, whose pictures had `bytes` bytes.
  lpo::index_t total(lpo::index_t seen, double bytes) const {
    if (lines_ >= 0) return lines_;
    const double each = seen > 0 ? bytes / static_cast<double>(seen) + 3 * 768.0 : 2e5;  // a file begins with 512 bytes
    return std::max(seen, static_cast<lpo::index_t>(bytes_ / each));
  }

 private:
  lpo::index_t lines_ = -1;
  double bytes_ = 0;
};

}  // namespace examples
