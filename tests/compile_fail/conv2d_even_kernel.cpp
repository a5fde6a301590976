// expect: lpo Conv2d: the kernel size must be odd
// SPDX-License-Identifier: MIT
// A 4x4 convolution, which has no centre.
#include <lpo/nn/conv2d.hpp>

lpo::Conv2d<32, 8, 4, float, lpo::Reference> conv;
