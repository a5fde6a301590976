// expect: lpo Attention: the width must be a multiple of the heads
// SPDX-License-Identifier: MIT
// 320 channels cannot be split into 7 equal heads.
#include <lpo/nn/attention.hpp>

lpo::Attention<320, 320, 7, float, lpo::Reference> attention;
