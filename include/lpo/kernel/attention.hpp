// SPDX-License-Identifier: MIT
// Contract of scaled dot-product attention that never stores the query x key matrix, and its gradient.
#pragma once

#include <lpo/base/scalar.hpp>
#include <lpo/kernel/missing.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

/// q and out are [batch, queries, heads, width], k and v are [batch, keys, heads, width]; the last two axes are dense, and
/// each tensor has its own row stride (elements between two positions), so that slices of a fused projection work.
/// out = softmax(scale * q k^T (+ causal mask)) v per head. With `causal`, query i sees keys j <= i (queries == keys).
struct AttentionShape {
  index_t batch = 0, queries = 0, keys = 0, heads = 0, width = 0;
  float scale = 1.0f;  ///< 1 / sqrt(width) as a rule
  bool causal = false;
  index_t q_row = 0, k_row = 0, v_row = 0, out_row = 0;  ///< row strides; a batch advances by its length times these
};

template <class Device>
struct Attention {
  LPO_MISSING_KERNEL(Device, "attention");

  /// `log_sum_exp` [batch, heads, queries] keeps what backward needs; may be null for inference.
  template <class T>
  static void forward(Context<Device>&, const AttentionShape&, const T* q, const T* k, const T* v, T* out,
                      compute_t<T>* log_sum_exp);
  /// dout has out's layout; dq, dk, dv have the layout of q, k, v. Any may be null; the flags say add instead of overwrite.
  template <class T>
  static void backward(Context<Device>&, const AttentionShape&, const T* q, const T* k, const T* v, const T* out,
                       const compute_t<T>* log_sum_exp, const T* dout, T* dq, bool accumulate_q, T* dk, bool accumulate_k,
                       T* dv, bool accumulate_v);
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
