// SPDX-License-Identifier: MIT
// One of several units of one program, each compiled for another instruction set (-march, ODR_UNIT).
#include "unit.hpp"

#include <lpo/tensor/pack.hpp>

// The address of the library's inline variable, not its value: the linker decides which unit's copy stands there.
Report ODR_UNIT(const float* values, int count) {
  lpo::Pack sum = {};
  for (int i = 0; i < count; i += lpo::pack_width) sum += lpo::detail::load_pack(values + i);
  return {&lpo::pack_width, LPO_SIMD_BYTES, lpo::detail::sum_lanes(sum)};
}
