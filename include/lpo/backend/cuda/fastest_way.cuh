// SPDX-License-Identifier: MIT
// fastest_way: the choice between several ways to compute one result, by their times and by what they compute.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>

#include <lpo/backend/cuda/launch.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

/// Sets `differs` unless both ranges hold the same words.
template <class Word>
__global__ void compare_words_kernel(const Word* a, const Word* b, std::size_t count, int* differs) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
    if (a[i] != b[i]) *differs = 1;
}

/// Sets `differs` where numbers are more than `limit` apart, or not numbers.
template <class T>
__global__ void compare_numbers_kernel(const T* a, const T* b, std::size_t count, float limit, int* differs) {
  const std::size_t step = static_cast<std::size_t>(gridDim.x) * blockDim.x;
  for (std::size_t i = static_cast<std::size_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
    if (!(fabsf(static_cast<float>(a[i]) - static_cast<float>(b[i])) <= limit)) *differs = 1;
}

/// How like the first way's result that of another must be: starts a kernel that sets the flag where it is not.
using Likeness =
    std::function<void(cudaStream_t stream, const DeviceBlock& first, const DeviceBlock& other, int* differs)>;

/// The same bits, so that the choice shows in no result.
inline Likeness same_bits() {
  return [](cudaStream_t stream, const DeviceBlock& first, const DeviceBlock& other, int* differs) {
    launch_kernel("compare_words_kernel", {dim3(1024), dim3(256)}, stream, false, compare_words_kernel<std::uint32_t>,
                  reinterpret_cast<const std::uint32_t*>(first.data()),
                  reinterpret_cast<const std::uint32_t*>(other.data()), first.bytes() / sizeof(std::uint32_t), differs);
  };
}

/// Numbers that lie within `limit` of each other, which tells other rounding from a wrong result.
template <class T>
Likeness close_numbers(float limit) {
  return [limit](cudaStream_t stream, const DeviceBlock& first, const DeviceBlock& other, int* differs) {
    launch_kernel("compare_numbers_kernel", {dim3(1024), dim3(256)}, stream, false, compare_numbers_kernel<T>,
                  reinterpret_cast<const T*>(first.data()), reinterpret_cast<const T*>(other.data()),
                  first.bytes() / sizeof(T), limit, differs);
  };
}

/// Two events around work on a stream.
class EventTimer {
 public:
  explicit EventTimer(cudaStream_t stream) : stream_(stream) {
    for (cudaEvent_t& event : events_) cuda_check(cudaEventCreate(&event), "choice by time");
  }
  EventTimer(const EventTimer&) = delete;
  EventTimer& operator=(const EventTimer&) = delete;
  ~EventTimer() {
    for (cudaEvent_t event : events_) cudaEventDestroy(event);
  }

  /// Milliseconds of what `work()` starts.
  template <class Work>
  float milliseconds(const Work& work) {
    float result = 0;
    cuda_check(cudaEventRecord(events_[0], stream_), "choice by time");
    work();
    cuda_check(cudaEventRecord(events_[1], stream_), "choice by time");
    cuda_check(cudaEventSynchronize(events_[1]), "choice by time");
    cuda_check(cudaEventElapsedTime(&result, events_[0], events_[1]), "choice by time");
    return result;
  }

 private:
  cudaStream_t stream_;
  std::array<cudaEvent_t, 2> events_{};
};

/// Times the ways 0 to ways - 1 and returns the fastest of those whose result has the `likeness` to that of way 0, which
/// it keeps unless another takes less than `worth` of its time: what is hardly faster is not worth a change.
/// `run(way, to)` starts a way with its result of `bytes` bytes at `to`, where zeros are at first, and returns whether it
/// could; way 0 always can. Results are compared after two runs, the second of which may add to what the first left.
/// Waits. Returns 0 where there is no memory for two more results.
template <class Run>
int fastest_way(cudaStream_t stream, std::size_t bytes, int ways, const Likeness& likeness, const Run& run,
                float worth = 0.98f) {
  std::size_t free = 0, total = 0;
  cuda_check(cudaMemGetInfo(&free, &total), "choice by time");
  if (ways <= 1 || free < 4 * bytes) return 0;
  const DeviceBlock first = DeviceBlock::zeros(bytes), other = DeviceBlock::zeros(bytes), differs(sizeof(int));
  const auto is_like_first = [&] {
    int result = 0;
    cuda_check(cudaMemsetAsync(differs.data(), 0, sizeof(int), stream), "choice by time");
    likeness(stream, first, other, reinterpret_cast<int*>(differs.data()));
    cuda_check(cudaMemcpyAsync(&result, differs.data(), sizeof(int), cudaMemcpyDeviceToHost, stream), "choice by time");
    cuda_check(cudaStreamSynchronize(stream), "choice by time");
    return result == 0;
  };
  for (int repeat = 0; repeat < 2; ++repeat) run(0, first.data());
  EventTimer timer(stream);
  float least = std::numeric_limits<float>::max();
  int fastest = 0;
  for (int way = 0; way < ways; ++way) {
    cuda_check(cudaMemsetAsync(other.data(), 0, other.bytes(), stream), "choice by time");
    bool runs = run(way, other.data()) && run(way, other.data());  // the first loads the code
    if (!runs || (way > 0 && !is_like_first())) continue;
    float time = least;
    for (int round = 0; round < 2; ++round)
      time = std::min(time, timer.milliseconds([&] {
        for (int repeat = 0; repeat < 2; ++repeat) runs = run(way, other.data()) && runs;
      }));
    if (!runs || time >= least) continue;
    least = way == 0 ? worth * time : time;
    fastest = way;
  }
  return fastest;
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
