// expect: lpo expression: one statement reads at most 24 tensors; split it
// SPDX-License-Identifier: MIT
// A statement that reads 32 tensors.
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/tensor/operators.hpp>
#include <lpo/tensor/tensor.hpp>

void add(const lpo::View<float, 2, lpo::Cpu>& x) {
  auto eight = x + x + x + x + x + x + x + x;
  lpo::Tensor<float, 2, lpo::Cpu> y = eight + eight + eight + eight;
}
