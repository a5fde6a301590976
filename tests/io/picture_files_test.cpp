// SPDX-License-Identifier: MIT
// JPEG decoding and bilinear resizing against Pillow, and files that are refused.
#include <doctest/doctest.h>

#include <string>

#include <lpo/io/jpeg.hpp>
#include <lpo/io/resize.hpp>

#include "golden_file.hpp"
#include "temporary_directory.hpp"

using namespace lpo;

namespace {

RgbImage image_of(const SafetensorsFile& file, const std::string& key) {
  const auto& shape = file.info(key).shape;
  RgbImage image(static_cast<int>(shape[1]), static_cast<int>(shape[0]));
  const auto values = file.read_vector<std::int64_t>(key);
  for (std::size_t i = 0; i < values.size(); ++i) image.pixels[i] = static_cast<std::uint8_t>(values[i]);
  return image;
}

std::string bytes_of(const SafetensorsFile& file, const std::string& key) {
  std::string bytes;
  for (const auto value : file.read_vector<std::int64_t>(key))
    bytes += static_cast<char>(static_cast<unsigned char>(value));
  return bytes;
}

}  // namespace

TEST_CASE("Resized pictures are Pillow's, bit for bit") {
  const auto file = golden::open("images");
  const RgbImage image = image_of(file, "resize/in");
  for (const auto& [width, height] : {std::pair{5, 7}, {40, 31}, {17, 13}, {1, 1}, {16, 6}}) {
    CAPTURE(width);
    CHECK(resize_image(image, width, height) == image_of(file, message("resize/", width, "x", height)));
  }
  CHECK(resize_image(image, 17, 13) == image);
  CHECK_THROWS_WITH_AS(resize_image(image, 0, 4), "[resize_image] 17 x 13 to 0 x 4; expected at least one pixel",
                       ValueError);
  CHECK_THROWS_AS(resize_image(RgbImage(), 4, 4), ValueError);
}

TEST_CASE("JPEG pictures are Pillow's but for the last bit of other versions of libjpeg") {
  const auto file = golden::open("images");
  for (const char* kind : {"colour", "grey"}) {
    const auto truth = image_of(file, message("jpeg/", kind, "/pixels"));
    const auto image = decode_jpeg(bytes_of(file, message("jpeg/", kind, "/bytes")), "memory");
    REQUIRE(image.width == 24);
    REQUIRE(image.height == 16);
    int worst = 0;
    for (std::size_t i = 0; i < image.pixels.size(); ++i)
      worst = std::max(worst, std::abs(int{image.pixels[i]} - int{truth.pixels[i]}));
    CHECK(worst <= 2);
  }
  const TemporaryDirectory directory;
  const std::string bytes = bytes_of(file, "jpeg/colour/bytes");
  CHECK(read_jpeg(directory.write("a.jpg", bytes)) == decode_jpeg(bytes, "memory"));
}

TEST_CASE("Damaged JPEG files are refused") {
  const auto file = golden::open("images");
  const std::string bytes = bytes_of(file, "jpeg/colour/bytes");
  CHECK_THROWS_WITH_AS(decode_jpeg("", "x.jpg"), "[jpeg] x.jpg: is not a JPEG file", FileError);
  CHECK_THROWS_WITH_AS(decode_jpeg("\x89PNG", "x.jpg"), "[jpeg] x.jpg: is not a JPEG file", FileError);
  for (std::size_t size : {std::size_t{4}, bytes.size() / 4, bytes.size() / 2, bytes.size() - 40})
    CHECK_THROWS_AS(decode_jpeg(std::string_view(bytes).substr(0, size), "x.jpg"), FileError);
  CHECK_THROWS_WITH_AS(decode_jpeg(bytes, "x.jpg", 100), "[jpeg] x.jpg: has 24 x 16 pixels, expected at most 100",
                       FileError);
  const std::string cmyk = message_of<FileError>([&] { decode_jpeg(bytes_of(file, "jpeg/cmyk/bytes"), "x.jpg"); });
  CHECK(has_part(cmyk, "[jpeg] x.jpg: "));
  CHECK_THROWS_AS(read_jpeg("/nonexistent/x.jpg"), FileError);
}
