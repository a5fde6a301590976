// expect: lpo ResnetBlock2D: input channels differ from the block's In
// SPDX-License-Identifier: MIT
// A residual block for 64 channels follows a layer of 32.
#include <lpo/backend/reference/conv2d.hpp>
#include <lpo/backend/reference/copy.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/gemm.hpp>
#include <lpo/backend/reference/normalization.hpp>
#include <lpo/backend/reference/reduce.hpp>
#include <lpo/nn/resnet_block.hpp>

void apply(lpo::ResnetBlock2D<64, 64, 256, 32, float, lpo::Reference>& block, const lpo::Var<float, 4, lpo::Reference, 32>& x,
           const lpo::Var<float, 2, lpo::Reference>& time) {
  block(x, time, 1e-5f);
}
