// expect: lpo expression: no backend for this device; include <lpo/lpo.hpp> for Cpu
// SPDX-License-Identifier: MIT
// An expression is evaluated, but no backend was included.
#include <lpo/tensor/operators.hpp>
#include <lpo/tensor/tensor.hpp>

void add(lpo::Context<lpo::Cpu>& context, const lpo::View<float, 2, lpo::Cpu>& y, const lpo::View<float, 2, lpo::Cpu>& x) {
  evaluate(&context, y, x + 1);
}
