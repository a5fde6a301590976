// SPDX-License-Identifier: MIT
// Sums on a CUDA device against the reference.
#include <lpo/backend/cuda/reduce.cuh>

#include <backend/reduce_cases.hpp>

using namespace reduce_cases;

TEST_CASE_TEMPLATE("cuda sums agree with the reference", T, LPO_STORAGE_TYPES) { compare_sums<lpo::Cuda, T>(); }
