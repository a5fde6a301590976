// SPDX-License-Identifier: MIT
#include "generate.hpp"

namespace txt2img {

void generate_sd21(const Job& job, PictureWriter& writer) { generate<examples::sd21_family>(job, writer); }

}  // namespace txt2img
