// expect: lpo View: one index per axis
// SPDX-License-Identifier: MIT
// An element of a matrix is asked for with three indices.
#include <lpo/tensor/view.hpp>

float corner(const lpo::View<float, 2, lpo::Cpu>& view) { return view(0, 0, 0); }
