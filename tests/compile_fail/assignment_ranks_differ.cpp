// expect: lpo assignment: target and expression have different ranks; reshape one of them
// SPDX-License-Identifier: MIT
// A matrix is evaluated into a vector.
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/tensor/operators.hpp>
#include <lpo/tensor/tensor.hpp>

void add(lpo::Context<lpo::Cpu>& context, const lpo::View<float, 1, lpo::Cpu>& y, const lpo::View<float, 2, lpo::Cpu>& x) {
  evaluate(&context, y, x + 1);
}
