// SPDX-License-Identifier: MIT
// Tests of pictures: conversion from and to floats, tiling, PNG with texts, base64.
#include <doctest/doctest.h>

#include <limits>
#include <lpo/io/base64.hpp>
#include <lpo/io/image.hpp>
#include <lpo/io/png.hpp>

#include "temporary_directory.hpp"

using lpo::FileError;
using lpo::RgbImage;

namespace {

RgbImage gradient(int width, int height) {
  RgbImage image(width, height);
  for (int y = 0; y < height; ++y)
    for (int x = 0; x < width; ++x)
      for (int c = 0; c < 3; ++c) image.at(x, y)[c] = static_cast<std::uint8_t>(x * 7 + y * 13 + c * 50);
  return image;
}

std::string unhex(std::string_view text) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < text.size(); i += 2)
    bytes += static_cast<char>(static_cast<unsigned char>(std::stoi(std::string(text.substr(i, 2)), nullptr, 16)));
  return bytes;
}

}  // namespace

TEST_CASE("values between -1 and 1 become bytes and come back") {
  const float values[6] = {-1.0f, 0.0f, 1.0f, -7.0f, 9.0f, std::numeric_limits<float>::quiet_NaN()};
  const RgbImage image = lpo::image_of_values(values, 2, 1);
  CHECK(image.pixels == std::vector<std::uint8_t>{0, 128, 255, 0, 255, 0});
  RgbImage all(256, 1);
  for (std::size_t i = 0; i < all.pixels.size(); ++i) all.pixels[i] = static_cast<std::uint8_t>(i);
  std::vector<float> floats(all.pixels.size());
  lpo::values_of_image(all, floats.data());
  CHECK(floats[0] == -1.0f);
  CHECK(floats[255] == 1.0f);
  CHECK(lpo::image_of_values(floats.data(), 256, 1) == all);
}

TEST_CASE("tiles") {
  const RgbImage images[3] = {RgbImage(2, 3, 10), RgbImage(2, 3, 20), RgbImage(1, 1, 30)};
  const RgbImage grid = lpo::tile_images(images, 2, 1, 255);
  CHECK(grid.width == 5);
  CHECK(grid.height == 7);
  CHECK(grid.at(0, 0)[0] == 10);
  CHECK(grid.at(2, 0)[0] == 255);
  CHECK(grid.at(3, 2)[2] == 20);
  CHECK(grid.at(0, 4)[1] == 30);
  CHECK(grid.at(1, 4)[1] == 255);
  CHECK(lpo::tile_images({}, 4).width == 0);
  CHECK_THROWS_AS(lpo::tile_images(images, 0), lpo::ValueError);
}

TEST_CASE("a PNG goes there and back with its texts") {
  const TemporaryDirectory directory;
  const RgbImage image = gradient(37, 21);
  const std::string prompt = "a red circle\nSteps: 20, Sampler: DDIM, CFG scale: 7.5, Seed: 1";
  lpo::write_png(directory.file("a.png"), image, {{"parameters", prompt}, {"Comment", "caf\xc3\xa9 \xe6\x97\xa5"}});
  const lpo::PngContent content = lpo::read_png(directory.file("a.png"));
  CHECK(content.image == image);
  REQUIRE(content.texts.size() == 2);
  CHECK(content.texts[0].keyword == "parameters");
  CHECK(content.texts[0].text == prompt);
  CHECK(content.texts[1].text == "caf\xc3\xa9 \xe6\x97\xa5");
  // The chunk is a plain tEXt, where other programs look for it.
  CHECK(has_part(directory.read("a.png"), std::string("tEXtparameters\0a red circle", 27)));
}

TEST_CASE("other kinds of PNG become RGB") {
  // Written by Pillow: 2 x 1 pixels; grey, grey with alpha, palette with transparency, 16-bit grey.
  struct Case {
    const char* bytes;
    std::vector<std::uint8_t> pixels;
  };
  const Case cases[] = {
      {"89504e470d0a1a0a0000000d4948445200000002000000010800000000d14920560000000b49444154789c63103c010000ed"
       "00da89a90d630000000049454e44ae426082",
       {17, 17, 17, 200, 200, 200}},
      {"89504e470d0a1a0a0000000d49484452000000020000000108040000005e2bb7010000000d49444154789c63106438d10000"
       "0259015a249f9bd10000000049454e44ae426082",
       {17, 17, 17, 200, 200, 200}},
      {"89504e470d0a1a0a0000000d4948445200000002000000010103000000ceecedc900000006504c5445010203faf0e6e3c8c6"
       "120000000274524e53ff00e5b7304a0000000a49444154789c636800000082008177cd72b60000000049454e44ae426082",
       {250, 240, 230, 1, 2, 3}},
      {"89504e470d0a1a0a0000000d494844520000000200000001100000000081d9fc150000000d49444154789c63fcffbfb11100"
       "08860302e5ad92f80000000049454e44ae426082",
       {255, 255, 255, 128, 128, 128}},
  };
  for (const Case& each : cases) {
    const auto content = lpo::decode_png(unhex(each.bytes), "case");
    CHECK(content.image.width == 2);
    CHECK(content.image.pixels == each.pixels);
  }
}

TEST_CASE("broken PNG files are named with what is wrong") {
  const std::string bytes = lpo::encode_png(gradient(50, 40));
  const auto reason = [](const std::string& text, std::size_t limit = 10000) {
    return message_of<FileError>([&] { lpo::decode_png(text, "a.png", limit); });
  };
  CHECK(has_part(reason("GIF89a..."), "[png] a.png: is not a PNG file"));
  CHECK(has_part(reason(""), "is not a PNG file"));
  for (const std::size_t length :
       {std::size_t{8}, std::size_t{20}, std::size_t{40}, bytes.size() / 2, bytes.size() - 1})
    CHECK(has_part(reason(bytes.substr(0, length)), "[png] a.png: the file is cut off"));
  std::string damaged = bytes;
  damaged[20] = static_cast<char>(damaged[20] ^ 1);
  CHECK(has_part(reason(damaged), "CRC"));
  CHECK(has_part(reason(bytes, 1999), "has 50 x 40 pixels, expected at most 1999"));
}

TEST_CASE("what cannot be written is refused") {
  CHECK_THROWS_AS(lpo::encode_png(RgbImage()), lpo::ValueError);
  CHECK_THROWS_AS(lpo::encode_png(RgbImage(1, 1), {{"", "x"}}), lpo::ValueError);
  CHECK_THROWS_AS(lpo::encode_png(RgbImage(1, 1), {{std::string(80, 'k'), "x"}}), lpo::ValueError);
  CHECK_THROWS_AS(lpo::encode_png(RgbImage(1, 1), {{"k", std::string(1, '\0')}}), lpo::ValueError);
  CHECK_THROWS_AS(RgbImage(-1, 1), lpo::ValueError);
}

TEST_CASE("base64 of RFC 4648, section 10") {
  CHECK(lpo::base64("") == "");
  CHECK(lpo::base64("f") == "Zg==");
  CHECK(lpo::base64("fo") == "Zm8=");
  CHECK(lpo::base64("foo") == "Zm9v");
  CHECK(lpo::base64("foob") == "Zm9vYg==");
  CHECK(lpo::base64("foobar") == "Zm9vYmFy");
  CHECK(lpo::base64("\xff\xfe\xfd") == "//79");
}
