// SPDX-License-Identifier: MIT
// AdamW on a CUDA device against the reference.
#include <lpo/backend/cuda/adamw.cuh>

#include <backend/adamw_cases.hpp>

using namespace adamw_cases;

TEST_CASE_TEMPLATE("cuda AdamW agrees with the reference", T, LPO_STORAGE_TYPES) { compare_steps<lpo::Cuda, T>(); }

TEST_CASE_TEMPLATE("cuda AdamW steps float parameters by 16-bit gradients", T, lpo::bfloat16, lpo::half) {
  compare_steps<lpo::Cuda, float, T>();
}
