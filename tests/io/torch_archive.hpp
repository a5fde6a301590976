// SPDX-License-Identifier: MIT
// Files of torch's format with a pickle written by hand, for what torch itself would not write.
#pragma once

#include <initializer_list>
#include <lpo/io/zip_writer.hpp>
#include <string>
#include <string_view>

namespace torch_archive {

/// An archive with this pickle and the storages "0", "1" ….
inline std::string of(std::string_view pickle, std::initializer_list<std::string_view> storages = {}) {
  lpo::ZipWriter zip;
  zip.add("x/data.pkl", pickle);
  std::size_t number = 0;
  for (const std::string_view storage : storages) zip.add("x/data/" + std::to_string(number++), storage);
  return zip.bytes();
}

/// {"t": pickle code}
inline std::string entry(const std::string& code) { return "\x80\x02}X" + std::string("\x01\0\0\0t", 5) + code + "s."; }

/// Code of a small non-negative integer, and of a tuple.
inline std::string integer(int value) {
  std::string code = "J";
  for (int i = 0; i < 4; ++i) code += static_cast<char>((static_cast<unsigned>(value) >> (8 * i)) & 0xff);
  return code;
}
inline std::string tuple(std::initializer_list<int> values) {
  std::string code = "(";
  for (const int value : values) code += integer(value);
  return code + "t";
}

/// Code of a tensor on storage "0" of `elements` elements.
inline std::string tensor(int elements, int offset, std::initializer_list<int> size, std::initializer_list<int> stride,
                          const std::string& storage = "torch\nFloatStorage\n") {
  return "ctorch._utils\n_rebuild_tensor_v2\n((X" + std::string("\x07\0\0\0storage", 11) + "c" + storage + "X" +
         std::string("\x01\0\0\0\x30", 5) + "X" + std::string("\x03\0\0\0cpu", 7) + integer(elements) + "tQ" +
         integer(offset) + tuple(size) + tuple(stride) + "\x89" "ccollections\nOrderedDict\n)RtR";
}

}  // namespace torch_archive
