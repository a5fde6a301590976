// SPDX-License-Identifier: MIT
// Checks that each unit computes with its own pack width and not with that of a unit linked before it.
#include "unit.hpp"

#include <cstdio>

// units.inc, made by CMake, holds UNIT(name, pack width) for each unit that this machine can run.
#define UNIT(name, width) Report name(const float* values, int count);
#include "units.inc"
#undef UNIT

namespace {

constexpr int count = 67;

bool is_right(const char* name, Report (*unit)(const float*, int), int expected_width) {
  float values[count];
  for (int i = 0; i < count; ++i) values[i] = static_cast<float>(i);
  const Report report = unit(values, count);
  std::printf("%s: compiled for %d bytes, pack width %d, sum %g\n", name, report.simd_bytes, *report.pack_width,
              static_cast<double>(report.sum));
  return *report.pack_width == expected_width && report.simd_bytes == 4 * expected_width && report.sum == count * count;
}

}  // namespace

int main() {
  bool all_right = true;
#define UNIT(name, width) all_right = is_right(#name, name, width) && all_right;
#include "units.inc"
  return all_right ? 0 : 1;
}
