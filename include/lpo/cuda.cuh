// SPDX-License-Identifier: MIT
// Everything for CUDA translation units (.cu): the CPU library and the CUDA backend. Link cublasLt.
#pragma once

#include <lpo/lpo.hpp>

#include <lpo/backend/cuda/adamw.cuh>
#include <lpo/backend/cuda/attention.cuh>
#include <lpo/backend/cuda/context.cuh>
#include <lpo/backend/cuda/conv2d.cuh>
#include <lpo/backend/cuda/copy.cuh>
#include <lpo/backend/cuda/cross_entropy.cuh>
#include <lpo/backend/cuda/elementwise.cuh>
#include <lpo/backend/cuda/embedding.cuh>
#include <lpo/backend/cuda/gated_product.cuh>
#include <lpo/backend/cuda/gemm.cuh>
#include <lpo/backend/cuda/graph.cuh>
#include <lpo/backend/cuda/normalization.cuh>
#include <lpo/backend/cuda/random.cuh>
#include <lpo/backend/cuda/reduce.cuh>
#include <lpo/backend/cuda/resample.cuh>
