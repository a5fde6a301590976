// SPDX-License-Identifier: MIT
#include "generate.hpp"

namespace txt2img {

void generate_sdxl(const Job& job, PictureWriter& writer) { generate<examples::sdxl_family>(job, writer); }

}  // namespace txt2img
