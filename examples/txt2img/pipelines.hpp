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
inline constexpr Pipeline pipelines[] = {{&examples::sd15_family, generate_sd15},
                                         {&examples::sd21_family, generate_sd21},
                                         {&examples::sdxl_family, generate_sdxl},
                                         {&examples::tiny_family, generate_tiny}};

}  // namespace txt2img
