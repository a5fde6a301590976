// expect: lpo Var: the expression has another rank; reshape its result
// SPDX-License-Identifier: MIT
// A statement over images is assigned to a matrix.
#include <lpo/autograd/var.hpp>
#include <lpo/backend/cpu/elementwise.hpp>

void forward(const lpo::Var<float, 4, lpo::Cpu>& x) { lpo::Var<float, 2, lpo::Cpu> y = x * 2; }
