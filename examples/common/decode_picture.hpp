// SPDX-License-Identifier: MIT
// A picture from the bytes of a PNG or JPEG file.
#pragma once

#include <string>
#include <string_view>

#include <lpo/io/png.hpp>

#if __has_include(<jpeglib.h>)
#include <lpo/io/jpeg.hpp>
#endif

namespace examples {

/// Its kind is told by how it begins. FileError names `file`.
inline lpo::RgbImage decode_picture(std::string_view bytes, const std::string& file) {
  if (bytes.starts_with("\x89PNG")) return lpo::decode_png(bytes, file).image;
  if (bytes.starts_with("\xff\xd8")) {
#if __has_include(<jpeglib.h>)
    return lpo::decode_jpeg(bytes, file);
#else
    throw lpo::FileError("[picture] " + file + ": is a JPEG file, and this program was compiled without libjpeg");
#endif
  }
  throw lpo::FileError("[picture] " + file + ": is no PNG or JPEG file");
}

}  // namespace examples
