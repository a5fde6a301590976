// expect: lpo Var: the expression has another static channel width; project it first
// SPDX-License-Identifier: MIT
// The sum of two 64 channel values is stored as a 32 channel value.
#include <lpo/autograd/var.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/tensor/operators.hpp>

void add(const lpo::Var<float, 4, lpo::Reference, 64>& x) {
  const lpo::Var<float, 4, lpo::Reference, 32> y = x + x;
  (void)y;
}
