// SPDX-License-Identifier: MIT
// ProductPlans: cuBLASLt's handle and workspace, and the algorithm chosen for each shape of product, looked up once.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include <cublasLt.h>

#include <lpo/backend/cuda/fastest_way.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

inline void cublas_check(cublasStatus_t status, const char* operation) {
  if (status != CUBLAS_STATUS_SUCCESS)
    throw DeviceError(message("[", operation, "] cuBLASLt: ", cublasLtGetStatusString(status)));
}

/// All that an algorithm may depend on, in cuBLASLt's column-major terms. `alignment` is the largest power of two, at most
/// 16, that divides every address.
struct ProductKey {
  int scalar = 0;  ///< cudaDataType_t of the operands
  int compute = 0, epilogue = 0;
  bool transpose_a = false, transpose_b = false, accumulate = false;
  index_t m = 0, n = 0, k = 0, lda = 0, ldb = 0, ldc = 0;
  index_t batch = 1, step_a = 0, step_b = 0, step_c = 0;
  int alignment = 16;

  auto tie() const {
    return std::tie(scalar, compute, epilogue, transpose_a, transpose_b, accumulate, m, n, k, lda, ldb, ldc, batch, step_a,
                    step_b, step_c, alignment);
  }
  friend bool operator<(const ProductKey& a, const ProductKey& b) { return a.tie() < b.tie(); }
};

/// In place of the library's type, whose lack of a name of its own breaks nvcc 13.0 in containers.
struct ProductAlgorithm {
  cublasLtMatmulAlgo_t value{};
};

/// One product as cuBLASLt wants it described. The descriptors live as long as the context: making them takes longer than
/// a small product.
struct ProductPlan {
  cublasLtMatmulDesc_t operation = nullptr;
  cublasLtMatrixLayout_t a = nullptr, b = nullptr, c = nullptr;
  ProductAlgorithm algorithm;
  std::vector<ProductAlgorithm> others;  ///< that choose_fastest() compares with it

  ProductPlan() = default;
  ProductPlan(const ProductPlan&) = delete;
  ProductPlan& operator=(const ProductPlan&) = delete;
  ~ProductPlan() {
    if (operation != nullptr) cublasLtMatmulDescDestroy(operation);
    for (cublasLtMatrixLayout_t layout : {a, b, c})
      if (layout != nullptr) cublasLtMatrixLayoutDestroy(layout);
  }
};

class ProductPlans {
 public:
  ProductPlans() = default;
  ProductPlans(const ProductPlans&) = delete;
  ProductPlans& operator=(const ProductPlans&) = delete;
  ~ProductPlans() {
    plans_.clear();
    if (handle_ != nullptr) cublasLtDestroy(handle_);
  }

  cublasLtHandle_t handle() {
    if (handle_ == nullptr) {
      cublas_check(cublasLtCreate(&handle_), "gemm");
      workspace_ = DeviceBlock(workspace_bytes);
    }
    return handle_;
  }
  void* workspace() { return workspace_.data(); }
  std::size_t reserved_bytes() const { return workspace_.bytes(); }

  /// The plan of a product, made on first use.
  ProductPlan& plan(const ProductKey& key) {
    const auto [at, fresh] = plans_.try_emplace(key);
    if (fresh) {
      try {
        make(key, at->second);
      } catch (...) {
        plans_.erase(at);
        throw;
      }
    }
    return at->second;
  }

  /// The library's first choice can take 1.7 times as long as its best, above all where a product adds to a residual and
  /// has a bias. Times them once and keeps the fastest of those that give the bits of the first (fastest_way). `run(algorithm,
  /// to)` starts the product with its result of `bytes` bytes at `to`.
  template <class Run>
  static void choose_fastest(ProductPlan& plan, cudaStream_t stream, std::size_t bytes, const Run& run) {
    std::vector<ProductAlgorithm> all = std::exchange(plan.others, {});
    all.insert(all.begin(), plan.algorithm);
    const int fastest = fastest_way(stream, bytes, static_cast<int>(all.size()), same_bits(), [&](int way, void* to) {
      return run(all[static_cast<std::size_t>(way)], to) == CUBLAS_STATUS_SUCCESS;
    });
    plan.algorithm = all[static_cast<std::size_t>(fastest)];
  }

  static constexpr std::size_t workspace_bytes = std::size_t{32} << 20;  // what the library asks for on Hopper

 private:
  template <class Value>
  static void set(cublasLtMatmulDesc_t operation, cublasLtMatmulDescAttributes_t name, const Value& value) {
    cublas_check(cublasLtMatmulDescSetAttribute(operation, name, &value, sizeof(value)), "gemm");
  }

  static cublasLtMatrixLayout_t layout(const ProductKey& key, index_t rows, index_t columns, index_t lead, index_t step) {
    cublasLtMatrixLayout_t made = nullptr;
    cublas_check(cublasLtMatrixLayoutCreate(&made, static_cast<cudaDataType_t>(key.scalar), static_cast<std::uint64_t>(rows),
                                            static_cast<std::uint64_t>(columns), lead),
                 "gemm");
    const auto batch = static_cast<std::int32_t>(key.batch);
    const std::int64_t stride = step;
    cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batch, sizeof(batch));
    cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof(stride));
    return made;
  }

  void make(const ProductKey& key, ProductPlan& plan) {
    const bool is_double = key.scalar == CUDA_R_64F;
    cublas_check(cublasLtMatmulDescCreate(&plan.operation, static_cast<cublasComputeType_t>(key.compute),
                                          is_double ? CUDA_R_64F : CUDA_R_32F),
                 "gemm");
    set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, key.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(plan.operation, CUBLASLT_MATMUL_DESC_TRANSB, key.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N);
    set(plan.operation, CUBLASLT_MATMUL_DESC_EPILOGUE, static_cast<cublasLtEpilogue_t>(key.epilogue));
    plan.a = key.transpose_a ? layout(key, key.k, key.m, key.lda, key.step_a) : layout(key, key.m, key.k, key.lda, key.step_a);
    plan.b = key.transpose_b ? layout(key, key.n, key.k, key.ldb, key.step_b) : layout(key, key.k, key.n, key.ldb, key.step_b);
    plan.c = layout(key, key.m, key.n, key.ldc, key.step_c);

    cublasLtMatmulPreference_t preference = nullptr;
    cublas_check(cublasLtMatmulPreferenceCreate(&preference), "gemm");
    const std::size_t bytes = workspace_bytes;
    cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof(bytes));
    const auto alignment = static_cast<std::uint32_t>(key.alignment);
    for (const auto name : {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES})
      cublasLtMatmulPreferenceSetAttribute(preference, name, &alignment, sizeof(alignment));
    cublasLtMatmulHeuristicResult_t found[8] = {};
    int count = 0;
    const cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle(), plan.operation, plan.a, plan.b, plan.c, plan.c, preference,
                                       is_large(key) ? 8 : 1, found, &count);
    cublasLtMatmulPreferenceDestroy(preference);
    if (status != CUBLAS_STATUS_SUCCESS || count == 0)
      throw DeviceError(message("[gemm] cuBLASLt has no algorithm for the product of ", key.n, " x ", key.k, " and ", key.k,
                                " x ", key.m, " (batch ", key.batch, "): ", cublasLtGetStatusString(status)));
    plan.algorithm = {found[0].algo};
    // Of one kind and without splitting the summed index: what adds in the same order.
    const auto order = [](const cublasLtMatmulAlgo_t& algorithm) {
      return std::pair(attribute(algorithm, CUBLASLT_ALGO_CONFIG_ID), attribute(algorithm, CUBLASLT_ALGO_CONFIG_SPLITK_NUM));
    };
    const auto first = order(found[0].algo);
    for (int i = 1; i < count && first.second == 1; ++i)
      if (order(found[i].algo) == first) plan.others.push_back({found[i].algo});
  }

  /// Whether timing is worth its while: from some 10 us on.
  static bool is_large(const ProductKey& key) {
    const bool is_short = key.scalar == CUDA_R_16BF || key.scalar == CUDA_R_16F;
    return is_short && key.batch == 1 && key.m * key.n * key.k >= index_t{1} << 30;
  }

  static std::int32_t attribute(const cublasLtMatmulAlgo_t& algorithm, cublasLtMatmulAlgoConfigAttributes_t name) {
    std::int32_t value = 0;
    std::size_t written = 0;
    cublas_check(cublasLtMatmulAlgoConfigGetAttribute(&algorithm, name, &value, sizeof(value), &written), "gemm");
    return value;
  }

  cublasLtHandle_t handle_ = nullptr;
  DeviceBlock workspace_;
  std::map<ProductKey, ProductPlan> plans_;
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
