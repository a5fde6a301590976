// SPDX-License-Identifier: MIT
// The peak of this machine's multiply-adds, in float and in bfloat16, measured in the same run as what is compared.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <map>
#include <thread>
#include <vector>

#include <lpo/tensor/context.hpp>
#include <lpo/tensor/tensor.hpp>

#include <backend/fma_loop.hpp>

namespace bench {

/// Operations per second of `threads` threads that only multiply and add T in registers (best of several windows).
template <class T>
double measure_peak(int threads) {
  using clock = std::chrono::steady_clock;
  lpo::Context<lpo::Cpu> context(threads);
  double best = 0;
  // Windows are long beside the time until the last thread has joined.
  for (int window = 0; window < 12; ++window) {
    double operations = 0;
    const auto start = clock::now();
    context.executor().parallel_for(threads, 1, [&](lpo::index_t thread, lpo::index_t) {
      const double done =
          std::is_same_v<T, lpo::bfloat16> ? multiply_and_add_bfloat16(100000) : multiply_and_add(400000);
      if (thread == 0) operations = done * threads;
    });
    best = std::max(best, operations / std::chrono::duration<double>(clock::now() - start).count());
  }
  return best;
}

template <class T>
double peak(int threads) {
  static std::map<int, double> measured;
  auto& value = measured[threads];
  if (value == 0.0) value = measure_peak<T>(threads);
  return value;
}

/// `count` times `value`, in memory that is aligned as that of tensors is.
template <class T>
lpo::Tensor<T, 1> filled(lpo::index_t count, float value) {
  auto tensor = lpo::Tensor<T, 1>::zeros({count});
  std::fill_n(tensor.data(), count, T(value));
  return tensor;
}

/// 1, 2 and all.
inline std::vector<lpo::index_t> thread_counts() {
  std::vector<lpo::index_t> counts{1, 2};
  if (std::thread::hardware_concurrency() > 2) counts.push_back(std::thread::hardware_concurrency());
  return counts;
}

/// Counters "GFLOP/s" and "of_peak" for `operations` per iteration on that many threads; T says of which peak.
template <class T = float>
void count_operations(benchmark::State& state, double operations, int threads) {
  state.counters["GFLOP/s"] =
      benchmark::Counter(operations * 1e-9, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
  state.counters["of_peak"] =
      benchmark::Counter(operations / peak<T>(threads), benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace bench
