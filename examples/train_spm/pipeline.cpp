// SPDX-License-Identifier: MIT
// train_spm for one family of models; CMake compiles this file once for each LPO_FAMILY.
#include "train.hpp"

template int train_spm::train<examples::LPO_FAMILY>(const train_spm::Job&);
