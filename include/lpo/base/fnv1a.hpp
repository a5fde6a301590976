// SPDX-License-Identifier: MIT
// FNV-1a of 64 bits: a number by which one text, or one list of numbers, is told from another. It keeps no secrets.
#pragma once

#include <cstdint>
#include <string_view>

#include <lpo/base/config.hpp>

namespace lpo::inline LPO_ABI {

/// The hash of what was added, in order (Fowler, Noll and Vo: http://www.isthe.com/chongo/tech/comp/fnv/).
class Fnv1a {
 public:
  /// Byte by byte, as published.
  constexpr Fnv1a& add(std::string_view bytes) {
    for (const char c : bytes) add(std::uint64_t{static_cast<unsigned char>(c)});
    return *this;
  }
  /// A whole word in place of a byte: faster, and a hash of its own.
  constexpr Fnv1a& add(std::uint64_t word) {
    value_ = (value_ ^ word) * 0x100000001b3u;
    return *this;
  }

  constexpr std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325u;
};

}  // namespace lpo::inline LPO_ABI
