// SPDX-License-Identifier: MIT
// Stands in for cuBLASLt's header: there are no products, every call says so.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda_runtime.h"

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS, CUBLAS_STATUS_NOT_SUPPORTED };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32F_FAST_TF32, CUBLAS_COMPUTE_64F };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };
enum cublasLtEpilogue_t { CUBLASLT_EPILOGUE_DEFAULT, CUBLASLT_EPILOGUE_BIAS };
enum cublasLtMatmulDescAttributes_t {
  CUBLASLT_MATMUL_DESC_TRANSA,
  CUBLASLT_MATMUL_DESC_TRANSB,
  CUBLASLT_MATMUL_DESC_EPILOGUE,
  CUBLASLT_MATMUL_DESC_BIAS_POINTER,
};
enum cublasLtMatrixLayoutAttribute_t { CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET };
enum cublasLtMatmulPreferenceAttributes_t {
  CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
  CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
};
enum cublasLtMatmulAlgoConfigAttributes_t { CUBLASLT_ALGO_CONFIG_ID, CUBLASLT_ALGO_CONFIG_SPLITK_NUM };
using cublasLtHandle_t = void*;
using cublasLtMatmulDesc_t = void*;
using cublasLtMatrixLayout_t = void*;
using cublasLtMatmulPreference_t = void*;
struct cublasLtMatmulAlgo_t {};
struct cublasLtMatmulHeuristicResult_t {
  cublasLtMatmulAlgo_t algo;
};

inline const char* cublasLtGetStatusString(cublasStatus_t) { return "the emulator has no products"; }
template <class... Arguments>
cublasStatus_t emulated_cublas(const Arguments&...) {
  return CUBLAS_STATUS_NOT_SUPPORTED;
}
#define cublasLtCreate emulated_cublas
#define cublasLtDestroy emulated_cublas
#define cublasLtMatmul emulated_cublas
#define cublasLtMatmulAlgoConfigGetAttribute emulated_cublas
#define cublasLtMatmulAlgoGetHeuristic emulated_cublas
#define cublasLtMatmulDescCreate emulated_cublas
#define cublasLtMatmulDescDestroy emulated_cublas
#define cublasLtMatmulDescSetAttribute emulated_cublas
#define cublasLtMatmulPreferenceCreate emulated_cublas
#define cublasLtMatmulPreferenceDestroy emulated_cublas
#define cublasLtMatmulPreferenceSetAttribute emulated_cublas
#define cublasLtMatrixLayoutCreate emulated_cublas
#define cublasLtMatrixLayoutDestroy emulated_cublas
#define cublasLtMatrixLayoutSetAttribute emulated_cublas
