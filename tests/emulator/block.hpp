// SPDX-License-Identifier: MIT
// Runs the blocks of a kernel one after another on the CPU. A block's threads are fibers that take turns at barriers and
// shuffles, in an order that changes from turn to turn: a barrier that is missing shows in the numbers, one that not all
// threads reach ends the program.
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

/// One thread of the block that runs, on a stack of its own. It is used again for the thread of this number of the next block.
struct Fiber {
  enum class State { idle, ready, waiting, done } state = State::idle;
  bool started = false;
  std::jmp_buf where;
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  Index3 index;
  Barrier* barrier = nullptr;
  unsigned generation = 0;
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

struct Machine {
  std::vector<std::unique_ptr<Fiber>> fibers;
  std::vector<Warp> warps;
  Barrier block;
  unsigned current = 0;
  std::jmp_buf scheduler;
  void (*body)(const void*) = nullptr;  ///< of one thread
  const void* data = nullptr;
  alignas(16) std::array<unsigned char, shared_bytes_per_block> shared;
};

inline Machine& machine() {
  static Machine one;
  return one;
}

inline unsigned char* launched_shared_memory() { return machine().shared.data(); }

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
  threadIdx = m.fibers[number]->index;
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

inline void wait(Barrier& barrier) {
  Machine& m = machine();
  Fiber& fiber = *m.fibers[m.current];
  fiber.barrier = &barrier;
  fiber.generation = barrier.generation;
  ++barrier.arrived;
  barrier.release_if_complete();
  while (barrier.generation == fiber.generation) {
    fiber.state = Fiber::State::waiting;
    leave();
  }
  fiber.state = Fiber::State::ready;
}

/// __syncthreads and __syncthreads_or: whether the predicate held for any thread.
inline bool synchronize_block(bool predicate) {
  Barrier& barrier = machine().block;
  barrier.collected = barrier.collected || predicate;
  wait(barrier);
  return barrier.result;
}

/// __shfl_xor_sync among the lanes of `mask`: the value of the lane whose number differs in the bits `lanes`.
template <class T>
T exchange(unsigned mask, const T& value, int lanes) {
  static_assert(sizeof(T) <= 16);
  Machine& m = machine();
  const unsigned lane = m.current % warp_lanes, other = lane ^ static_cast<unsigned>(lanes);
  if ((mask >> lane & mask >> other & 1u) == 0) fail("a shuffle with a lane that its mask leaves out");
  LaneGroup& group = m.warps[m.current / warp_lanes].group(mask);
  const unsigned set = group.barrier.generation % 2 * warp_lanes;
  std::memcpy(group.values[set + lane].data(), &value, sizeof(T));
  wait(group.barrier);
  T found;
  std::memcpy(&found, group.values[set + other].data(), sizeof(T));
  return found;
}

/// All threads of the block `blockIdx`.
inline void run_block(unsigned threads, bool backwards) {
  Machine& m = machine();
  m.block = {};
  m.block.live = threads;
  m.warps.assign((threads + warp_lanes - 1) / warp_lanes, {});
  for (unsigned i = 0; i < threads; ++i) {
    m.warps[i / warp_lanes].live |= 1u << i % warp_lanes;
    m.fibers[i]->state = Fiber::State::ready;
  }
  for (unsigned left = threads; left > 0; backwards = !backwards) {
    bool moved = false;
    for (unsigned k = 0; k < threads; ++k) {
      const unsigned i = backwards ? threads - 1 - k : k;
      Fiber& fiber = *m.fibers[i];
      if (fiber.state == Fiber::State::done) continue;
      if (fiber.state == Fiber::State::waiting && fiber.barrier->generation == fiber.generation) continue;
      moved = true;
      resume(i);
      if (fiber.state != Fiber::State::done) continue;
      --left;
      m.block.leave();
      m.warps[i / warp_lanes].leave(i % warp_lanes);
    }
    if (!moved) fail("threads wait at different barriers for ever");
  }
}

/// Runs `body()` once for each thread of each block.
template <class Body>
void run_blocks(const Index3& blocks, const Index3& threads, std::size_t shared_bytes, const Body& body) {
  Machine& m = machine();
  const unsigned count = threads.x * threads.y * threads.z;
  if (count == 0 || count > 1024 || shared_bytes > shared_bytes_per_block) fail("a launch that no device takes");
  while (m.fibers.size() < count) m.fibers.push_back(std::make_unique<Fiber>());
  for (unsigned i = 0; i < count; ++i)
    m.fibers[i]->index = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
  m.body = [](const void* data) { (*static_cast<const Body*>(data))(); };
  m.data = &body;
  blockDim = threads, gridDim = blocks;
  bool backwards = false;
  for (unsigned z = 0; z < blocks.z; ++z)
    for (unsigned y = 0; y < blocks.y; ++y)
      for (unsigned x = 0; x < blocks.x; ++x, backwards = !backwards) {
        blockIdx = {x, y, z};
        std::memset(m.shared.data(), 0xff, shared_bytes);
        run_block(count, backwards);
      }
}

}  // namespace emulated_cuda
