// expect: lpo assignment: target and expression are on different devices; copy one with to_device() first
// SPDX-License-Identifier: MIT
// Device memory is assigned to host memory without a copy.
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/tensor/operators.hpp>
#include <lpo/tensor/tensor.hpp>

void add(lpo::Context<lpo::Cpu>& context, const lpo::View<float, 2, lpo::Cpu>& y, const lpo::View<float, 2, lpo::Cuda>& x) {
  evaluate(&context, y, x + 1);
}
