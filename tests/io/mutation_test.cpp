// SPDX-License-Identifier: MIT
// Thousands of deterministic mutations of valid files: each is read, or refused with a FileError, and nothing else
// happens.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <lpo/base/philox.hpp>
#include <string>

#include "../fuzz/seeds.hpp"

namespace {

/// One to four random edits: bits, bytes, digits, cuts, repeats, and pieces of another seed.
std::string mutated(const fuzz::Target& target, lpo::RandomStream& random) {
  const auto below = [&](std::size_t n) {
    return static_cast<std::size_t>(random.uniform_int(static_cast<std::uint32_t>(n)));
  };
  std::string bytes = target.seeds[below(target.seeds.size())];
  const std::size_t edits = 1 + below(4);
  for (std::size_t edit = 0; edit < edits; ++edit) {
    const std::size_t at = below(bytes.size() + 1);
    const std::size_t length = below(1 + std::min<std::size_t>(16, bytes.size() - at));
    switch (below(8)) {
      case 0:
        if (at < bytes.size()) bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 1: {
        static constexpr unsigned char interesting[] = {0, 1, 0x7f, 0x80, 0xff, '"', '{', '[', ']', '-', ',', ' '};
        if (at < bytes.size()) bytes[at] = static_cast<char>(interesting[below(sizeof interesting)]);
        break;
      }
      case 2: {
        const std::size_t digit = bytes.find_first_of("0123456789", at);
        if (digit != std::string::npos) bytes[digit] = static_cast<char>('0' + below(10));
        break;
      }
      case 3:
        bytes.erase(at, length);
        break;
      case 4:
        bytes.insert(at, bytes.substr(at, length));
        break;
      case 5:
        if (below(4) == 0) bytes.resize(at);
        break;
      case 6:
        bytes.insert(at, 1, static_cast<char>(below(256)));
        break;
      default: {
        const std::string& other = target.seeds[below(target.seeds.size())];
        const std::size_t from = below(other.size() + 1);
        bytes.replace(at, length, other.substr(from, below(16)));
      }
    }
  }
  return bytes;
}

}  // namespace

TEST_CASE("mutated files are read or refused") {
  for (const fuzz::Target& target : fuzz::targets()) {
    CAPTURE(target.name);
    for (const std::string& seed : target.seeds)
      if (seed.substr(0, 2) != "\x1f\x8b") CHECK(target.read(seed));
    lpo::RandomStream random(2502'01051);
    int accepted = 0;
    constexpr int rounds = 4000;
    for (int round = 0; round < rounds; ++round) {
      const std::string bytes = mutated(target, random);
      bool read = false;
      CAPTURE(bytes);
      REQUIRE_NOTHROW(read = target.read(bytes));
      accepted += read ? 1 : 0;
    }
    // Mutation must neither be harmless nor always fatal, or it would test nothing.
    CHECK(accepted > 0);
    if (std::string(target.name) != "prompt") CHECK(accepted < rounds);
  }
}
