// SPDX-License-Identifier: MIT
// The FMA peak of this machine, measured in the same run as what is compared with it.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>

#include <lpo/tensor/context.hpp>
#include <lpo/tensor/pack.hpp>

namespace bench {

/// Operations per second of `threads` threads that only multiply and add in registers (best of several windows).
inline double measure_peak(int threads) {
  using clock = std::chrono::steady_clock;
  constexpr int chains = LPO_SIMD_BYTES == 64 ? 24 : 12, steps = 20000;
  lpo::Context<lpo::Cpu> context(threads);
  double best = 0;
  for (int window = 0; window < 40; ++window) {
    const auto start = clock::now();
    context.executor().parallel_for(threads, 1, [&](lpo::index_t, lpo::index_t) {
      lpo::Pack sum[chains];
      lpo::Pack factor = lpo::detail::broadcast_lanes<lpo::Pack>(0.999f), term = factor;
#pragma GCC unroll 24
      for (int i = 0; i < chains; ++i) {
        sum[i] = term + static_cast<float>(i);
        asm volatile("" : "+v"(sum[i]));
      }
      asm volatile("" : "+v"(factor), "+v"(term));
      for (int step = 0; step < steps; ++step) {
#pragma GCC unroll 24
        for (int i = 0; i < chains; ++i) sum[i] = sum[i] * factor + term;
      }
#pragma GCC unroll 24
      for (int i = 0; i < chains; ++i) asm volatile("" : "+v"(sum[i]));
    });
    const double seconds = std::chrono::duration<double>(clock::now() - start).count();
    best = std::max(best, 2.0 * threads * chains * lpo::pack_width * steps / seconds);
  }
  return best;
}

inline double peak(int threads) {
  static const double one = measure_peak(1), two = measure_peak(2);
  return threads == 1 ? one : two;
}

/// Counters "GFLOP/s" and "of_peak" for `operations` per iteration on 1 or 2 threads.
inline void count_operations(benchmark::State& state, double operations, int threads) {
  state.counters["GFLOP/s"] =
      benchmark::Counter(operations * 1e-9, benchmark::Counter::kIsIterationInvariantRate, benchmark::Counter::kIs1000);
  state.counters["of_peak"] =
      benchmark::Counter(operations / peak(threads), benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace bench
