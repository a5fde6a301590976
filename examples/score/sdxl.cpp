// SPDX-License-Identifier: MIT
#include "score_inputs.hpp"

namespace score {

Scores score_sdxl(const Job& job) { return score_inputs<examples::sdxl_family, 1280>(job); }

}  // namespace score
