// SPDX-License-Identifier: MIT
// Reading of gzip files through zlib; programs that include this link with -lz.
#pragma once

#include <zlib.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/io/file.hpp>

namespace lpo::inline LPO_ABI {

/// The unpacked content of a gzip text, of all its members one after the other; `file` is for messages. FileError if it
/// is damaged, cut off, or would unpack to more than `limit` bytes.
inline std::string gunzip(std::string_view packed, const std::string& file, std::size_t limit = std::size_t{1} << 28) {
  z_stream stream{};
  constexpr int gzip_only = 15 + 16;
  if (inflateInit2(&stream, gzip_only) != Z_OK) throw FileError(message("[gzip] ", file, ": zlib cannot start"));
  struct End {
    z_stream& stream;
    ~End() { inflateEnd(&stream); }
  } const end{stream};
  std::string text;
  std::string piece(std::size_t{1} << 16, '\0');
  // zlib counts in unsigned int, so a huge input goes in by pieces too.
  std::size_t given = 0;
  for (;;) {
    if (stream.avail_in == 0) {
      const std::size_t now = std::min<std::size_t>(packed.size() - given, std::size_t{1} << 30);
      if (now == 0) throw FileError(message("[gzip] ", file, ": the compressed data is cut off"));
      stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(packed.data() + given));
      stream.avail_in = static_cast<uInt>(now);
      given += now;
    }
    stream.next_out = reinterpret_cast<Bytef*>(piece.data());
    stream.avail_out = static_cast<uInt>(piece.size());
    const int status = inflate(&stream, Z_NO_FLUSH);
    if (status != Z_OK && status != Z_STREAM_END)
      throw FileError(message("[gzip] ", file, ": damaged: ", stream.msg == nullptr ? "not a gzip file" : stream.msg));
    text.append(piece.data(), piece.size() - stream.avail_out);
    if (text.size() > limit) throw FileError(message("[gzip] ", file, ": unpacks to more than ", limit, " bytes"));
    if (status != Z_STREAM_END) continue;
    if (stream.avail_in == 0 && given == packed.size()) return text;
    inflateReset(&stream);  // another member follows
  }
}

/// The text of a file, unpacked if it is gzip.
inline std::string read_gzip_file(const std::string& path) {
  const MappedFile file(path);
  if (file.text().starts_with("\x1f\x8b")) return gunzip(file.text(), path);
  return read_text_file(path);
}

}  // namespace lpo::inline LPO_ABI
