// SPDX-License-Identifier: MIT
// score for one family of reward models; CMake compiles this file once for each LPO_FAMILY.
#include "score_inputs.hpp"

template score::Scores score::score_inputs<examples::LPO_FAMILY>(const score::Job&);
