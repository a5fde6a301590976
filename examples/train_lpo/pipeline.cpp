// SPDX-License-Identifier: MIT
// train_lpo for one family of models; CMake compiles this file once for each LPO_FAMILY and LPO_STORAGE.
#include "align.hpp"
#include "plan.hpp"

template void train_lpo::align<examples::LPO_FAMILY, LPO_STORAGE>(const train_lpo::Job&);
template void train_lpo::print_plan<examples::LPO_FAMILY, LPO_STORAGE>(const train_lpo::Job&);
