// SPDX-License-Identifier: MIT
// What each unit of the program reports about the copy of lpo that it ended up with.
#pragma once

struct Report {
  const int* pack_width;  ///< lanes of float, as the linked program sees them
  int simd_bytes;         ///< register bytes that the unit was compiled for
  float sum;              ///< sum over i < count of 2 i + 1, from an expression
};
