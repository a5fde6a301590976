// SPDX-License-Identifier: MIT
// train_dpo for one family of models; CMake compiles this file once for each LPO_FAMILY and LPO_STORAGE.
#include "align.hpp"
#include "plan.hpp"

template void train_dpo::align<examples::LPO_FAMILY, LPO_STORAGE>(const train_dpo::Job&);
template void train_dpo::print_plan<examples::LPO_FAMILY, LPO_STORAGE>(const train_dpo::Job&);
