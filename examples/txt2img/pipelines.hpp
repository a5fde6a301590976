// SPDX-License-Identifier: MIT
// The pipelines of txt2img: pipeline.cpp compiles each on its own, side by side.
#pragma once

#include "../common/model_families.hpp"
#include "pictures.hpp"

namespace txt2img {

/// Reads the model, whose family is F, into weights and activations stored as T, and draws every picture of the job.
template <const examples::ModelFamily& F, class T>
void generate(const Job& job, PictureWriter& writer);

}  // namespace txt2img
