// SPDX-License-Identifier: MIT
// Philox normals of a CUDA device have the bits of the reference.
#include <lpo/backend/cuda/random.cuh>

#include <backend/random_cases.hpp>

using namespace random_cases;

TEST_CASE_TEMPLATE("cuda normals have the bits of the reference", T, LPO_STORAGE_TYPES) { compare_normals<lpo::Cuda, T>(); }
