// SPDX-License-Identifier: MIT
// JPEG through libjpeg: pictures from memory and files; programs that include this link with -ljpeg.
#pragma once

#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <vector>

#include <jpeglib.h>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/io/file.hpp>
#include <lpo/io/image.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// libjpeg reports errors by a callback that must not return. As in png.hpp, the functions that call setjmp hold
/// nothing that owns memory.
struct JpegFailure {
  jpeg_error_mgr manager;
  std::jmp_buf jump;
  char text[JMSG_LENGTH_MAX];
};

inline void jpeg_failed(j_common_ptr info) {
  auto* const failure = reinterpret_cast<JpegFailure*>(info->err);
  info->err->format_message(info, failure->text);
  std::longjmp(failure->jump, 1);
}
/// Damaged data is a warning to libjpeg, which goes on with grey; here it is an error.
inline void jpeg_warned(j_common_ptr info, int level) {
  if (level < 0) jpeg_failed(info);
}

struct JpegReader {
  JpegFailure failure{};
  jpeg_decompress_struct info{};
  JpegReader() {
    info.err = jpeg_std_error(&failure.manager);
    failure.manager.error_exit = jpeg_failed;
    failure.manager.emit_message = jpeg_warned;
  }
  JpegReader(const JpegReader&) = delete;
  JpegReader& operator=(const JpegReader&) = delete;
  ~JpegReader() { jpeg_destroy_decompress(&info); }
};

/// Reads the header and asks for RGB; false if libjpeg complained.
inline bool jpeg_begin_reading(JpegReader* reader, const unsigned char* bytes, std::size_t size) {
  if (setjmp(reader->failure.jump) != 0) return false;
  jpeg_create_decompress(&reader->info);
  jpeg_mem_src(&reader->info, bytes, static_cast<unsigned long>(size));
  jpeg_read_header(&reader->info, TRUE);
  reader->info.out_color_space = JCS_RGB;
  return true;
}

inline bool jpeg_read_rows(JpegReader* reader, std::uint8_t* pixels) {
  if (setjmp(reader->failure.jump) != 0) return false;
  jpeg_start_decompress(&reader->info);
  while (reader->info.output_scanline < reader->info.output_height) {
    JSAMPROW row = pixels + static_cast<std::size_t>(reader->info.output_scanline) * reader->info.output_width * 3;
    jpeg_read_scanlines(&reader->info, &row, 1);
  }
  jpeg_finish_decompress(&reader->info);
  return true;
}

}  // namespace detail

/// Decodes a grey or colour JPEG to 8-bit RGB, without turning it as its EXIF data may ask, as PIL does. FileError
/// names `file` if the data is damaged, cut off, CMYK, or larger than `max_pixels`.
inline RgbImage decode_jpeg(std::string_view bytes, const std::string& file,
                            std::size_t max_pixels = std::size_t{1} << 27) {
  detail::JpegReader reader;
  const auto fail = [&](const auto&... parts) { throw FileError(message("[jpeg] ", file, ": ", parts...)); };
  if (!bytes.starts_with("\xff\xd8\xff")) fail("is not a JPEG file");
  const auto* const data = reinterpret_cast<const unsigned char*>(bytes.data());
  if (!detail::jpeg_begin_reading(&reader, data, bytes.size())) fail(static_cast<const char*>(reader.failure.text));
  const std::size_t width = reader.info.image_width, height = reader.info.image_height;
  if (width * height > max_pixels) fail("has ", width, " x ", height, " pixels, expected at most ", max_pixels);
  RgbImage image(static_cast<int>(width), static_cast<int>(height));
  if (!detail::jpeg_read_rows(&reader, image.pixels.data())) fail(static_cast<const char*>(reader.failure.text));
  return image;
}

/// Reads a file; see `decode_jpeg`.
inline RgbImage read_jpeg(const std::string& path) {
  const MappedFile file(path);
  return decode_jpeg(file.text(), path);
}

}  // namespace lpo::inline LPO_ABI
