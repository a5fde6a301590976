// expect: lpo assignment: target and expression are on different devices; copy one with to_device() first
// SPDX-License-Identifier: MIT
// A tensor of the Cpu is made from a tensor of the oracle.
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/tensor/tensor.hpp>

void make(const lpo::Tensor<float, 2, lpo::Reference>& x) { lpo::Tensor<float, 2, lpo::Cpu> y = x + 1; }
