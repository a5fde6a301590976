// SPDX-License-Identifier: MIT
// libFuzzer program for fuzz::read_preference_lines.
#include "readers.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  fuzz::read_preference_lines(std::string_view(reinterpret_cast<const char*>(data), size));
  return 0;
}
