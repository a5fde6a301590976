// SPDX-License-Identifier: MIT
// Tests of .npy files against bytes that NumPy writes, and of the bridge to xtensor.
#include <doctest/doctest.h>

#include <lpo/io/npy.hpp>
#include <lpo/io/xtensor.hpp>
#include <xtensor/xmath.hpp>

#include "temporary_directory.hpp"

using lpo::FileError;

namespace {

std::string npy_of(const std::string& header, const std::string& data) {
  return std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(header.size()) + '\0' + header + data;
}

std::string reason(const std::string& bytes) {
  return message_of<FileError>([&] { lpo::parse_npy<float>(bytes, "a.npy"); });
}

}  // namespace

TEST_CASE("the bytes are those of NumPy") {
  const float values[3] = {1.0f, 2.5f, -3.0f};
  // numpy.save of array([[1, 2.5, -3]], dtype='<f4')
  const std::string expected = std::string("\x93NUMPY\x01\x00v\x00", 10) +
                               "{'descr': '<f4', 'fortran_order': False, 'shape': (1, 3), }" + std::string(58, ' ') +
                               "\n" + std::string("\x00\x00\x80\x3f\x00\x00\x20\x40\x00\x00\x40\xc0", 12);
  CHECK(lpo::npy_bytes(values, {1, 3}) == expected);
  const auto array = lpo::parse_npy<float>(expected, "a.npy");
  CHECK(array.shape == std::vector<lpo::index_t>{1, 3});
  CHECK(array.values == std::vector<float>{1.0f, 2.5f, -3.0f});
  CHECK(lpo::parse_npy<double>(expected, "a.npy").values[1] == 2.5);
}

TEST_CASE("every rank and type comes back") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("a.npy");
  std::vector<double> values(24);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i) / 7;
  for (const auto& shape : {std::vector<lpo::index_t>{24}, {4, 6}, {2, 3, 4}, {1, 1, 2, 3, 2, 2, 1}}) {
    lpo::write_npy(path, values.data(), shape);
    const auto array = lpo::read_npy<double>(path);
    CHECK(array.shape == shape);
    CHECK(array.values == values);
  }
  lpo::write_npy(path, values.data(), {});
  CHECK(lpo::read_npy<double>(path).shape.empty());
  lpo::write_npy(path, values.data(), {3, 0});
  CHECK(lpo::read_npy<double>(path).values.empty());
  const std::int64_t ids[2] = {-1, 49407};
  lpo::write_npy(path, ids, {2});
  CHECK(lpo::read_npy<std::int64_t>(path).values == std::vector<std::int64_t>{-1, 49407});
  CHECK(lpo::read_npy<float>(path).values == std::vector<float>{-1, 49407});
  const lpo::half halves[2] = {lpo::half(0.5f), lpo::half(-2.0f)};
  lpo::write_npy(path, halves, {2});
  CHECK(lpo::read_npy<float>(path).values == std::vector<float>{0.5f, -2.0f});
}

TEST_CASE("a header longer than 127 bytes is read") {
  const std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }" + std::string(140, ' ') + "\n";
  CHECK(lpo::parse_npy<float>(npy_of(header, std::string(4, '\0')), "a.npy").values == std::vector<float>{0.0f});
}

TEST_CASE("broken files are named with what is wrong") {
  const auto with = [](const char* header) { return npy_of(header, std::string(8, '\0')); };
  CHECK(has_part(reason("text"), "[npy] a.npy: is not a .npy file"));
  CHECK(has_part(reason(std::string("\x93NUMPY\x04\x00\x00\x00", 10)), "has format version 4, expected 1 to 3"));
  CHECK(has_part(reason(std::string("\x93NUMPY\x01\x00\xff\x00{", 11)), "is cut off in its header"));
  CHECK(has_part(reason(with("{'descr': '<f4', 'fortran_order': False, 'shape': (3,)}")),
                 "shape [3] of F32 does not fit the 8 bytes of data"));
  CHECK(has_part(reason(with("{'descr': '<f4', 'fortran_order': True, 'shape': (2,)}")), "is in Fortran order"));
  CHECK(has_part(reason(with("{'descr': '>f4', 'fortran_order': False, 'shape': (2,)}")), "has element type '>f4'"));
  CHECK(has_part(reason(with("{'descr': '<f4', 'shape': (2,)}")), "header lacks"));
  CHECK(has_part(reason(with("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}")), "expected an extent"));
  CHECK(has_part(reason(with("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}")),
                 "an extent beyond 64 bits"));
  CHECK(has_part(reason(with("{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296)}")),
                 "does not fit the 8 bytes"));
  CHECK(has_part(reason(with("{'descr: 1")), "a text without end"));
  CHECK(has_part(reason(with("")), "expected '{'"));
  const float value = 1;
  const float nothing = 0;
  CHECK(message_of<lpo::ValueError>([&] { lpo::npy_bytes(&nothing, {2, -1}); }) == "[npy] impossible shape [2, -1]");
  CHECK(message_of<lpo::ValueError>([&] { lpo::npy_bytes(&nothing, {lpo::index_t{1} << 40, lpo::index_t{1} << 40}); }).find("impossible") !=
        std::string::npos);
  const std::string floats = lpo::npy_bytes(&value, {1});
  CHECK(has_part(message_of<FileError>([&] { lpo::parse_npy<int>(floats, "a.npy"); }),
                 "holds F32, expected an integer type"));
}

TEST_CASE("xtensor reads and writes the same files") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("a.npy");
  const std::vector<float> scores = {1, 2, 3, 4, 5, 6};
  const auto view = lpo::as_xtensor(scores.data(), {2, 3});
  lpo::write_npy(path, xt::transpose(view) * 2.0f);
  const auto array = lpo::read_npy<float>(path);
  CHECK(array.shape == std::vector<lpo::index_t>{3, 2});
  CHECK(array.values == std::vector<float>{2, 8, 4, 10, 6, 12});
  const xt::xarray<double> again = lpo::read_npy_xarray<double>(path);
  CHECK(again(2, 1) == 12.0);
  CHECK(xt::mean(again)() == 7.0);
}
