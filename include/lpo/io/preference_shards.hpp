// SPDX-License-Identifier: MIT
// Preference pairs in WebDataset shards: tar files read through libarchive; programs that include this link with
// -larchive.
#pragma once

#include <array>
#include <cctype>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include <archive.h>
#include <archive_entry.h>

#include <lpo/io/file.hpp>
#include <lpo/io/preference_record.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// The regular files of a tar archive (plain or gzip) in memory, one after the other.
class TarReader {
 public:
  TarReader(std::string_view bytes, std::string file) : file_(std::move(file)), archive_(archive_read_new()) {
    if (archive_ == nullptr) throw FileError(message("[shards] ", file_, ": libarchive has no memory"));
    archive_read_support_format_tar(archive_.get());
    archive_read_support_filter_gzip(archive_.get());
    check(archive_read_open_memory(archive_.get(), bytes.data(), bytes.size()));
  }

  /// Goes on to the next file; false at the end.
  bool next() {
    while (true) {
      archive_entry* entry = nullptr;
      const int status = archive_read_next_header(archive_.get(), &entry);
      if (status == ARCHIVE_EOF) return false;
      check(status);
      if (archive_entry_filetype(entry) != AE_IFREG) continue;
      const char* const name = archive_entry_pathname(entry);
      if (name == nullptr) throw FileError(message("[shards] ", file_, ": an entry has a name that is not UTF-8"));
      name_ = name;
      size_ = archive_entry_size(entry);
      return true;
    }
  }

  const std::string& name() const { return name_; }

  /// The current file's bytes, at most `limit`.
  std::string read(std::size_t limit = std::size_t{1} << 28) {
    if (size_ < 0 || static_cast<std::uint64_t>(size_) > limit)
      throw FileError(message("[shards] ", file_, ": ", name_, " has ", size_, " bytes, expected at most ", limit));
    std::string bytes;
    char buffer[16384];
    while (true) {
      const la_ssize_t count = archive_read_data(archive_.get(), buffer, sizeof buffer);
      if (count < 0) check(static_cast<int>(count));
      if (count <= 0) break;
      bytes.append(buffer, static_cast<std::size_t>(count));
      if (bytes.size() > limit)
        throw FileError(message("[shards] ", file_, ": ", name_, " has more than ", limit, " bytes"));
    }
    if (bytes.size() != static_cast<std::size_t>(size_))
      throw FileError(
          message("[shards] ", file_, ": ", name_, " has ", bytes.size(), " bytes, its header says ", size_));
    return bytes;
  }

 private:
  struct Free {
    void operator()(archive* reader) const { archive_read_free(reader); }
  };

  /// A warning is about something that does not matter here (times, owners); a retry is an error: the bytes are in
  /// memory.
  void check(int status) const {
    if (status == ARCHIVE_OK || status == ARCHIVE_WARN) return;
    const char* const reason = archive_error_string(archive_.get());
    throw FileError(
        message("[shards] ", file_, ": not a whole tar file: ", reason == nullptr ? "unknown error" : reason));
  }

  std::string file_;
  std::unique_ptr<archive, Free> archive_;
  std::string name_;
  la_int64_t size_ = 0;
};

/// 0 or 1 for the ending of a picture ("0.jpg", "jpg_0", and so for png and jpeg), else -1.
inline int picture_of_ending(std::string ending) {
  for (char& c : ending) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  for (const int picture : {0, 1})
    for (const char* kind : {"jpg", "jpeg", "png"})
      if (ending == message(picture, ".", kind) || ending == message(kind, "_", picture)) return picture;
  return -1;
}

}  // namespace detail

/// Calls `use(PreferenceRecord&&)` for each record of a shard until it returns false. A record is a run of files of one
/// name up to the first dot: NAME.json with the members of parse_preference_record, and NAME.0.jpg and NAME.1.jpg (or
/// .png, .jpg_0 and so on). Its row is `first_row` and on, unless the JSON says it; without uids a picture is
/// "SHARD:NAME.0", without the shard's folder. Other files are passed over. FileError names the shard and the file in
/// it. Returns the number of records.
template <class Use>
index_t parse_preference_shard(std::string_view bytes, const std::string& shard, index_t first_row, const Use& use) {
  detail::TarReader tar(bytes, shard);
  std::string key, json;
  std::array<std::string, 2> pictures;
  index_t count = 0;
  const auto complete = [&] {
    if (json.empty() && pictures[0].empty() && pictures[1].empty()) return true;
    const std::string name = shard + ":" + key;
    const auto fail = [&](const auto&... parts) { throw FileError(message("[shards] ", name, ": ", parts...)); };
    if (json.empty()) fail("has pictures but no ", key, ".json");
    for (std::size_t i = 0; i < 2; ++i)
      if (pictures[i].empty())
        fail("has no picture ", i, "; expected ", key, ".", i, ".jpg or .png beside ", key, ".json");
    PreferenceRecord record =
        parse_preference_record(parse_json<SortedJson>(json, "shards", name + ".json"), name + ".json");
    if (record.row < 0) record.row = first_row + count;
    for (std::size_t i = 0; i < 2; ++i)
      if (record.uid[i].empty()) record.uid[i] = message(shard.substr(shard.find_last_of('/') + 1), ":", key, ".", i);
    record.encoded = std::move(pictures);
    pictures = {};
    json.clear();
    ++count;
    return use(std::move(record));
  };
  while (tar.next()) {
    const std::string& path = tar.name();
    const std::size_t base = path.find_last_of('/') == std::string::npos ? 0 : path.find_last_of('/') + 1;
    const std::size_t dot = path.find('.', base);
    if (dot == std::string::npos || dot == base) continue;
    const std::string ending = path.substr(dot + 1);
    const int picture = detail::picture_of_ending(ending);
    if (picture < 0 && ending != "json") continue;
    if (path.compare(0, dot, key) != 0) {
      if (!complete()) return count;
      key = path.substr(0, dot);
    }
    std::string& target = picture < 0 ? json : pictures[static_cast<std::size_t>(picture)];
    if (!target.empty()) throw FileError(message("[shards] ", shard, ":", path, ": the record has it twice"));
    target = tar.read();
    if (target.empty()) throw FileError(message("[shards] ", shard, ":", path, ": is empty"));
  }
  complete();
  return count;
}

/// The same for a file.
template <class Use>
index_t read_preference_shard(const std::string& path, index_t first_row, const Use& use) {
  const MappedFile file(path);
  return parse_preference_shard(file.text(), path, first_row, use);
}

}  // namespace lpo::inline LPO_ABI
