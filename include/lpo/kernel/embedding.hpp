// SPDX-License-Identifier: MIT
// Contract of the embedding lookup and its gradient.
#pragma once

#include <cstdint>

#include <lpo/base/scalar.hpp>
#include <lpo/kernel/missing.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

/// y[i, :] = table[ids[i], :]. `ids` (host memory for host devices) were checked by the caller to lie in [0, vocabulary).
template <class Device>
struct Embedding {
  LPO_MISSING_KERNEL(Device, "embedding");

  template <class T>
  static void forward(Context<Device>&, index_t count, index_t width, const std::int32_t* ids, const T* table, T* y);
  /// dtable[ids[i], :] += dy[i, :] in index order (deterministic); overwrites the whole [vocabulary, width] first unless
  /// `accumulate`.
  template <class T>
  static void backward(Context<Device>&, index_t count, index_t width, index_t vocabulary, const std::int32_t* ids,
                       const T* dy, T* dtable, bool accumulate);
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
