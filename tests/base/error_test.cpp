// SPDX-License-Identifier: MIT
// Errors: ids, texts, one family; messages join strings, numbers and extents.
#include <lpo/base/error.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <lpo/base/extents.hpp>
#include <string>
#include <string_view>

TEST_CASE("every error is an lpo::Error with its id and text") {
  const auto check = [](const lpo::Error& error, const std::string& id) {
    CHECK(error.id() == id);
    CHECK(std::string(error.what()) == "[op] text");
  };
  check(lpo::ShapeError("[op] text"), "lpo.shape");
  check(lpo::ValueError("[op] text"), "lpo.value");
  check(lpo::DeviceError("[op] text"), "lpo.device");
  check(lpo::FileError("[op] text"), "lpo.file");
  check(lpo::CancelledError("[op] text"), "lpo.cancelled");
  CHECK_THROWS_AS(throw lpo::ShapeError("x"), const lpo::Error&);
  CHECK_THROWS_AS(throw lpo::FileError("x"), const std::exception&);
}

TEST_CASE("messages join their parts") {
  CHECK(lpo::message("[conv2d] input has ", 6, " channels, ", std::string("weight"), ' ', std::string_view("expects "),
                     4) == "[conv2d] input has 6 channels, weight expects 4");
  CHECK(lpo::message(std::int64_t{-5}, ' ', std::uint8_t{200}, ' ', true) == "-5 200 true");
  CHECK(lpo::message("input ", lpo::Extents<4>{1, 64, 64, 6}) == "input [1, 64, 64, 6]");
  CHECK(lpo::message() == "");
  // The shortest digits that are this number and no other.
  CHECK(lpo::message(1e-7, ' ', 0.25, ' ', 5.0, ' ', -1.5f, ' ', 0.1f, ' ', 1e300) == "1e-07 0.25 5 -1.5 0.1 1e+300");
}
