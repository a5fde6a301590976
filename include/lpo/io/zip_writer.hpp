// SPDX-License-Identifier: MIT
// ZipWriter: makes a zip archive of stored (not compressed) files in memory.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// CRC-32 as zip, gzip and PNG use it.
inline std::uint32_t crc32(std::string_view bytes) {
  static constexpr auto table = [] {
    std::array<std::uint32_t, 256> rows{};
    for (std::uint32_t byte = 0; byte < 256; ++byte) {
      std::uint32_t row = byte;
      for (int bit = 0; bit < 8; ++bit) row = (row >> 1) ^ ((row & 1) != 0 ? 0xedb88320u : 0u);
      rows[byte] = row;
    }
    return rows;
  }();
  std::uint32_t sum = ~std::uint32_t{0};
  for (const char byte : bytes) sum = (sum >> 8) ^ table[(sum ^ static_cast<unsigned char>(byte)) & 0xff];
  return ~sum;
}

/// Appends `value` in `width` bytes, lowest first.
inline void append_number(std::string& bytes, std::uint64_t value, int width) {
  for (int i = 0; i < width; ++i, value >>= 8) bytes += static_cast<char>(value & 0xff);
}

}  // namespace detail

/// For small archives: below 4 GiB and 65535 entries, without zip64.
class ZipWriter {
 public:
  /// Contents begin at multiples of this, which is torch's choice too.
  static constexpr std::size_t alignment = 64;

  void add(std::string_view name, std::string_view content) {
    if (bytes_.size() + content.size() + name.size() >= 0xff000000u || entries_ == 0xfffe)
      throw ValueError(message("[zip] archive with \"", name, "\" would exceed 4 GiB or 65534 entries"));
    // Everything that the local header and the directory say alike, from the version to the name's length.
    std::string common;
    detail::append_number(common, 20, 2);     // version
    detail::append_number(common, 0x800, 2);  // flags: the name is UTF-8
    detail::append_number(common, 0, 2);      // stored
    detail::append_number(common, 0, 2);      // time
    detail::append_number(common, 0x21, 2);   // 1 January 1980, so that equal contents make equal files
    detail::append_number(common, detail::crc32(content), 4);
    detail::append_number(common, content.size(), 4);
    detail::append_number(common, content.size(), 4);
    detail::append_number(common, name.size(), 2);
    constexpr std::size_t header_bytes = 30, field_bytes = 4;
    const std::size_t unpadded = bytes_.size() + header_bytes + name.size() + field_bytes;
    const std::size_t padding = (alignment - unpadded % alignment) % alignment;

    directory_ += "PK\x01\x02";
    detail::append_number(directory_, 20, 2);
    directory_ += common;
    detail::append_number(directory_, 0, 12);  // no extra field, comment, disk, attributes
    detail::append_number(directory_, bytes_.size(), 4);
    directory_ += name;

    bytes_ += "PK\x03\x04" + common;
    detail::append_number(bytes_, field_bytes + padding, 2);
    bytes_ += name;
    bytes_ += "FB";  // torch's mark for a field that only pads
    detail::append_number(bytes_, padding, 2);
    bytes_.append(padding, 'Z');
    bytes_ += content;
    ++entries_;
  }

  /// The whole archive.
  std::string bytes() const {
    std::string all = bytes_ + directory_ + "PK\x05\x06";
    detail::append_number(all, 0, 4);
    detail::append_number(all, entries_, 2);
    detail::append_number(all, entries_, 2);
    detail::append_number(all, directory_.size(), 4);
    detail::append_number(all, bytes_.size(), 4);
    detail::append_number(all, 0, 2);
    return all;
  }

 private:
  std::string bytes_, directory_;
  std::size_t entries_ = 0;
};

}  // namespace lpo::inline LPO_ABI
