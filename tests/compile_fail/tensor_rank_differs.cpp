// expect: lpo Tensor: the expression has another rank; reshape its result
// SPDX-License-Identifier: MIT
// A tensor of rank 2 is made from an expression of rank 3.
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/tensor/tensor.hpp>

void make(const lpo::Tensor<float, 3>& x) { lpo::Tensor<float, 2> y = x + 1; }
