// SPDX-License-Identifier: MIT
// Upsampling and the spatial mean on a CUDA device against the reference.
#include <lpo/backend/cuda/resample.cuh>

#include <backend/resample_cases.hpp>

using namespace resample_cases;

TEST_CASE("cuda upsampling and spatial mean of small images have their known values") { check_known_upsampling<lpo::Cuda>(); }

TEST_CASE("cuda upsampling agrees with the reference") { compare_all_upsampling<lpo::Cuda>(); }

TEST_CASE("cuda spatial mean agrees with the reference") { compare_all_means<lpo::Cuda>(); }
