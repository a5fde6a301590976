// SPDX-License-Identifier: MIT
// NumPy's .npy files: a header in Python's notation and one dense array, row-major.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>
#include <lpo/io/dtype.hpp>
#include <lpo/io/file.hpp>

namespace lpo::inline LPO_ABI {

/// An array of any rank, row-major.
template <class T>
struct NpyArray {
  std::vector<index_t> shape;
  std::vector<T> values;
};

namespace detail {

// Not xtensor's load_npy: it misreads headers whose length has a byte of 128 or more, takes a cut-off file for a whole
// one, and allocates whatever the header says.

inline constexpr std::string_view npy_magic = "\x93NUMPY";

/// NumPy's name of an element type, or "" if it has none.
constexpr std::string_view npy_descr(DType dtype) {
  switch (dtype) {
    case DType::BOOL:
      return "|b1";
    case DType::U8:
      return "|u1";
    case DType::I8:
      return "|i1";
    case DType::I16:
      return "<i2";
    case DType::U16:
      return "<u2";
    case DType::F16:
      return "<f2";
    case DType::I32:
      return "<i4";
    case DType::U32:
      return "<u4";
    case DType::F32:
      return "<f4";
    case DType::F64:
      return "<f8";
    case DType::I64:
      return "<i8";
    case DType::U64:
      return "<u8";
    default:
      return "";
  }
}

/// Reads `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.
class NpyHeader {
 public:
  NpyHeader(std::string_view text, const std::string& file) : text_(text), file_(file) {
    std::optional<DType> found_dtype;
    bool found_shape = false;
    bool found_order = false;
    expect('{');
    while (!accept('}')) {
      const std::string_view key = quoted();
      expect(':');
      if (key == "descr") {
        found_dtype = dtype_named(quoted());
      } else if (key == "fortran_order") {
        if (word() != "False") fail("is in Fortran order, expected row-major; save it with numpy.ascontiguousarray");
        found_order = true;
      } else if (key == "shape") {
        read_shape();
        found_shape = true;
      } else {
        fail(message("header has the unknown key '", key, "'"));
      }
      if (!accept(',')) {
        expect('}');
        break;
      }
    }
    if (!found_dtype || !found_shape || !found_order) fail("header lacks descr, fortran_order or shape");
    dtype = *found_dtype;
  }

  DType dtype = DType::F32;
  std::vector<index_t> shape;

 private:
  [[noreturn]] LPO_COLD void fail(const std::string& what) const {
    throw FileError(message("[npy] ", file_, ": ", what));
  }

  void skip_space() {
    while (position_ < text_.size() && (text_[position_] == ' ' || text_[position_] == '\n')) ++position_;
  }
  bool accept(char wanted) {
    skip_space();
    if (position_ >= text_.size() || text_[position_] != wanted) return false;
    ++position_;
    return true;
  }
  void expect(char wanted) {
    if (!accept(wanted)) fail(message("header at ", position_, ": expected '", wanted, "'"));
  }
  std::string_view quoted() {
    const char quote = accept('"') ? '"' : '\'';
    if (quote == '\'') expect('\'');
    const std::size_t end = text_.find(quote, position_);
    if (end == std::string_view::npos) fail("header has a text without end");
    const std::string_view result = text_.substr(position_, end - position_);
    position_ = end + 1;
    return result;
  }
  std::string_view word() {
    skip_space();
    const std::size_t begin = position_;
    while (position_ < text_.size() && ((text_[position_] | 32) >= 'a' && (text_[position_] | 32) <= 'z')) ++position_;
    return text_.substr(begin, position_ - begin);
  }
  void read_shape() {
    expect('(');
    while (!accept(')')) {
      skip_space();
      index_t extent = 0;
      const std::size_t begin = position_;
      for (; position_ < text_.size() && text_[position_] >= '0' && text_[position_] <= '9'; ++position_)
        if (__builtin_mul_overflow(extent, index_t{10}, &extent) ||
            __builtin_add_overflow(extent, index_t{text_[position_] - '0'}, &extent))
          fail("header has an extent beyond 64 bits");
      if (position_ == begin) fail(message("header at ", position_, ": expected an extent"));
      shape.push_back(extent);
      if (!accept(',')) {
        expect(')');
        break;
      }
    }
  }
  DType dtype_named(std::string_view name) const {
    for (int i = 0; i < dtype_count; ++i) {
      const std::string_view known = npy_descr(static_cast<DType>(i));
      if (!known.empty() &&
          (name == known || (name.size() == 3 && name[0] == '=' && name.substr(1) == known.substr(1))))
        return static_cast<DType>(i);
    }
    fail(message("has element type '", name, "', expected a little-endian number type such as '<f4'"));
  }

  std::string_view text_;
  const std::string& file_;
  std::size_t position_ = 0;
};

}  // namespace detail

/// The array of .npy bytes, converted to `T` (float, double, half, bfloat16; integers only from integers).
template <class T>
NpyArray<T> parse_npy(std::string_view bytes, const std::string& file) {
  const auto fail = [&](const auto&... parts) { throw FileError(message("[npy] ", file, ": ", parts...)); };
  const auto byte = [&](std::size_t at) { return static_cast<std::size_t>(static_cast<unsigned char>(bytes[at])); };
  if (!bytes.starts_with(detail::npy_magic) || bytes.size() < 10) fail("is not a .npy file");
  const std::size_t version = byte(6);
  if (version < 1 || version > 3) fail("has format version ", version, ", expected 1 to 3");
  const std::size_t start = version == 1 ? 10 : 12;
  if (bytes.size() < start) fail("is cut off in its header");
  const std::size_t length = byte(8) | (byte(9) << 8) | (version == 1 ? 0 : (byte(10) << 16) | (byte(11) << 24));
  if (length > bytes.size() - start) fail("is cut off in its header");
  const detail::NpyHeader header(bytes.substr(start, length), file);
  const std::string_view data = bytes.substr(start + length);
  index_t count = 1;
  index_t needed = 0;
  bool overflow = false;
  for (const index_t extent : header.shape) overflow = __builtin_mul_overflow(count, extent, &count) || overflow;
  overflow = __builtin_mul_overflow(count, static_cast<index_t>(dtype_size(header.dtype)), &needed) || overflow;
  if (overflow || static_cast<std::size_t>(needed) != data.size())
    fail("shape ", detail::extents_text(header.shape.data(), static_cast<int>(header.shape.size())), " of ",
         dtype_name(header.dtype), " does not fit the ", data.size(), " bytes of data");
  if (std::is_integral_v<T> && is_floating(header.dtype))
    fail("holds ", dtype_name(header.dtype), ", expected an integer type");
  NpyArray<T> array{header.shape, std::vector<T>(static_cast<std::size_t>(count))};
  convert_from(header.dtype, data.data(), array.values.data(), count);
  return array;
}

/// Reads a file; see `parse_npy`.
template <class T>
NpyArray<T> read_npy(const std::string& path) {
  const MappedFile file(path);
  return parse_npy<T>(file.text(), path);
}

/// The bytes of a .npy file with version 1.0.
template <class T>
std::string npy_bytes(const T* values, const std::vector<index_t>& shape) {
  constexpr std::string_view descr = detail::npy_descr(dtype_of<T>());
  static_assert(!descr.empty(), "lpo npy: NumPy has no such element type; convert to float first");
  std::string header = message("{'descr': '", descr, "', 'fortran_order': False, 'shape': (");
  index_t bytes_of_data = sizeof(T);
  for (const index_t extent : shape) {
    header += message(extent, shape.size() == 1 ? "," : ", ");
    if (extent < 0 || __builtin_mul_overflow(bytes_of_data, extent, &bytes_of_data))
      throw ValueError(message("[npy] impossible shape ", detail::extents_text(shape.data(), static_cast<int>(shape.size()))));
  }
  if (shape.size() > 1) header.resize(header.size() - 2);
  header += "), }";
  header.resize((detail::npy_magic.size() + 4 + header.size() + 1 + 63) / 64 * 64 - detail::npy_magic.size() - 4 - 1,
                ' ');
  header += '\n';
  if (header.size() > 0xffff) throw ValueError("[npy] the array has too many axes for a .npy header");
  std::string bytes(detail::npy_magic);
  bytes += {'\x01', '\x00', static_cast<char>(static_cast<unsigned char>(header.size() & 0xff)),
            static_cast<char>(static_cast<unsigned char>(header.size() >> 8))};
  bytes += header;
  bytes.append(reinterpret_cast<const char*>(values), static_cast<std::size_t>(bytes_of_data));
  return bytes;
}

/// Writes an array, entirely or not at all.
template <class T>
void write_npy(const std::string& path, const T* values, const std::vector<index_t>& shape) {
  write_text_file(path, npy_bytes(values, shape));
}

}  // namespace lpo::inline LPO_ABI
