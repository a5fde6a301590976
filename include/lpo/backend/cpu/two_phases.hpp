// SPDX-License-Identifier: MIT
// Two phases of work in one dispatch: operands are packed by all threads, then jobs read what was packed.
#pragma once

#include <atomic>
#include <thread>

#include <lpo/base/executor.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// Calls first(i) for i < firsts, then second(i) for i < seconds, over the executor's threads; each second sees what
/// all firsts did. `first` must not throw.
///
/// Chunks are handed out in order: when a thread takes a second, all firsts are done or in the hands of threads that
/// work on them and wait for nobody. A dispatch costs several microseconds on many threads, so it is one, not two.
template <class First, class Second>
void run_two_phases(Executor& executor, index_t firsts, First&& first, index_t seconds, Second&& second) {
  std::atomic<index_t> done{0};
  executor.parallel_for(firsts + seconds, 1, [&](index_t at, index_t) {
    if (at < firsts) {
      first(at);
      done.fetch_add(1, std::memory_order_release);
      return;
    }
    while (done.load(std::memory_order_acquire) < firsts) std::this_thread::yield();
    second(at - firsts);
  });
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
