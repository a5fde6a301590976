// SPDX-License-Identifier: MIT
// Runs the clusters of a kernel's blocks (mostly of one block) one after another on the CPU. A cluster's threads are fibers
// that take turns at barriers and shuffles, in an order that changes from turn to turn: a barrier that is missing shows in the
// numbers, one that not all threads reach ends the program. Asynchronous copies are made when they are waited for, not before.
#pragma once

#include <array>
#include <bit>
#include <csetjmp>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include <ucontext.h>

namespace emulated_cuda {

struct Index3 {
  unsigned x, y, z;
  constexpr Index3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

inline Index3 threadIdx{0, 0, 0}, blockIdx{0, 0, 0}, blockDim, gridDim;
inline constexpr std::size_t shared_bytes_per_block = 96 * 1024, stack_bytes = 64 * 1024;
inline constexpr unsigned warp_lanes = 32;

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulated CUDA block: %s\n", what);
  std::abort();
}

/// Threads of a group (a block, a warp) that wait for each other.
struct Barrier {
  unsigned live = 0, arrived = 0, generation = 0;
  bool collected = false, result = false;  ///< of synchronize_block's predicate

  void leave() {
    --live;
    release_if_complete();
  }
  void release_if_complete() {
    if (live == 0 || arrived != live) return;
    arrived = 0;
    ++generation;
    result = collected;
    collected = false;
  }
};

struct Copy {
  void* to;
  const void* from;
  std::size_t bytes;
};

/// One thread of the cluster that runs, on a stack of its own. It is used again for the thread of this number of the next one.
struct Fiber {
  enum class State { idle, ready, waiting, done } state = State::idle;
  bool started = false;
  std::jmp_buf where;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Index3 index;
  unsigned block = 0, thread = 0;  ///< in the cluster, in the block
  Barrier* barrier = nullptr;
  unsigned generation = 0, cluster_generation = 0;
  std::vector<Copy> open_copies;
  std::deque<std::vector<Copy>> copy_groups;
};

/// Lanes of a warp that exchange values, as the mask of a shuffle names them. Two sets of values, so that a fast lane cannot
/// overwrite what a slow one has yet to read.
struct LaneGroup {
  unsigned mask = 0;
  Barrier barrier;
  std::array<std::array<unsigned char, 16>, 2 * warp_lanes> values;
};

struct Warp {
  unsigned live = 0;                 ///< lanes that have not returned, a bit each
  std::deque<LaneGroup> groups;      ///< those that were seen

  LaneGroup& group(unsigned mask) {
    for (LaneGroup& one : groups)
      if (one.mask == mask) return one;
    LaneGroup& made = groups.emplace_back();
    made.mask = mask;
    made.barrier.live = static_cast<unsigned>(std::popcount(mask & live));
    return made;
  }

  /// As on the device, a lane that has returned is not waited for.
  void leave(unsigned lane) {
    live &= ~(1u << lane);
    for (LaneGroup& one : groups)
      if ((one.mask >> lane & 1u) != 0) one.barrier.leave();
  }
};

struct Block {
  Index3 index;
  Barrier barrier;
  std::vector<Warp> warps;
  bool begun = false;
  alignas(16) std::array<unsigned char, shared_bytes_per_block> shared;
};

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<std::unique_ptr<Block>> blocks;  ///< of the cluster that runs
  Barrier cluster;
  unsigned current = 0;
  std::jmp_buf scheduler;
  void (*body)(const void*) = nullptr;  ///< of one thread
  const void* data = nullptr;

  Fiber& fiber() { return *fibers[current]; }
  Block& block() { return *blocks[fiber().block]; }
};

inline Machine& machine() {
  static Machine one;
  return one;
}

inline unsigned char* launched_shared_memory() { return machine().block().shared.data(); }

/// Leaves the current fiber for the scheduler; returns when it is resumed.
inline void leave() {
  Machine& m = machine();
  if (_setjmp(m.fibers[m.current]->where) == 0) _longjmp(m.scheduler, 1);
}

/// What a fiber runs for ever: the body of each thread that it is given.
inline void run_fiber() {
  Machine& m = machine();
  for (;;) {
    m.body(m.data);
    m.fibers[m.current]->state = Fiber::State::done;
    leave();
  }
}

/// Runs fiber `number` until it waits or is done.
[[gnu::noinline]] inline void resume(unsigned number) {
  Machine& m = machine();
  m.current = number;
  threadIdx = m.fiber().index, blockIdx = m.block().index;
  m.block().begun = true;
  if (_setjmp(m.scheduler) != 0) return;
  Fiber& fiber = *machine().fibers[number];
  if (fiber.started) _longjmp(fiber.where, 1);
  fiber.started = true;
  fiber.stack = std::make_unique<char[]>(stack_bytes);
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = stack_bytes;
  makecontext(&fiber.context, run_fiber, 0);
  setcontext(&fiber.context);
}

/// Returns when the barrier has left this generation.
inline void wait_for_next(Barrier& barrier, unsigned generation) {
  Fiber& fiber = machine().fiber();
  fiber.barrier = &barrier;
  fiber.generation = generation;
  while (barrier.generation == generation) {
    fiber.state = Fiber::State::waiting;
    leave();
  }
  fiber.state = Fiber::State::ready;
}
inline void wait(Barrier& barrier) {
  const unsigned generation = barrier.generation;
  ++barrier.arrived;
  barrier.release_if_complete();
  wait_for_next(barrier, generation);
}

/// __syncthreads and __syncthreads_or: whether the predicate held for any thread.
inline bool synchronize_block(bool predicate) {
  Barrier& barrier = machine().block().barrier;
  barrier.collected = barrier.collected || predicate;
  wait(barrier);
  return barrier.result;
}

/// __shfl_xor_sync among the lanes of `mask`: the value of the lane whose number differs in the bits `lanes`.
template <class T>
T exchange(unsigned mask, const T& value, int lanes) {
  static_assert(sizeof(T) <= 16);
  Machine& m = machine();
  const unsigned thread = m.fiber().thread, lane = thread % warp_lanes, other = lane ^ static_cast<unsigned>(lanes);
  if ((mask >> lane & mask >> other & 1u) == 0) fail("a shuffle with a lane that its mask leaves out");
  LaneGroup& group = m.block().warps[thread / warp_lanes].group(mask);
  const unsigned set = group.barrier.generation % 2 * warp_lanes;
  std::memcpy(group.values[set + lane].data(), &value, sizeof(T));
  wait(group.barrier);
  T found;
  std::memcpy(&found, group.values[set + other].data(), sizeof(T));
  return found;
}

/// Barrier of the cluster, in two halves.
inline void cluster_arrive() {
  Machine& m = machine();
  m.fiber().cluster_generation = m.cluster.generation;
  ++m.cluster.arrived;
  m.cluster.release_if_complete();
}
inline void cluster_wait() { wait_for_next(machine().cluster, machine().fiber().cluster_generation); }

/// The place of this block's shared memory `place` in another block of the cluster.
template <class T>
T* in_cluster_block(T* place, unsigned rank) {
  Machine& m = machine();
  const auto offset = reinterpret_cast<unsigned char*>(place) - m.block().shared.data();
  Block& other = *m.blocks[rank];
  if (offset < 0 || static_cast<std::size_t>(offset) >= shared_bytes_per_block) fail("not a place of the shared memory");
  if (!other.begun || other.barrier.live == 0) fail("shared memory of a block that has not begun or has ended");
  return reinterpret_cast<T*>(other.shared.data() + offset);
}

// Copies of a thread: they are made by the wait that covers them, and never without one.
inline void copy_later(void* to, const void* from, std::size_t bytes) { machine().fiber().open_copies.push_back({to, from, bytes}); }
inline void close_copy_group() {
  Fiber& fiber = machine().fiber();
  fiber.copy_groups.push_back(std::move(fiber.open_copies));
  fiber.open_copies.clear();
}
inline void wait_for_copy_groups(std::size_t open) {
  for (auto& groups = machine().fiber().copy_groups; groups.size() > open; groups.pop_front())
    for (const Copy& copy : groups.front()) std::memcpy(copy.to, copy.from, copy.bytes);
}

/// All threads of a cluster of `blocks` blocks from `first` on.
inline void run_cluster(const Index3& first, unsigned blocks, unsigned threads, std::size_t shared_bytes, bool backwards) {
  Machine& m = machine();
  m.cluster = {};
  m.cluster.live = blocks * threads;
  for (unsigned b = 0; b < blocks; ++b) {
    Block& block = *m.blocks[b];
    block.index = {first.x + b, first.y, first.z};
    block.begun = false;
    block.barrier = {};
    block.barrier.live = threads;
    block.warps.assign((threads + warp_lanes - 1) / warp_lanes, {});
    std::memset(block.shared.data(), 0xff, shared_bytes);
    for (unsigned i = 0; i < threads; ++i) {
      block.warps[i / warp_lanes].live |= 1u << i % warp_lanes;
      Fiber& fiber = *m.fibers[b * threads + i];
      fiber.state = Fiber::State::ready;
      fiber.open_copies.clear();
      fiber.copy_groups.clear();
    }
  }
  const unsigned all = blocks * threads;
  for (unsigned left = all; left > 0; backwards = !backwards) {
    bool moved = false;
    for (unsigned k = 0; k < all; ++k) {
      const unsigned i = backwards ? all - 1 - k : k;
      Fiber& fiber = *m.fibers[i];
      if (fiber.state == Fiber::State::done) continue;
      if (fiber.state == Fiber::State::waiting && fiber.barrier->generation == fiber.generation) continue;
      moved = true;
      resume(i);
      if (fiber.state != Fiber::State::done) continue;
      --left;
      m.cluster.leave();
      m.blocks[fiber.block]->barrier.leave();
      m.blocks[fiber.block]->warps[fiber.thread / warp_lanes].leave(fiber.thread % warp_lanes);
    }
    if (!moved) fail("threads wait at different barriers for ever");
  }
}

/// Runs `body()` once for each thread of each block; `cluster` neighbours along x together.
template <class Body>
void run_blocks(const Index3& blocks, const Index3& threads, std::size_t shared_bytes, unsigned cluster, const Body& body) {
  Machine& m = machine();
  const unsigned count = threads.x * threads.y * threads.z;
  if (count == 0 || count > 1024 || shared_bytes > shared_bytes_per_block) fail("a launch that no device takes");
  if (cluster == 0 || cluster > 16 || blocks.x % cluster != 0) fail("a cluster that no device takes");
  while (m.fibers.size() < count * cluster) m.fibers.push_back(std::make_unique<Fiber>());
  while (m.blocks.size() < cluster) m.blocks.push_back(std::make_unique<Block>());
  for (unsigned i = 0; i < count * cluster; ++i) {
    const unsigned thread = i % count;
    m.fibers[i]->block = i / count, m.fibers[i]->thread = thread;
    m.fibers[i]->index = {thread % threads.x, thread / threads.x % threads.y, thread / threads.x / threads.y};
  }
  m.body = [](const void* data) { (*static_cast<const Body*>(data))(); };
  m.data = &body;
  blockDim = threads, gridDim = blocks;
  bool backwards = false;
  for (unsigned z = 0; z < blocks.z; ++z)
    for (unsigned y = 0; y < blocks.y; ++y)
      for (unsigned x = 0; x < blocks.x; x += cluster, backwards = !backwards)
        run_cluster({x, y, z}, cluster, count, shared_bytes, backwards);
}

}  // namespace emulated_cuda
