// SPDX-License-Identifier: MIT
// One of several units of one program, each compiled for another instruction set (-march) under another name (ODR_UNIT).
#include "unit.hpp"

#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/tensor/operators.hpp>
#include <lpo/tensor/tensor.hpp>

Report ODR_UNIT(const float* values, int count) {
  const lpo::View<const float, 1, lpo::Cpu> x(values, {count});
  const lpo::Tensor<float, 1, lpo::Cpu> y = 2 * x + 1;
  float sum = 0;
  for (int i = 0; i < count; ++i) sum += y.data()[i];
  // The address of the library's inline variable, not its value: the linker decides which unit's copy stands there.
  return {&lpo::pack_width, LPO_SIMD_BYTES, sum};
}
