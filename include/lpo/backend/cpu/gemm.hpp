// SPDX-License-Identifier: MIT
// The matrix product of the CPU: a register tile over packs.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <type_traits>
#include <utility>

#include <lpo/base/config.hpp>

#include <lpo/backend/cpu/bfloat16_product.hpp>
#include <lpo/backend/cpu/product_run.hpp>
#include <lpo/kernel/gemm.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// One operand as stored: `rows` lines of `width` elements.
template <class S>
struct StoredMatrix {
  const S* data;
  index_t step, batch_step;
};

/// The stored matrices of a batch in the arithmetic type; a shared operand (batch step 0) is converted once.
template <class S, class T>
StoredMatrix<S> as_compute(Context<Cpu>& context, Scratch<Cpu>& scratch, const StoredMatrix<T>& from, index_t rows,
                           index_t width, index_t batch) {
  if constexpr (std::is_same_v<S, T>) {
    return from;
  } else {
    const index_t items = from.batch_step == 0 ? 1 : batch;
    S* copy = scratch.allocate<S>(items * rows * width);
    for (index_t item = 0; item < items; ++item)
      convert_block(context, rows, width, from.data + item * from.batch_step, from.step, copy + item * rows * width);
    return {copy, width, from.batch_step == 0 ? 0 : rows * width};
  }
}

/// On tiles of pairs.
inline void pair_gemm(Context<Cpu>& context, const kernel::GemmParams<bfloat16>& g) {
  Scratch<Cpu> scratch(context);
  PairProduct p;
  p.m = g.m, p.n = g.n, p.k = g.k, p.batch = g.batch;
  p.a = {g.a, g.batch_stride_a, even_rows(g.m, g.lda), std::max<index_t>(g.k, 1)};
  p.b = {g.b, g.batch_stride_b, even_rows(g.n, g.ldb), std::max<index_t>(g.k, 1)};
  if (g.transpose_a) p.a.offset = even_steps(scratch, g.k, g.lda);
  if (!g.transpose_b) p.b.offset = even_steps(scratch, g.k, g.ldb);
  TileOutput<bfloat16> out;
  out.c = g.c;
  out.rows = even_rows(g.m, g.ldc);
  out.alpha = g.alpha;
  out.beta = g.beta;
  out.bias = g.bias;
  out.batch_c = g.batch_stride_c;
  run_pair_product(context, p, out);
}

template <class T>
void tile_gemm(Context<Cpu>& context, const kernel::GemmParams<T>& g) {
  using S = compute_t<T>;
  Scratch<Cpu> scratch(context);
  const StoredMatrix<T> a{g.a, g.lda, g.batch_stride_a}, b{g.b, g.ldb, g.batch_stride_b};
  TileProduct<S> p;
  TileOutput<T> out;
  p.k = g.k;
  p.batch = g.batch;
  out.c = g.c;
  out.alpha = g.alpha;
  out.beta = g.beta;
  out.bias = g.bias;
  out.batch_c = g.batch_stride_c;

  // With both operands stored along k, B would be transposed while packing. For few rows of A that costs more than the
  // product: then A is packed and C^T = B A^T. The limits were measured.
  const bool swap = g.transpose_b && !g.transpose_a && 2 * g.m <= g.n && (g.m <= 4 || (g.m <= 24 && g.k >= 256));
  const auto& right = swap ? a : b;
  p.m = swap ? g.n : g.m;
  p.n = swap ? g.m : g.n;
  const auto left = as_compute<S>(context, scratch, swap ? b : a, g.transpose_a ? g.k : p.m,
                                  g.transpose_a ? p.m : g.k, g.batch);
  p.a.data = left.data;
  p.a.batch_step = left.batch_step;
  p.a.rows = even_rows(p.m, g.transpose_a ? 1 : left.step);
  p.a.run = std::max<index_t>(g.k, 1);
  if (g.transpose_a) p.a.offset = even_steps(scratch, g.k, left.step);
  out.rows = even_rows(p.m, swap ? 1 : g.ldc);
  out.column_step = swap ? g.ldc : 1;
  out.bias_by_row = swap;

  if (g.transpose_b)
    p.b = RightOperand<S>::along_k(right.data, right.batch_step, even_rows(p.n, right.step));
  else
    p.b = RightOperand<S>::along_n(right.data, right.batch_step, even_steps(scratch, g.k, right.step));
  run_product(context, p, out);
}

}  // namespace detail

namespace kernel {

template <>
struct Gemm<Cpu> {
  template <class T>
  static void run(Context<Cpu>& context, const GemmParams<T>& p) {
    if (p.m <= 0 || p.n <= 0 || p.batch <= 0) return;
    if (p.start != nullptr) return run_from(context, p);
    if constexpr (std::is_same_v<T, bfloat16>) {
      if (detail::multiplies_pairs<T>()) return detail::pair_gemm(context, p);
    }
    detail::tile_gemm(context, p);
  }

 private:
  /// Puts what the product starts from in its place.
  template <class T>
  static void run_from(Context<Cpu>& context, GemmParams<T> p) {
    const T* const start = std::exchange(p.start, nullptr);
    if (p.beta != 0.0f) {
      context.executor().parallel_for(p.batch * p.m, (32768 + p.n - 1) / p.n, [&](index_t begin, index_t end) {
        for (index_t row = begin; row < end; ++row) {
          const index_t at = row / p.m * p.batch_stride_c + row % p.m * p.ldc;
          std::memcpy(static_cast<void*>(p.c + at), start + at, static_cast<std::size_t>(p.n) * sizeof(T));
        }
      });
    }
    run(context, p);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
#endif
