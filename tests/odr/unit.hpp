// SPDX-License-Identifier: MIT
// What each unit of the program reports about the copy of lpo that it ended up with.
#pragma once

struct Report {
  const int* pack_width;  ///< lanes of float, as the linked program sees them
  int simd_bytes;         ///< register bytes that the unit was compiled for
  float sum;              ///< sum of the values, added pack by pack
};

Report unit_x86_64(const float* values, int count);
Report unit_x86_64_v3(const float* values, int count);
Report unit_x86_64_v4(const float* values, int count);
