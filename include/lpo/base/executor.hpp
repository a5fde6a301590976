// SPDX-License-Identifier: MIT
// Executor: the thread pool that a context owns; it splits index ranges, never touches process-wide thread settings.
#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/extents.hpp>

namespace lpo::inline LPO_ABI {

/// Runs `body(begin, end)` over chunks of a range. The chunks depend on the range and the grain alone, never on the number
/// of threads: a kernel that sums per chunk and then in chunk order gives the same bits for any thread count.
class Executor {
 public:
  /// `threads` counts the caller; 0 takes the machine's number of hardware threads.
  explicit Executor(int threads = 0) {
    if (threads <= 0) threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }

  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  ~Executor() {
    {
      std::lock_guard lock(mutex_);
      stop_ = true;
    }
    wake_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

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

  void run(index_t chunks, Call call, void* context) {
    std::lock_guard one_at_a_time(submit_);
    {
      std::lock_guard lock(mutex_);
      call_ = call;
      context_ = context;
      chunks_ = chunks;
      next_.store(0, std::memory_order_relaxed);
      busy_ = static_cast<int>(workers_.size());
      error_ = nullptr;
      ++generation_;
      signal_.store(generation_, std::memory_order_release);
    }
    wake_.notify_all();
    drain();
    std::exception_ptr error;
    {
      // Workers of short jobs finish within microseconds: look a while before sleeping.
      for (int spin = 0; spin < spin_limit && done_.load(std::memory_order_acquire) != generation_; ++spin) pause();
      std::unique_lock lock(mutex_);
      idle_.wait(lock, [this] { return busy_ == 0; });
      error = error_;
    }
    if (error) std::rethrow_exception(error);
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
    for (;;) {
      for (int spin = 0; spin < spin_limit && signal_.load(std::memory_order_acquire) == seen; ++spin) pause();
      {
        std::unique_lock lock(mutex_);
        wake_.wait(lock, [&] { return stop_ || generation_ != seen; });
        if (stop_) return;
        seen = generation_;
      }
      drain();
      std::lock_guard lock(mutex_);
      if (--busy_ == 0) {
        done_.store(generation_, std::memory_order_release);
        idle_.notify_one();
      }
    }
  }

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
  std::atomic<index_t> next_{0};
  std::atomic<std::uint64_t> signal_{0}, done_{0};
  std::uint64_t generation_ = 0;
  int busy_ = 0;
  bool stop_ = false;
  std::exception_ptr error_;
};

}  // namespace lpo::inline LPO_ABI
