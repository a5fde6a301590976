// SPDX-License-Identifier: MIT
// PNG through libpng: pictures with text chunks, to and from memory and files; programs that include this link with
// -lpng.
#pragma once

#include <png.h>

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/io/file.hpp>
#include <lpo/io/image.hpp>
#include <lpo/io/unicode.hpp>

namespace lpo::inline LPO_ABI {

/// A PNG text chunk in UTF-8. Image programs look for the prompt and settings under the keyword "parameters".
struct PngText {
  std::string keyword;
  std::string text;
};

/// A picture and the texts that came with it.
struct PngContent {
  RgbImage image;
  std::vector<PngText> texts;
};

namespace detail {

// libpng reports errors by longjmp. The functions that call setjmp below hold nothing but plain pointers and numbers,
// so that no destructor is jumped over; everything that owns memory lives in their callers.

struct PngSource {
  const char* data;
  std::size_t left;
};

struct PngFailure {
  char text[160] = "";
};

inline void png_failed(png_structp png, png_const_charp text) {
  auto* const failure = static_cast<PngFailure*>(png_get_error_ptr(png));
  std::snprintf(failure->text, sizeof failure->text, "%s", text);
  png_longjmp(png, 1);
}

inline void png_warned(png_structp, png_const_charp) {}

inline void png_read_bytes(png_structp png, png_bytep destination, std::size_t count) {
  auto* const source = static_cast<PngSource*>(png_get_io_ptr(png));
  if (count > source->left) png_error(png, "the file is cut off");
  std::memcpy(destination, source->data, count);
  source->data += count;
  source->left -= count;
}

inline void png_append_bytes(png_structp png, png_bytep data, std::size_t count) {
  bool stored = true;
  try {
    static_cast<std::string*>(png_get_io_ptr(png))->append(reinterpret_cast<const char*>(data), count);
  } catch (...) {
    stored = false;
  }
  if (!stored) png_error(png, "out of memory");
}

inline void png_flush_nothing(png_structp) {}

/// The two structs of libpng, freed together.
struct PngReader {
  PngFailure failure;
  png_structp png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &failure, png_failed, png_warned);
  png_infop info = png == nullptr ? nullptr : png_create_info_struct(png);
  PngReader() = default;
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;
  ~PngReader() { png_destroy_read_struct(&png, &info, nullptr); }
};

struct PngWriter {
  PngFailure failure;
  png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &failure, png_failed, png_warned);
  png_infop info = png == nullptr ? nullptr : png_create_info_struct(png);
  PngWriter() = default;
  PngWriter(const PngWriter&) = delete;
  PngWriter& operator=(const PngWriter&) = delete;
  ~PngWriter() { png_destroy_write_struct(&png, &info); }
};

/// Reads the header and asks for 8-bit RGB rows; false if libpng complained.
inline bool png_begin_reading(png_structp png, png_infop info, PngSource* source) {
  if (setjmp(png_jmpbuf(png)) != 0) return false;
  png_set_read_fn(png, source, png_read_bytes);
  // A few bytes can ask for gigabytes: bound what a chunk may take, and how many texts are kept.
  png_set_chunk_malloc_max(png, 1 << 24);
  png_set_chunk_cache_max(png, 256);
  png_read_info(png, info);
  png_set_expand(png);
  png_set_scale_16(png);
  png_set_gray_to_rgb(png);
  png_set_strip_alpha(png);
  png_set_interlace_handling(png);
  png_read_update_info(png, info);
  return true;
}

inline bool png_read_rows(png_structp png, png_infop info, png_bytepp rows) {
  if (setjmp(png_jmpbuf(png)) != 0) return false;
  png_read_image(png, rows);
  png_read_end(png, info);
  return true;
}

inline bool png_write_all(png_structp png, png_infop info, std::string* out, const RgbImage* image, png_textp texts,
                          int text_count, png_bytepp rows) {
  if (setjmp(png_jmpbuf(png)) != 0) return false;
  png_set_write_fn(png, out, png_append_bytes, png_flush_nothing);
  png_set_IHDR(png, info, static_cast<png_uint_32>(image->width), static_cast<png_uint_32>(image->height), 8,
               PNG_COLOR_TYPE_RGB, PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
  if (text_count != 0) png_set_text(png, info, texts, text_count);
  png_write_info(png, info);
  png_write_image(png, rows);
  png_write_end(png, nullptr);
  return true;
}

inline std::vector<png_bytep> png_rows(const RgbImage& image) {
  std::vector<png_bytep> rows;
  // libpng's row type is not const even for writing, where it only reads.
  for (int y = 0; y < image.height; ++y) rows.push_back(const_cast<png_bytep>(image.at(0, y)));
  return rows;
}

inline bool is_ascii(std::string_view text) {
  for (const char c : text)
    if (static_cast<unsigned char>(c) >= 0x80) return false;
  return true;
}

/// Latin-1, the encoding of old text chunks, as UTF-8.
inline std::string utf8_of_latin1(std::string_view text) {
  std::string out;
  for (const char c : text) append_utf8(out, static_cast<unsigned char>(c));
  return out;
}

}  // namespace detail

/// Decodes a PNG of any kind to 8-bit RGB; transparency is dropped, as PIL's convert("RGB") does. FileError names
/// `file` if the data is damaged, cut off, or larger than `max_pixels`.
inline PngContent decode_png(std::string_view bytes, const std::string& file,
                             std::size_t max_pixels = std::size_t{1} << 27) {
  constexpr std::size_t signature_bytes = 8;
  if (bytes.size() < signature_bytes ||
      png_sig_cmp(reinterpret_cast<png_const_bytep>(bytes.data()), 0, signature_bytes) != 0)
    throw FileError(message("[png] ", file, ": is not a PNG file"));
  detail::PngReader reader;
  if (reader.info == nullptr) throw FileError(message("[png] ", file, ": libpng cannot start"));
  const auto fail = [&] { throw FileError(message("[png] ", file, ": ", reader.failure.text)); };
  detail::PngSource source{bytes.data(), bytes.size()};
  if (!detail::png_begin_reading(reader.png, reader.info, &source)) fail();
  const std::size_t width = png_get_image_width(reader.png, reader.info);
  const std::size_t height = png_get_image_height(reader.png, reader.info);
  if (width * height > max_pixels)
    throw FileError(message("[png] ", file, ": has ", width, " x ", height, " pixels, expected at most ", max_pixels));
  if (png_get_rowbytes(reader.png, reader.info) != width * 3)
    throw FileError(message("[png] ", file, ": libpng does not turn this kind of PNG into RGB"));
  PngContent content;
  content.image = RgbImage(static_cast<int>(width), static_cast<int>(height));
  std::vector<png_bytep> rows = detail::png_rows(content.image);
  if (!detail::png_read_rows(reader.png, reader.info, rows.data())) fail();
  png_textp texts = nullptr;
  int count = 0;
  png_get_text(reader.png, reader.info, &texts, &count);
  for (int i = 0; i < count; ++i) {
    const bool is_utf8 = texts[i].compression >= PNG_ITXT_COMPRESSION_NONE;
    const std::size_t length = is_utf8 ? texts[i].itxt_length : texts[i].text_length;
    const std::string_view text =
        texts[i].text == nullptr ? std::string_view() : std::string_view(texts[i].text, length);
    content.texts.push_back(
        {detail::utf8_of_latin1(texts[i].key), is_utf8 ? std::string(text) : detail::utf8_of_latin1(text)});
  }
  return content;
}

/// Reads a file; see `decode_png`.
inline PngContent read_png(const std::string& path) {
  const MappedFile file(path);
  return decode_png(file.text(), path);
}

/// The bytes of an 8-bit RGB PNG. Texts that are not ASCII are stored as UTF-8 (iTXt), the others as tEXt.
inline std::string encode_png(const RgbImage& image, const std::vector<PngText>& texts = {}) {
  const auto needed = static_cast<std::size_t>(image.width) * static_cast<std::size_t>(image.height) * 3;
  if (image.width < 1 || image.height < 1 || image.pixels.size() != needed)
    throw ValueError(message("[png] an image of ", image.width, " x ", image.height, " with ", image.pixels.size(),
                             " bytes cannot be written"));
  std::vector<png_text> chunks;
  for (const PngText& text : texts) {
    if (text.keyword.empty() || text.keyword.size() > 79 || !detail::is_ascii(text.keyword) ||
        text.keyword.find('\0') != std::string::npos || text.text.find('\0') != std::string::npos)
      throw ValueError(
          message("[png] text \"", text.keyword, "\": keyword must be 1 to 79 ASCII characters, no zeros"));
    png_text chunk{};
    chunk.compression = detail::is_ascii(text.text) ? PNG_TEXT_COMPRESSION_NONE : PNG_ITXT_COMPRESSION_NONE;
    chunk.key = const_cast<char*>(text.keyword.c_str());
    chunk.text = const_cast<char*>(text.text.c_str());
    chunk.text_length = text.text.size();
    chunk.itxt_length = text.text.size();
    chunks.push_back(chunk);
  }
  detail::PngWriter writer;
  if (writer.info == nullptr) throw FileError("[png] libpng cannot start");
  std::vector<png_bytep> rows = detail::png_rows(image);
  std::string bytes;
  if (!detail::png_write_all(writer.png, writer.info, &bytes, &image, chunks.data(), static_cast<int>(chunks.size()),
                             rows.data()))
    throw FileError(message("[png] cannot encode: ", writer.failure.text));
  return bytes;
}

/// Writes a PNG file, entirely or not at all.
inline void write_png(const std::string& path, const RgbImage& image, const std::vector<PngText>& texts = {}) {
  write_text_file(path, encode_png(image, texts));
}

}  // namespace lpo::inline LPO_ABI
