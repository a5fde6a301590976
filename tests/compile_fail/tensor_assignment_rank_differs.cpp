// expect: lpo Tensor: the expression has another rank; reshape its result
// SPDX-License-Identifier: MIT
// An expression of rank 3 is assigned to a tensor of rank 2.
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/tensor/tensor.hpp>

void assign(lpo::Tensor<float, 2>& y, const lpo::Tensor<float, 3>& x) { y = x + 1; }
