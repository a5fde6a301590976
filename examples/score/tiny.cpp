// SPDX-License-Identifier: MIT
#include "score_inputs.hpp"

namespace score {

Scores score_tiny(const Job& job) { return score_inputs<examples::tiny_family, 128>(job); }

}  // namespace score
