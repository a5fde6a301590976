// SPDX-License-Identifier: MIT
#include "generate.hpp"

namespace txt2img {

void generate_sd15(const Job& job, PictureWriter& writer) { generate<examples::sd15_family>(job, writer); }

}  // namespace txt2img
