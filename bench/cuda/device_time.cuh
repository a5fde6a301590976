// SPDX-License-Identifier: MIT
// Timing of device work for Google Benchmark: events around each call, cold caches, ceilings measured in the same run.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <vector>

#include <lpo/backend/cuda/gemm.cuh>
#include <lpo/backend/cuda/random.cuh>

namespace bench {

using lpo::Cuda;
using lpo::index_t;

/// What contexts start from: the environment variable LPO_BENCH_CUDNN (same_bits, fastest) sets CudaOptions::cudnn.
inline lpo::CudaOptions options() {
  lpo::CudaOptions options;
  const char* set = std::getenv("LPO_BENCH_CUDNN");
  const std::string_view use = set == nullptr ? "" : set;
  if (use == "same_bits") options.cudnn = lpo::CudnnUse::same_bits;
  if (use == "fastest") options.cudnn = lpo::CudnnUse::fastest;
  return options;
}

/// One context for the whole program.
inline lpo::Context<Cuda>& device() {
  static lpo::Context<Cuda> context(options());
  return context;
}

/// Random numbers on the device: zeros would run faster than real data.
template <class T>
class Random {
 public:
  explicit Random(index_t count, std::uint32_t seed = 1, float deviation = 1.0f) : block_(static_cast<std::size_t>(count) * sizeof(T)) {
    lpo::kernel::RandomNormal<Cuda>::fill(device(), count, data(), 0.0f, deviation, seed, 0, 0, 0);
  }
  T* data() const { return reinterpret_cast<T*>(block_.data()); }

 private:
  lpo::detail::DeviceBlock block_;
};

/// Seconds of `work()` on the context's stream, the L2 cache filled with other data before.
class Stopwatch {
 public:
  explicit Stopwatch(lpo::Context<Cuda>& context = device()) : context_(context) {
    lpo::detail::cuda_check(cudaEventCreate(&start_), "benchmark");
    lpo::detail::cuda_check(cudaEventCreate(&stop_), "benchmark");
  }
  Stopwatch(const Stopwatch&) = delete;
  Stopwatch& operator=(const Stopwatch&) = delete;
  ~Stopwatch() {
    cudaEventDestroy(start_);
    cudaEventDestroy(stop_);
  }

  template <class Work>
  double seconds(Work&& work, bool cold = true) {
    static Random<float> flush(index_t{64} << 20);  // 256 MiB, several times any L2
    if (cold) context_.fill_zero(flush.data(), std::size_t{256} << 20);
    cudaEventRecord(start_, context_.stream());
    work();
    cudaEventRecord(stop_, context_.stream());
    lpo::detail::cuda_check(cudaEventSynchronize(stop_), "benchmark");
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, start_, stop_);
    return static_cast<double>(milliseconds) * 1e-3;
  }

  /// The median of several.
  template <class Work>
  double median(int repeats, Work&& work, bool cold = true) {
    std::vector<double> all;
    for (int i = 0; i < repeats; ++i) all.push_back(seconds(work, cold));
    std::nth_element(all.begin(), all.begin() + repeats / 2, all.end());
    return all[static_cast<std::size_t>(repeats / 2)];
  }

 private:
  lpo::Context<Cuda>& context_;
  cudaEvent_t start_ = nullptr, stop_ = nullptr;
};

/// Bytes per second of a large copy on the device, read and written bytes counted.
inline double copy_ceiling() {
  static const double ceiling = [] {
    constexpr std::size_t bytes = std::size_t{1} << 30;
    Random<float> from(bytes / 4), to(bytes / 4);
    Stopwatch watch;
    const auto copy = [&] { device().copy(to.data(), from.data(), bytes); };
    copy();
    return 2.0 * static_cast<double>(bytes) / watch.median(9, copy);
  }();
  return ceiling;
}

/// Operations per second of a large product of T.
template <class T>
double product_ceiling() {
  static const double ceiling = [] {
    constexpr index_t n = 8192;
    Random<T> a(n * n, 1), b(n * n, 2), c(n * n, 3);
    lpo::kernel::GemmParams<T> p;
    p.m = p.n = p.k = p.lda = p.ldb = p.ldc = n;
    p.a = a.data(), p.b = b.data(), p.c = c.data(), p.transpose_b = true;
    Stopwatch watch;
    const auto run = [&] { lpo::kernel::Gemm<Cuda>::run(device(), p); };
    for (int i = 0; i < 3; ++i) run();
    return 2.0 * n * n * n / watch.median(9, run);
  }();
  return ceiling;
}

/// Runs `work()`, whose work is the context's, under the benchmark's loop. The first calls, which allocate and choose
/// algorithms, are not timed.
template <class Work>
void time_on_device(benchmark::State& state, Work&& work, bool cold = true, lpo::Context<Cuda>& context = device()) {
  Stopwatch watch(context);
  for (int i = 0; i < 3; ++i) work();
  for (auto _ : state) state.SetIterationTime(watch.seconds(work, cold));
}

/// Seconds of a copy that reads and writes `bytes` together, timed as the kernels are: small ones pay for their launch too, and
/// all for what they find in the cache.
inline double copy_seconds(double bytes) {
  const auto floats = static_cast<index_t>(bytes / 8);
  Random<float> from(floats), to(floats);
  Stopwatch watch;
  const auto copy = [&] { device().copy(to.data(), from.data(), static_cast<std::size_t>(floats) * sizeof(float)); };
  copy();
  return watch.median(9, copy);
}

/// Counters "GB/s", "of_copy" (of the rate of a large copy) and "of_equal_copy" (of the rate of a copy of as many bytes).
inline void count_bytes(benchmark::State& state, double bytes) {
  state.counters["of_equal_copy"] = benchmark::Counter(copy_seconds(bytes), benchmark::Counter::kIsIterationInvariantRate);
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["of_copy"] = benchmark::Counter(bytes / copy_ceiling(), benchmark::Counter::kIsIterationInvariantRate);
}

/// Counters "TFLOP/s" and "of_gemm", beside a large product of the same type.
template <class T>
void count_operations(benchmark::State& state, double operations) {
  state.counters["TFLOP/s"] = benchmark::Counter(operations * 1e-12, benchmark::Counter::kIsIterationInvariantRate);
  state.counters["of_gemm"] =
      benchmark::Counter(operations / product_ceiling<T>(), benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace bench
