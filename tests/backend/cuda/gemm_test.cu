// SPDX-License-Identifier: MIT
// Matrix products on a CUDA device against the reference.
#include <lpo/backend/cuda/gemm.cuh>

#include <backend/gemm_cases.hpp>

using namespace gemm_cases;

TEST_CASE_TEMPLATE("cuda gemm agrees with the reference", T, LPO_STORAGE_TYPES) { compare_products<lpo::Cuda, T>(); }
