// SPDX-License-Identifier: MIT
#include "generate.hpp"

namespace txt2img {

void generate_tiny(const Job& job, PictureWriter& writer) { generate<examples::tiny_family>(job, writer); }

}  // namespace txt2img
