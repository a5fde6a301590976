// SPDX-License-Identifier: MIT
// The embedding lookup on a CUDA device against the reference.
#include <lpo/backend/cuda/embedding.cuh>

#include <backend/embedding_cases.hpp>

using namespace embedding_cases;

TEST_CASE_TEMPLATE("cuda embedding agrees with the reference", T, LPO_STORAGE_TYPES) { compare_embeddings<lpo::Cuda, T>(); }
