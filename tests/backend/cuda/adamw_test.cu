// SPDX-License-Identifier: MIT
// AdamW on a CUDA device against the reference.
#include <lpo/backend/cuda/adamw.cuh>

#include <backend/adamw_cases.hpp>

using namespace adamw_cases;

TEST_CASE_TEMPLATE("cuda AdamW agrees with the reference", T, LPO_STORAGE_TYPES) { compare_steps<lpo::Cuda, T>(); }
