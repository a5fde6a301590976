// expect: lpo Conv2d: input channels differ from the layer's; check the block before it
// SPDX-License-Identifier: MIT
// A convolution made for 32 channels is given 64.
#include <lpo/backend/reference/conv2d.hpp>
#include <lpo/backend/reference/copy.hpp>
#include <lpo/backend/reference/gemm.hpp>
#include <lpo/backend/reference/reduce.hpp>
#include <lpo/nn/conv2d.hpp>

void apply(lpo::Conv2d<32, 8, 3, float, lpo::Reference>& conv, const lpo::Var<float, 4, lpo::Reference, 64>& x) { conv(x); }
