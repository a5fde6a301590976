// SPDX-License-Identifier: MIT
// The emulator itself: barriers, shuffles, shared memory, copies, clusters, threads that leave early, and launches in three
// dimensions.
#include <doctest/doctest.h>

#include <vector>

#include "cuda_runtime.h"

namespace {

void launch(dim3 blocks, dim3 threads, const auto& body) { emulated_cuda::run_blocks(blocks, threads, 1024, 1, body); }

}  // namespace

TEST_CASE("every thread of every block runs once and knows its place") {
  std::vector<int> seen(2 * 3 * 2 * 4 * 2 * 3);
  launch({2, 3, 2}, {4, 2, 3}, [&] {
    const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    ++seen[block * 24 + thread];
  });
  for (const int count : seen) CHECK(count == 1);
}

TEST_CASE("a barrier makes what others wrote visible, in every block again") {
  for (const unsigned threads : {1u, 31u, 64u, 257u}) {
    std::vector<unsigned> out(3 * threads);
    launch({3}, {threads}, [&] {
      __shared__ unsigned shared[1024];
      shared[threadIdx.x] = threadIdx.x + 1;
      __syncthreads();
      const unsigned reversed = shared[blockDim.x - 1 - threadIdx.x];
      __syncthreads();
      shared[threadIdx.x] = 0;
      out[blockIdx.x * blockDim.x + threadIdx.x] = reversed;
    });
    for (unsigned i = 0; i < 3 * threads; ++i) CHECK(out[i] == threads - i % threads);
  }
}

TEST_CASE("without the barrier the numbers are wrong: the order of threads changes") {
  std::vector<unsigned> out(128);
  launch({2}, {64}, [&] {
    __shared__ unsigned shared[64];
    shared[threadIdx.x] = 64 * blockIdx.x + threadIdx.x + 1;
    out[blockIdx.x * 64 + threadIdx.x] = shared[(threadIdx.x + 1) % 64];  // a race
  });
  bool first = true, second = true;
  for (unsigned i = 0; i < 64; ++i) {
    first = first && out[i] == (i + 1) % 64 + 1;
    second = second && out[64 + i] == 64 + (i + 1) % 64 + 1;
  }
  CHECK_FALSE(first);
  CHECK_FALSE(second);
}

TEST_CASE("shuffles exchange within the warp, several in a row, warps at different paces") {
  std::vector<double> sum(96);
  launch({1}, {96}, [&] {
    double value = threadIdx.x;
    for (unsigned turn = 0; turn <= threadIdx.x / 32; ++turn)
      for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
    sum[threadIdx.x] = value;
  });
  for (unsigned i = 0; i < 96; ++i) {
    const double once = 32.0 * (i / 32) * 32 + 31 * 32 / 2;
    const double expected = i / 32 == 0 ? once : i / 32 == 1 ? 32 * once : 32 * 32 * once;
    CHECK(sum[i] == expected);
  }
}

TEST_CASE("threads that have returned are not waited for; predicates are joined") {
  std::vector<int> any(64);
  launch({1}, {64}, [&] {
    if (threadIdx.x >= 40) return;
    const int first = __syncthreads_or(threadIdx.x == 7), second = __syncthreads_or(0);
    any[threadIdx.x] = first + 2 * second;
  });
  for (unsigned i = 0; i < 64; ++i) CHECK(any[i] == (i < 40 ? 1 : 0));
}

TEST_CASE("groups of lanes shuffle apart from each other, while others have returned") {
  std::vector<int> sum(64);
  launch({1}, {64}, [&] {
    if (threadIdx.x % 32 >= 16) return;
    const unsigned group = threadIdx.x % 32 / 8;
    int value = static_cast<int>(threadIdx.x);
    for (unsigned turn = 0; turn < 2 * group + 1; ++turn)
      for (int lanes = 4; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffu << 8 * group, value, lanes, 8);
    sum[threadIdx.x] = value;
  });
  for (int i = 0; i < 64; ++i) {
    const int first = i / 8 * 8, once = 8 * first + 28;
    CHECK(sum[static_cast<std::size_t>(i)] == (i % 32 >= 16 ? 0 : i % 32 < 8 ? once : once * 64));
  }
}

TEST_CASE("blocks of a cluster reach each other's shared memory") {
  std::vector<unsigned> out(2 * 4 * 40);
  emulated_cuda::run_blocks({8}, {40}, 1024, 4, [&] {
    auto* own = reinterpret_cast<unsigned*>(emulated_cuda::launched_shared_memory());
    const unsigned rank = blockIdx.x % 4;
    emulated_cuda::cluster_arrive();
    emulated_cuda::cluster_wait();  // all have begun
    emulated_cuda::in_cluster_block(own, (rank + 1) % 4)[threadIdx.x] = 100 * blockIdx.x + threadIdx.x;
    emulated_cuda::cluster_arrive();
    emulated_cuda::cluster_wait();
    out[blockIdx.x * 40 + threadIdx.x] = own[threadIdx.x];
  });
  for (unsigned i = 0; i < out.size(); ++i) {
    const unsigned block = i / 40, before = block / 4 * 4 + (block + 3) % 4;
    CHECK(out[i] == 100 * before + i % 40);
  }
}

TEST_CASE("a copy arrives when its group is waited for, and not before") {
  const std::vector<int> from{1, 2, 3};
  std::vector<int> to(3), between(3);
  launch({1}, {1}, [&] {
    for (std::size_t i = 0; i < 3; ++i) {
      emulated_cuda::copy_later(&to[i], &from[i], sizeof(int));
      if (i < 2) emulated_cuda::close_copy_group();
    }
    emulated_cuda::wait_for_copy_groups(1);
    between = to;
    emulated_cuda::wait_for_copy_groups(0);
  });
  CHECK(between == std::vector<int>{1, 0, 0});
  CHECK(to == std::vector<int>{1, 2, 0});  // the third one's group was never closed
}
