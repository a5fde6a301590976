// SPDX-License-Identifier: MIT
// How much of mapped files a process holds in memory.
#pragma once

#include <cstdio>
#include <cstdlib>
#include <cstring>

/// Resident pages of mapped files in KiB, as Linux counts them; -1 where it does not.
inline long mapped_kilobytes() {
  std::FILE* const status = std::fopen("/proc/self/status", "r");
  if (status == nullptr) return -1;
  long kilobytes = -1;
  for (char line[256]; std::fgets(line, sizeof line, status) != nullptr;)
    if (std::strncmp(line, "RssFile:", 8) == 0) kilobytes = std::atol(line + 8);
  std::fclose(status);
  return kilobytes;
}
