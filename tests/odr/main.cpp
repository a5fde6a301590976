// SPDX-License-Identifier: MIT
// Runs the units that this machine's processor can run and checks that none took over another's pack width.
#include "unit.hpp"

#include <cstdio>

namespace {

constexpr int count = 64;

bool is_right(const char* name, Report (*unit)(const float*, int), int expected_width) {
  float values[count];
  for (int i = 0; i < count; ++i) values[i] = static_cast<float>(i);
  const Report report = unit(values, count);
  std::printf("%s: compiled for %d bytes, pack width %d, sum %g\n", name, report.simd_bytes, *report.pack_width,
              static_cast<double>(report.sum));
  return *report.pack_width == expected_width && report.simd_bytes == 4 * expected_width &&
         report.sum == count * (count - 1) / 2;
}

}  // namespace

int main() {
  bool all_right = is_right("x86-64", unit_x86_64, 4);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    all_right = is_right("x86-64-v3", unit_x86_64_v3, 8) && all_right;
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw"))
    all_right = is_right("x86-64-v4", unit_x86_64_v4, 16) && all_right;
  return all_right ? 0 : 1;
}
