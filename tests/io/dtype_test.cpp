// SPDX-License-Identifier: MIT
// Tests of element types and of the conversion between them.
#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <lpo/io/dtype.hpp>
#include <vector>

using lpo::DType;

namespace {

template <class To>
To one(DType from, std::vector<unsigned char> bytes) {
  To value;
  lpo::convert_from(from, bytes.data(), &value, 1);
  return value;
}

std::uint8_t as_byte(DType to, float value) {
  std::uint8_t byte = 0;
  lpo::convert_to(to, &value, &byte, 1);
  return byte;
}

}  // namespace

TEST_CASE("every type has a name, a size, and is found by its name") {
  for (int i = 0; i < lpo::dtype_count; ++i) {
    const auto dtype = static_cast<DType>(i);
    CHECK(lpo::dtype_of_name(lpo::dtype_name(dtype)) == dtype);
  }
  CHECK_FALSE(lpo::dtype_of_name("F128"));
  CHECK(lpo::dtype_size(DType::F8_E4M3) == 1);
  CHECK(lpo::dtype_size(DType::BF16) == 2);
  CHECK(lpo::dtype_size(DType::U64) == 8);
  CHECK(lpo::dtype_of<lpo::half>() == DType::F16);
  CHECK(lpo::dtype_of<std::int64_t>() == DType::I64);
}

TEST_CASE("known bit patterns have their values") {
  CHECK(one<float>(DType::F16, {0x00, 0x3c}) == 1.0f);
  CHECK(one<float>(DType::F16, {0x01, 0x00}) == 0x1p-24f);
  CHECK(one<float>(DType::F16, {0xff, 0x7b}) == 65504.0f);
  CHECK(one<float>(DType::F16, {0x00, 0xfc}) == -std::numeric_limits<float>::infinity());
  CHECK(std::isnan(one<float>(DType::F16, {0x01, 0x7e})));
  CHECK(one<double>(DType::BF16, {0x80, 0xbf}) == -1.0);
  CHECK(one<float>(DType::BOOL, {0x01}) == 1.0f);
  CHECK(one<float>(DType::I8, {0xff}) == -1.0f);
  CHECK(one<std::int64_t>(DType::I64, {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f}) == 0x7fffffffffffffff);
  CHECK(one<double>(DType::U32, {0xff, 0xff, 0xff, 0xff}) == 4294967295.0);
  // OCP 8-bit floating point specification, table 2.
  CHECK(one<float>(DType::F8_E4M3, {0x7e}) == 448.0f);
  CHECK(one<float>(DType::F8_E4M3, {0x08}) == 0x1p-6f);
  CHECK(one<float>(DType::F8_E4M3, {0x01}) == 0x1p-9f);
  CHECK(std::isnan(one<float>(DType::F8_E4M3, {0x7f})));
  CHECK(one<float>(DType::F8_E5M2, {0x7b}) == 57344.0f);
  CHECK(one<float>(DType::F8_E5M2, {0x04}) == 0x1p-14f);
  CHECK(one<float>(DType::F8_E5M2, {0x01}) == 0x1p-16f);
  CHECK(std::isinf(one<float>(DType::F8_E5M2, {0x7c})));
}

TEST_CASE("the branchless half conversion agrees with the storage type for all patterns") {
  for (unsigned bits = 0; bits < 65536; ++bits) {
    lpo::half stored;
    stored.bits = static_cast<std::uint16_t>(bits);
    const float expected = static_cast<float>(stored);
    const float found = lpo::detail::half_to_float(stored.bits);
    if (std::isnan(expected)) {
      REQUIRE(std::isnan(found));
    } else {
      REQUIRE(std::memcmp(&expected, &found, 4) == 0);
    }
  }
}

TEST_CASE("every 8-bit float comes back from float unchanged, and halfway values go to even") {
  for (const DType dtype : {DType::F8_E4M3, DType::F8_E5M2}) {
    std::vector<float> finite;
    for (unsigned bits = 0; bits < 256; ++bits) {
      const float value = one<float>(dtype, {static_cast<unsigned char>(bits)});
      if (std::isnan(value)) {
        CHECK(std::isnan(one<float>(dtype, {as_byte(dtype, value)})));
        continue;
      }
      REQUIRE(as_byte(dtype, value) == bits);
      if (bits < 128 && std::isfinite(value)) finite.push_back(value);
    }
    for (std::size_t i = 0; i + 1 < finite.size(); ++i) {
      const float middle = 0.5f * (finite[i] + finite[i + 1]);
      REQUIRE(as_byte(dtype, middle) == (i % 2 == 0 ? i : i + 1));
      REQUIRE(as_byte(dtype, std::nextafter(middle, 1e9f)) == i + 1);
      REQUIRE(as_byte(dtype, std::nextafter(middle, -1e9f)) == i);
    }
  }
  CHECK(as_byte(DType::F8_E4M3, 464.0f) == 0x7e);
  CHECK(as_byte(DType::F8_E4M3, 465.0f) == 0x7f);
  CHECK(as_byte(DType::F8_E5M2, -1e30f) == 0xfc);
}

TEST_CASE("conversion between any two types reads and writes unaligned data") {
  for (int from = 0; from < lpo::dtype_count; ++from) {
    for (int to = 0; to < lpo::dtype_count; ++to) {
      const float values[3] = {0.0f, 1.0f, 1.0f};
      std::vector<unsigned char> source(64);
      std::vector<unsigned char> destination(64);
      lpo::convert_to(static_cast<DType>(from), values, source.data() + 1, 3);
      lpo::convert(static_cast<DType>(from), source.data() + 1, static_cast<DType>(to), destination.data() + 3, 3);
      float back[3];
      lpo::convert_from(static_cast<DType>(to), destination.data() + 3, back, 3);
      CHECK(std::memcmp(back, values, sizeof values) == 0);
    }
  }
}

TEST_CASE("16-bit types convert in bulk as they do one by one, wherever they lie, and a NaN keeps its sign") {
  const auto check = []<class From, class To>(const std::vector<From>& from, To) {
    for (const std::size_t offset : {0u, 1u}) {
      std::vector<unsigned char> source(from.size() * sizeof(From) + 1), destination(from.size() * sizeof(To) + 1, 0xa5);
      std::memcpy(source.data() + offset, from.data(), from.size() * sizeof(From));
      lpo::convert(lpo::dtype_of<From>(), source.data() + offset, lpo::dtype_of<To>(), destination.data() + offset,
                   static_cast<lpo::index_t>(from.size()));
      for (std::size_t i = 0; i < from.size(); ++i) {
        const auto value = static_cast<float>(from[i]);
        To found;
        std::memcpy(&found, destination.data() + offset + i * sizeof(To), sizeof(To));
        if (std::isnan(value)) {
          REQUIRE(std::isnan(static_cast<float>(found)));
          REQUIRE(std::signbit(static_cast<float>(found)) == std::signbit(value));
          continue;
        }
        const To expected(value);
        REQUIRE(std::memcmp(&expected, &found, sizeof(To)) == 0);
      }
      CHECK(destination[offset == 0 ? from.size() * sizeof(To) : 0] == 0xa5);
    }
  };
  const auto all = []<class From>(From) {
    std::vector<From> from(65536 + 5);  // the last ones fill no register
    for (std::size_t i = 0; i < from.size(); ++i) from[i].bits = static_cast<std::uint16_t>(i);
    return from;
  };
  check(all(lpo::half{}), float{});
  check(all(lpo::bfloat16{}), float{});
  check(all(lpo::half{}), lpo::bfloat16{});
  check(all(lpo::bfloat16{}), lpo::half{});
  std::vector<float> floats;  // every half, and what lies on both sides of the middle between two
  for (const lpo::half one : all(lpo::half{})) {
    std::uint32_t bits = 0;
    const auto value = static_cast<float>(one);
    std::memcpy(&bits, &value, sizeof bits);
    for (const std::uint32_t step : {0u, 0x0fffu, 0x1000u, 0x1001u, 0x8000u, 0x8001u}) {
      const std::uint32_t moved = bits + step;
      floats.emplace_back();
      std::memcpy(&floats.back(), &moved, sizeof moved);
    }
  }
  check(floats, lpo::half{});
  check(floats, lpo::bfloat16{});
}

TEST_CASE("floats become integers by rounding and clamping") {
  const float values[4] = {-3.0f, 2.5f, 300.0f, std::numeric_limits<float>::quiet_NaN()};
  std::uint8_t bytes[4];
  lpo::convert_to(DType::U8, values, bytes, 4);
  CHECK(bytes[0] == 0);
  CHECK(bytes[1] == 2);
  CHECK(bytes[2] == 255);
  CHECK(bytes[3] == 0);
}
