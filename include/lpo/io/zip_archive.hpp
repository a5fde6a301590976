// SPDX-License-Identifier: MIT
// ZipArchive: the stored (not compressed) files of a zip archive, read in place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>

namespace lpo::inline LPO_ABI {

/// The table of contents of an archive in memory, zip64 included; all views point into that memory. Compressed entries
/// are listed but not unpacked: what lpo reads (torch's checkpoints) has none. Checksums are not compared, so that
/// opening a large file touches little of it. Format: APPNOTE.TXT 6.3.
class ZipArchive {
 public:
  struct Entry {
    std::string_view content;  ///< as it lies in the file
    bool stored = true;        ///< false: compressed or encrypted
  };

  /// FileError if the bytes are no archive, or one that is cut off or damaged; `file` is for messages.
  ZipArchive(std::string_view bytes, std::string file) : bytes_(bytes), file_(std::move(file)) {
    const auto [begin, end, count] = find_directory();
    std::uint64_t at = begin;
    for (std::uint64_t i = 0; i < count; ++i) at = read_entry(at, end);
    if (at != end) fail("the directory has ", end - begin, " bytes, its ", count, " entries fill ", at - begin);
  }

  const std::map<std::string_view, Entry>& entries() const { return entries_; }

  bool contains(std::string_view name) const { return entries_.contains(name); }

  /// The content of a stored entry; FileError if there is none.
  std::string_view content(std::string_view name) const {
    const auto found = entries_.find(name);
    if (found == entries_.end()) fail("has no entry \"", name, "\"");
    if (!found->second.stored)
      fail("entry \"", name, "\" is compressed or encrypted, expected stored as torch.save does; repack with zip -0");
    return found->second.content;
  }

 private:
  struct Directory {
    std::uint64_t begin, end, count;
  };

  template <class... Parts>
  [[noreturn]] LPO_COLD void fail(const Parts&... parts) const {
    throw FileError(message("[zip] ", file_, ": ", parts...));
  }

  /// The little-endian number of `width` bytes at `at`.
  std::uint64_t number(std::uint64_t at, int width) const {
    std::uint64_t value = 0;
    const std::string_view field = piece(at, static_cast<std::uint64_t>(width), "a header");
    for (int i = width - 1; i >= 0; --i)
      value = (value << 8) | static_cast<unsigned char>(field[static_cast<std::size_t>(i)]);
    return value;
  }

  std::string_view piece(std::uint64_t at, std::uint64_t length, std::string_view what) const {
    if (at > bytes_.size() || length > bytes_.size() - at)
      fail(what, " of ", length, " bytes begins at ", at, ", but the file has ", bytes_.size(), "; it is cut off");
    return bytes_.substr(static_cast<std::size_t>(at), static_cast<std::size_t>(length));
  }

  bool has_signature(std::uint64_t at, std::uint32_t signature) const {
    return at <= bytes_.size() && bytes_.size() - at >= 4 && number(at, 4) == signature;
  }

  /// The end record is the last thing in a file but for a comment of at most 65535 bytes, whose length it states.
  std::uint64_t find_end_record() const {
    constexpr std::uint64_t record_bytes = 22, longest_comment = 0xffff;
    for (std::uint64_t comment = 0; comment <= longest_comment && record_bytes + comment <= bytes_.size(); ++comment) {
      const std::uint64_t at = bytes_.size() - record_bytes - comment;
      if (has_signature(at, 0x06054b50) && number(at + 20, 2) == comment) return at;
    }
    fail("has no end record; the archive is cut off, or something was appended to it");
  }

  Directory find_directory() const {
    const std::uint64_t end_record = find_end_record();
    std::uint64_t count = number(end_record + 10, 2);
    std::uint64_t size = number(end_record + 12, 4), begin = number(end_record + 16, 4), limit = end_record;
    if (end_record >= 20 && has_signature(end_record - 20, 0x07064b50)) {
      const std::uint64_t wide = number(end_record - 12, 8);
      if (!has_signature(wide, 0x06064b50)) fail("has no zip64 end record at ", wide, ", where its locator points");
      if (count == 0xffff) count = number(wide + 32, 8);
      if (size == 0xffffffff) size = number(wide + 40, 8);
      if (begin == 0xffffffff) begin = number(wide + 48, 8);
      limit = wide;
    }
    if (begin > limit || size > limit - begin)
      fail("the directory of ", size, " bytes at ", begin, " does not lie before its end record at ", limit);
    return {begin, begin + size, count};
  }

  /// Reads the directory's entry at `at` and returns where the next begins.
  std::uint64_t read_entry(std::uint64_t at, std::uint64_t end) {
    constexpr std::uint64_t header_bytes = 46;
    if (end - at < header_bytes || !has_signature(at, 0x02014b50)) fail("has no directory entry at ", at);
    const std::uint64_t flags = number(at + 8, 2), method = number(at + 10, 2);
    std::uint64_t packed = number(at + 20, 4), size = number(at + 24, 4), header = number(at + 42, 4);
    const std::uint64_t name_bytes = number(at + 28, 2), extra_bytes = number(at + 30, 2);
    const std::uint64_t next = at + header_bytes + name_bytes + extra_bytes + number(at + 32, 2);
    if (next > end) fail("the directory entry at ", at, " reaches beyond the directory");
    const std::string_view name = piece(at + header_bytes, name_bytes, "a name");
    widen(at + header_bytes + name_bytes, extra_bytes, size, packed, header);
    const bool stored = (flags & 1) == 0 && method == 0;
    if (stored && packed != size) fail("entry \"", name, "\" has two sizes, ", packed, " and ", size);
    // The local header repeats the name; only there stands how long its own extra field is.
    if (!has_signature(header, 0x04034b50)) fail("entry \"", name, "\" has no header at ", header);
    const std::uint64_t local_name_bytes = number(header + 26, 2), data = header + 30 + local_name_bytes;
    if (piece(header + 30, local_name_bytes, "a name") != name)
      fail("entry \"", name, "\" has another name in its own header at ", header);
    const std::string_view content = piece(data + number(header + 28, 2), packed, message("entry \"", name, "\""));
    if (!entries_.emplace(name, Entry{content, stored}).second) fail("has two entries \"", name, "\"");
    return next;
  }

  /// Replaces fields that say 2^32 - 1 by those of the zip64 extra field (id 1), which holds them in this order.
  void widen(std::uint64_t at, std::uint64_t length, std::uint64_t& size, std::uint64_t& packed,
             std::uint64_t& header) const {
    for (const std::uint64_t end = at + length; end - at >= 4;) {
      const std::uint64_t id = number(at, 2), field_end = at + 4 + number(at + 2, 2);
      if (field_end > end) return;
      if (id == 1) {
        at += 4;
        for (std::uint64_t* value : {&size, &packed, &header}) {
          if (*value != 0xffffffff || field_end - at < 8) continue;
          *value = number(at, 8);
          at += 8;
        }
        return;
      }
      at = field_end;
    }
  }

  std::string_view bytes_;
  std::string file_;
  std::map<std::string_view, Entry> entries_;
};

}  // namespace lpo::inline LPO_ABI
