// SPDX-License-Identifier: MIT
#include "score_inputs.hpp"

namespace score {

Scores score_sd15(const Job& job) { return score_inputs<examples::sd15_family, 768>(job); }

}  // namespace score
