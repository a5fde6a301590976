// SPDX-License-Identifier: MIT
// The two-dimensional copy on a CUDA device against the reference.
#include <lpo/backend/cuda/copy.cuh>

#include <backend/copy_cases.hpp>

using namespace copy_cases;

TEST_CASE_TEMPLATE("cuda copy_rows agrees with the reference", T, LPO_STORAGE_TYPES) { compare_copies<lpo::Cuda, T>(); }
