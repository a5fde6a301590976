// expect: lpo Tensor: element type must be float, double, bfloat16 or half
// SPDX-License-Identifier: MIT
// A tensor of integers.
#include <lpo/tensor/tensor.hpp>

lpo::Tensor<int, 2> x;
