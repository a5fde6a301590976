// SPDX-License-Identifier: MIT
// FNV-1a against the values that its authors publish, and words in place of bytes.
#include <lpo/base/fnv1a.hpp>

#include <doctest/doctest.h>

#include <cstdint>
#include <string_view>

TEST_CASE("FNV-1a has the published values") {
  const auto hash = [](std::string_view text) { return lpo::Fnv1a().add(text).value(); };
  CHECK(hash("") == 0xcbf29ce484222325u);
  CHECK(hash("a") == 0xaf63dc4c8601ec8cu);
  CHECK(hash("foobar") == 0x85944171f73967e8u);
  CHECK(hash("\xff") == 0xaf64724c8602eb6eu);
  CHECK(lpo::Fnv1a().add("foo").add("bar").value() == hash("foobar"));
}

TEST_CASE("FNV-1a takes a word whole") {
  CHECK(lpo::Fnv1a().add(std::uint64_t{'a'}).value() == 0xaf63dc4c8601ec8cu);
  // (0xcbf29ce484222325 ^ 2^32) * 0x100000001b3 modulo 2^64
  CHECK(lpo::Fnv1a().add(std::uint64_t{1} << 32).value() == 0xaf63beff8601b7dfu);
}
