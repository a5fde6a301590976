// SPDX-License-Identifier: MIT
// train_lrm for one family of models; CMake compiles this file once for each LPO_FAMILY.
#include "train.hpp"

template int train_lrm::train<examples::LPO_FAMILY>(const train_lrm::Job&);
