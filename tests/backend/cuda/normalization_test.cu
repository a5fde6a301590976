// SPDX-License-Identifier: MIT
// Norms and softmax on a CUDA device against the reference.
#include <lpo/backend/cuda/normalization.cuh>

#include <backend/normalization_cases.hpp>

using namespace normalization_cases;

TEST_CASE("cuda norms of small vectors have their textbook values") { check_known_norms<lpo::Cuda>(); }

TEST_CASE("cuda softmax of small rows has its textbook values and does not overflow") { check_known_softmax<lpo::Cuda>(); }

TEST_CASE("cuda group norm agrees with the reference") { compare_all_group_norms<lpo::Cuda>(); }

TEST_CASE("cuda layer norm of the lengths that registers hold agrees with the reference") {
  for (const index_t c : {264, 512, 640, 768, 1024, 1280, 2048}) {
    compare_layer_norms<lpo::Cuda, float>(9, c, {});
    compare_layer_norms<lpo::Cuda, lpo::bfloat16>(9, c, {});
  }
}

TEST_CASE("cuda layer norm agrees with the reference") { compare_all_layer_norms<lpo::Cuda>(); }

TEST_CASE("cuda norm gradients that nobody asked for are not written") { check_unwanted_gradients<lpo::Cuda>(); }

TEST_CASE("a large mean does not eat the variance on a CUDA device") { check_large_means<lpo::Cuda>(); }

TEST_CASE("cuda softmax agrees with the reference") { compare_all_softmax<lpo::Cuda>(); }
