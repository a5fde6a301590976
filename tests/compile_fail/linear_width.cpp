// expect: lpo Linear: input width differs from the layer's; project it or change the layer's In
// SPDX-License-Identifier: MIT
// A layer for 768 wide states is given 1024 wide ones.
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/gemm.hpp>
#include <lpo/backend/reference/reduce.hpp>
#include <lpo/nn/linear.hpp>

void apply(lpo::Linear<768, 320, float, lpo::Reference>& layer, const lpo::Var<float, 3, lpo::Reference, 1024>& x) { layer(x); }
