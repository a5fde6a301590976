// SPDX-License-Identifier: MIT
// WorkerScratch: one workspace per thread of a context's executor, borrowed by a chunk while it runs.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <thread>

#include <lpo/tensor/context.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// Chunks must not read what an earlier chunk left behind: which workspace a chunk gets depends on timing.
template <class T>
class WorkerScratch {
 public:
  /// `count` elements for each thread, taken from `scratch` and given back with it.
  WorkerScratch(Context<Cpu>& context, Scratch<Cpu>& scratch, index_t count)
      : slots_(std::min(context.executor().threads(), 64)),
        stride_(static_cast<index_t>(aligned_bytes(static_cast<std::size_t>(count) * sizeof(T)) / sizeof(T))),
        data_(scratch.allocate<T>(stride_ * slots_)),
        free_(~std::uint64_t{0} >> (64 - slots_)) {}

  /// Holds one workspace until the end of the C++ scope.
  class Lease {
   public:
    explicit Lease(WorkerScratch& owner) : owner_(owner), slot_(owner.take()) {}
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    ~Lease() { owner_.free_.fetch_or(std::uint64_t{1} << slot_, std::memory_order_release); }
    T* data() const { return owner_.data_ + slot_ * owner_.stride_; }

   private:
    WorkerScratch& owner_;
    int slot_;
  };

 private:
  int take() {
    std::uint64_t free = free_.load(std::memory_order_relaxed);
    for (;;) {
      if (free == 0) {  // only with more than 64 threads
        std::this_thread::yield();
        free = free_.load(std::memory_order_relaxed);
      } else if (free_.compare_exchange_weak(free, free & (free - 1), std::memory_order_acquire)) {
        return std::countr_zero(free);
      }
    }
  }

  int slots_;
  index_t stride_;
  T* data_;
  std::atomic<std::uint64_t> free_;
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
