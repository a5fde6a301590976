// expect: lpo operator: operands are on different devices; copy one with to_device() first
// SPDX-License-Identifier: MIT
// A value of the oracle meets a tensor of the Cpu, and the result becomes a Var.
#include <lpo/autograd/var.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/reference/elementwise.hpp>

void forward(const lpo::Var<float, 2, lpo::Reference>& x, const lpo::Tensor<float, 2, lpo::Cpu>& y) { lpo::Var z = x + y; }
