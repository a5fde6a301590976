// SPDX-License-Identifier: MIT
// The matrix product of CUDA devices: cuBLASLt with cached plans; the row-major product is C^T = op(B)^T op(A)^T there.
#pragma once

#include <lpo/backend/cuda/context.cuh>
#include <lpo/backend/cuda/numbers.cuh>
#include <lpo/kernel/gemm.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

template <class T>
inline constexpr cudaDataType_t cuda_type = CUDA_R_32F;
template <>
inline constexpr cudaDataType_t cuda_type<double> = CUDA_R_64F;
template <>
inline constexpr cudaDataType_t cuda_type<bfloat16> = CUDA_R_16BF;
template <>
inline constexpr cudaDataType_t cuda_type<half> = CUDA_R_16F;

/// c = beta * start + bias, for products without terms; start may be c.
template <class T>
__global__ void scale_rows_kernel(T* c, const T* start, index_t m, index_t n, index_t ldc, index_t step, float beta,
                                  const T* bias) {
  using Number = compute_t<T>;
  const index_t at = static_cast<index_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at >= m * n) return;
  const index_t column = at % n;
  const index_t place = static_cast<index_t>(blockIdx.y) * step + at / n * ldc + column;
  Number value = beta == 0.0f ? Number{} : static_cast<Number>(beta) * load_number(start + place);
  if (bias != nullptr) value += load_number(bias + column);
  store_number(c + place, value);
}

}  // namespace detail

namespace kernel {

template <>
struct Gemm<Cuda> {
  template <class T>
  static void run(Context<Cuda>& context, const GemmParams<T>& p) {
    if (p.m <= 0 || p.n <= 0 || p.batch <= 0) return;
    const T* const start = p.start != nullptr ? p.start : p.c;
    if (p.k <= 0) {
      const dim3 grid(detail::blocks_for(p.m * p.n, 256), static_cast<unsigned>(p.batch));
      context.launch("scale_rows_kernel", {grid, 256}, detail::scale_rows_kernel<T>, p.c, start, p.m, p.n, p.ldc, p.batch_stride_c,
                     p.beta, p.bias);
      return;
    }
    detail::ProductKey key;
    key.scalar = detail::cuda_type<T>;
    key.compute = CUBLAS_COMPUTE_32F;
    if (std::is_same_v<T, double>) key.compute = CUBLAS_COMPUTE_64F;
    if (std::is_same_v<T, float> && context.options().tf32) key.compute = CUBLAS_COMPUTE_32F_FAST_TF32;
    key.epilogue = p.bias == nullptr ? CUBLASLT_EPILOGUE_DEFAULT : CUBLASLT_EPILOGUE_BIAS;
    key.transpose_a = p.transpose_b;  // operands change places: column-major cuBLAS sees every matrix transposed
    key.transpose_b = p.transpose_a;
    key.accumulate = p.beta != 0.0f;
    key.m = p.n;
    key.n = p.m;
    key.k = p.k;
    key.lda = p.ldb;
    key.ldb = p.lda;
    key.ldc = p.ldc;
    key.batch = p.batch;
    key.step_a = p.batch_stride_b;
    key.step_b = p.batch_stride_a;
    key.step_c = p.batch_stride_c;
    key.alignment = detail::common_alignment(p.a, p.b, p.c, p.bias, p.start);
    auto& products = context.products();
    const auto handle = products.handle();
    auto& plan = products.plan(key);
    if (p.bias != nullptr) {
      const void* bias = p.bias;
      detail::cublas_check(
          cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, sizeof(bias)), "gemm");
    }
    const compute_t<T> alpha = p.alpha, beta = p.beta;
    const auto multiply = [&](const detail::ProductAlgorithm& algorithm, void* to) {
      return cublasLtMatmul(handle, plan.operation, &alpha, p.b, plan.a, p.a, plan.b, &beta, start, plan.c, to, plan.c,
                            &algorithm.value, products.workspace(), detail::ProductPlans::workspace_bytes, context.stream());
    };
    if (!plan.others.empty() && context.options().time_products && !context.capturing())
      products.choose_fastest(plan, context.stream(), static_cast<std::size_t>(p.m * p.ldc) * sizeof(T), multiply);
    detail::cublas_check(multiply(plan.algorithm, p.c), "gemm");
    context.check_launch("cublasLtMatmul", [&] {
      return message("cublasLtMatmul ", p.transpose_a ? "[k, m]^T " : "[m, k] ", p.transpose_b ? "[n, k]^T" : "[k, n]",
                     " m ", p.m, " n ", p.n, " k ", p.k, p.batch > 1 ? message(" x ", p.batch) : "",
                     p.beta != 0 ? " added" : "", p.bias != nullptr ? " bias" : "");
    });
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
