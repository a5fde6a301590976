// expect: lpo bcast_last: takes a tensor, view or Var; assign the expression to one first
// SPDX-License-Identifier: MIT
// A sum is marked for repetition along the innermost axis, which only a leaf can be.
#include <lpo/tensor/operators.hpp>

void add(const lpo::View<float, 2, lpo::Cpu>& x, const lpo::View<float, 2, lpo::Cpu>& y) {
  auto sum = x * bcast_last(x + y);
  (void)sum;
}
