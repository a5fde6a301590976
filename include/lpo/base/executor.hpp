// SPDX-License-Identifier: MIT
// Executor: the thread pool that a context owns; it splits index ranges, never touches process-wide thread settings.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>

namespace lpo::inline LPO_ABI {

/// Runs `body(begin, end)` over chunks of a range. The chunks depend on the range and the grain alone, never on the number
/// of threads: a kernel that sums per chunk and then in chunk order gives the same bits for any thread count.
class Executor {
 public:
  /// `threads` counts the caller; 0 takes the machine's number of hardware threads. ValueError if the system does not
  /// give so many.
  explicit Executor(int threads = 0) {
    if (threads <= 0) threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    try {
      for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
    } catch (const std::exception& error) {
      stop();  // those that run wait for work
      throw ValueError(message("[Executor] cannot start ", threads, " threads: ", error.what(), "; ask for fewer"));
    }
  }

  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  ~Executor() { stop(); }

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  /// Calls `body(begin, end)` for consecutive chunks of `grain` indices of [0, count); returns when all are done and
  /// rethrows the first exception. Runs on the caller alone when there is one chunk or when called from inside a chunk.
  template <class Body>
  void parallel_for(index_t count, index_t grain, Body&& body) {
    if (count <= 0) return;
    grain = std::max<index_t>(1, grain);
    const index_t chunks = (count + grain - 1) / grain;
    auto one = [&](index_t chunk) { body(chunk * grain, std::min(count, (chunk + 1) * grain)); };
    if (chunks == 1 || workers_.empty() || inside()) {
      for (index_t chunk = 0; chunk < chunks; ++chunk) one(chunk);
      return;
    }
    run(chunks, [](void* context, index_t chunk) { (*static_cast<decltype(one)*>(context))(chunk); }, &one);
  }

 private:
  using Call = void (*)(void*, index_t);

  static bool& inside() {
    static thread_local bool value = false;
    return value;
  }

  void stop() {
    {
      std::lock_guard lock(mutex_);
      stop_.store(true, std::memory_order_relaxed);
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  /// Only workers that joined while chunks were left are waited for: one that the system has not run yet, on a machine
  /// with more threads than cores, holds nobody up.
  void run(index_t chunks, Call call, void* context) {
    std::lock_guard one_at_a_time(submit_);
    call_ = call;
    context_ = context;
    chunks_ = chunks;
    error_ = nullptr;
    next_.store(0, std::memory_order_relaxed);
    const std::uint64_t generation = (state_.load(std::memory_order_relaxed) >> 32) + 1;
    state_.store(generation << 32 | open, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0) wake(chunks);
    drain();
    state_.fetch_and(~open, std::memory_order_acq_rel);
    // Workers of short jobs finish within microseconds: look a while before sleeping.
    for (int spin = 0; spin < spin_limit && active() != 0; ++spin) pause();
    if (active() != 0) {
      std::unique_lock lock(mutex_);
      idle_.wait(lock, [this] { return active() == 0; });
    }
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  void wake(index_t chunks) {
    { std::lock_guard lock(mutex_); }  // who has looked in vain is asleep now
    if (chunks > static_cast<index_t>(workers_.size()))
      wake_.notify_all();
    else
      for (index_t i = 1; i < chunks; ++i) wake_.notify_one();
  }

  void drain() {
    inside() = true;
    for (;;) {
      const index_t chunk = next_.fetch_add(1, std::memory_order_relaxed);
      if (chunk >= chunks_) break;
      try {
        call_(context_, chunk);
      } catch (...) {
        std::lock_guard lock(mutex_);
        if (!error_) error_ = std::current_exception();
        next_.store(chunks_, std::memory_order_relaxed);
      }
    }
    inside() = false;
  }

  void work() {
    std::uint64_t seen = 0;
    const auto news = [&] { return state_.load(std::memory_order_seq_cst) >> 32 != seen; };
    while (!stop_.load(std::memory_order_relaxed)) {
      for (int spin = 0; spin < spin_limit && !news(); ++spin) pause();
      if (!news()) {
        std::unique_lock lock(mutex_);
        sleepers_.fetch_add(1, std::memory_order_seq_cst);
        wake_.wait(lock, [&] { return stop_.load(std::memory_order_relaxed) || news(); });
        sleepers_.fetch_sub(1, std::memory_order_relaxed);
      }
      std::uint64_t state = state_.load(std::memory_order_acquire);
      while ((state & open) != 0 && !state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel,
                                                                  std::memory_order_acquire)) {
      }
      seen = state >> 32;
      if ((state & open) == 0) continue;  // done without this worker
      drain();
      const std::uint64_t before = state_.fetch_sub(1, std::memory_order_acq_rel);
      if ((before & ~std::uint64_t{0} >> 32) == 1) {  // closed, and the last one to leave
        std::lock_guard lock(mutex_);
        idle_.notify_one();
      }
    }
  }

  std::uint64_t active() const { return state_.load(std::memory_order_acquire) & (open - 1); }

  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
  }

  static constexpr int spin_limit = 2000;  // about 50 us: covers the gap between two kernels, not idle time

  std::vector<std::thread> workers_;
  std::mutex submit_, mutex_;
  std::condition_variable wake_, idle_;
  Call call_ = nullptr;
  void* context_ = nullptr;
  index_t chunks_ = 0;
  std::exception_ptr error_;
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  static constexpr std::uint64_t open = std::uint64_t{1} << 31;  // the job takes workers
  alignas(64) std::atomic<std::uint64_t> state_{0};  // number of the job << 32 | open | workers inside it
  alignas(64) std::atomic<index_t> next_{0};
};

}  // namespace lpo::inline LPO_ABI
