// expect: lpo Var: static channel widths differ; check the layer's input width
// SPDX-License-Identifier: MIT
// A value of 64 channels is given to a function that takes 128.
#include <lpo/autograd/var.hpp>
#include <lpo/backend/cpu/elementwise.hpp>

void layer(const lpo::Var<float, 4, lpo::Cpu, 128>& x);

void forward(const lpo::Var<float, 4, lpo::Cpu, 64>& x) { layer(x); }
