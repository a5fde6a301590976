// SPDX-License-Identifier: MIT
// Base64, for pictures inside HTML.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <lpo/base/config.hpp>

namespace lpo::inline LPO_ABI {

/// RFC 4648, with padding, without line breaks.
inline std::string base64(std::string_view bytes) {
  constexpr char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t group = 0;
    for (std::size_t k = 0; k < 3; ++k)
      group = (group << 8) | (i + k < bytes.size() ? static_cast<unsigned char>(bytes[i + k]) : 0u);
    for (std::size_t k = 0; k < 4; ++k) text += i + k <= bytes.size() ? digits[(group >> (18 - 6 * k)) & 63] : '=';
  }
  return text;
}

}  // namespace lpo::inline LPO_ABI
