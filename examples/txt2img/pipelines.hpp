// SPDX-License-Identifier: MIT
// The pipelines of txt2img, one source file each: they compile side by side.
#pragma once

#include "../common/model_families.hpp"
#include "pictures.hpp"

namespace txt2img {

/// Reads the model and draws every picture of the job.
void generate_tiny(const Job& job, PictureWriter& writer);
void generate_sd15(const Job& job, PictureWriter& writer);
void generate_sd21(const Job& job, PictureWriter& writer);
void generate_sdxl(const Job& job, PictureWriter& writer);

struct Pipeline {
  const examples::ModelFamily* family;
  void (*generate)(const Job&, PictureWriter&);
};
/// Those that this program was built with (CMake's LPO_EXAMPLE_FAMILIES).
inline constexpr Pipeline pipelines[] = {
#ifdef LPO_FAMILY_SD15
    {&examples::sd15_family, generate_sd15},
#endif
#ifdef LPO_FAMILY_SD21
    {&examples::sd21_family, generate_sd21},
#endif
#ifdef LPO_FAMILY_SDXL
    {&examples::sdxl_family, generate_sdxl},
#endif
    {&examples::tiny_family, generate_tiny}};

}  // namespace txt2img
