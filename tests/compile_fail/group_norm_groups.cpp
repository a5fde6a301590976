// expect: lpo GroupNorm: the channels must be a multiple of the groups
// SPDX-License-Identifier: MIT
// 48 channels cannot form 32 equal groups.
#include <lpo/nn/normalization.hpp>

lpo::GroupNorm<48, 32, float, lpo::Reference, true> norm;
