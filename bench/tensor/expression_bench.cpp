// SPDX-License-Identifier: MIT
// Fused statements, forward and backward, in GB/s of what must be read and written once, and as a fraction of memcpy.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <lpo/autograd/var.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/testing/random_tensor.hpp>

namespace {

using lpo::Context;
using lpo::Cpu;
using lpo::Extents;
using lpo::index_t;
using lpo::Tape;
using lpo::Tensor;
using lpo::Var;
using lpo::View;
using lpo::testing::random_tensor;

double seconds_of(auto&& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// GB/s of read and write of memcpy over the threads, `bytes` of memory in all, the best of many runs: the ceiling.
double copy_gigabytes(std::size_t bytes, int threads) {
  Context<Cpu> context(threads);
  const index_t count = static_cast<index_t>(bytes / 8);
  auto source = Tensor<float, 1>::full(Extents<1>{count}, 1), target = source.clone();
  double best = 1e30;
  for (std::size_t run = 0; run < std::max<std::size_t>(10, 100'000'000 / bytes); ++run)
    best = std::min(best, seconds_of([&] {
                      context.executor().parallel_for(count, 32768, [&](index_t begin, index_t end) {
                        std::memcpy(target.data() + begin, source.data() + begin,
                                    static_cast<std::size_t>(end - begin) * 4);
                      });
                      benchmark::ClobberMemory();
                    }));
  return 8e-9 * static_cast<double>(count) / best;
}

/// Times every iteration by itself. The rates come from the fastest one, like the ceiling's: on a machine that others
/// use, a mean says more about them. The reported time is the mean.
class Stopwatch {
 public:
  template <class Body>
  void time(benchmark::State& state, Body&& body) {
    const double seconds = seconds_of(body);
    best_ = std::min(best_, seconds);
    state.SetIterationTime(seconds);
  }
  /// `bytes` are read or written per iteration, each array once.
  void report(benchmark::State& state, double bytes, int threads) const {
    const double gigabytes = 1e-9 * bytes / best_;
    state.counters["GB/s"] = gigabytes;
    state.counters["of_copy"] = gigabytes / copy_gigabytes(static_cast<std::size_t>(bytes), threads);
  }

 private:
  double best_ = 1e30;
};

/// Arguments: rows, channels, threads.
struct Shape {
  index_t rows, channels;
  int threads;
  explicit Shape(const benchmark::State& state)
      : rows(state.range(0)), channels(state.range(1)), threads(static_cast<int>(state.range(2))) {}
  double full(std::size_t element) const { return static_cast<double>(rows * channels) * static_cast<double>(element); }
};

template <class T>
void copy(benchmark::State& state) {
  const Shape shape(state);
  Context<Cpu> context(shape.threads);
  const auto x = random_tensor<T, Cpu>(Extents<2>{shape.rows, shape.channels}, 1);
  Tensor<T, 2> y(x.extents());
  Stopwatch watch;
  for (auto _ : state) watch.time(state, [&] { evaluate(&context, y.view(), x); });
  watch.report(state, 2 * shape.full(sizeof(T)), shape.threads);
}

/// silu(x * (1 + scale) + shift): the statement of a modulated norm, all operands full.
template <class T>
void modulate(benchmark::State& state) {
  const Shape shape(state);
  Context<Cpu> context(shape.threads);
  const Extents<2> extents{shape.rows, shape.channels};
  const auto x = random_tensor<T, Cpu>(extents, 1), scale = random_tensor<T, Cpu>(extents, 2),
             shift = random_tensor<T, Cpu>(extents, 3);
  Tensor<T, 2> y(extents);
  Stopwatch watch;
  for (auto _ : state) watch.time(state, [&] { evaluate(&context, y.view(), silu(x * (1 + scale) + shift)); });
  watch.report(state, 4 * shape.full(sizeof(T)), shape.threads);
}

/// The same with scale and shift of one row.
template <class T>
void modulate_rows(benchmark::State& state) {
  const Shape shape(state);
  Context<Cpu> context(shape.threads);
  const Extents<2> extents{shape.rows, shape.channels};
  const auto x = random_tensor<T, Cpu>(extents, 1);
  const auto scale = random_tensor<T, Cpu>(Extents<1>{shape.channels}, 2),
             shift = random_tensor<T, Cpu>(Extents<1>{shape.channels}, 3);
  Tensor<T, 2> y(extents);
  Stopwatch watch;
  for (auto _ : state) watch.time(state, [&] { evaluate(&context, y.view(), silu(x * (1 + scale) + shift)); });
  watch.report(state, 2 * shape.full(sizeof(T)), shape.threads);
}

/// value * gelu(gate) of the two halves of one projection.
template <class T>
void gated(benchmark::State& state) {
  const Shape shape(state);
  Context<Cpu> context(shape.threads);
  const auto x = random_tensor<T, Cpu>(Extents<2>{shape.rows, 2 * shape.channels}, 1);
  Tensor<T, 2> y(Extents<2>{shape.rows, shape.channels});
  const auto value = x.view().slice(1, 0, shape.channels), gate = x.view().slice(1, shape.channels, 2 * shape.channels);
  Stopwatch watch;
  for (auto _ : state) watch.time(state, [&] { evaluate(&context, y.view(), value * gelu(gate)); });
  watch.report(state, 3 * shape.full(sizeof(T)), shape.threads);
}

/// Backward of `statement(vars…)` alone: the tape's forward is not timed. `arrays` full arrays are read or written.
template <class T, class Statement, class... Tensors>
void backward_of(benchmark::State& state, int arrays, Statement&& statement, Tensors&... tensors) {
  const Shape shape(state);
  Context<Cpu> context(shape.threads);
  const auto cotangent = random_tensor<T, Cpu>(Extents<2>{shape.rows, shape.channels}, 9);
  Tape<Cpu> tape(context);
  Stopwatch watch;
  for (auto _ : state) {
    tape.clear();
    const auto y = statement(variable(tape, tensors)...);
    const auto target = gradient_target(y);
    context.copy_from_host(target.data, cotangent.data(), static_cast<std::size_t>(y.size()) * sizeof(T));
    watch.time(state, [&] { tape.run_back_to(nullptr); });
  }
  watch.report(state, arrays * shape.full(sizeof(T)), shape.threads);
}

template <class T>
void modulate_backward(benchmark::State& state) {
  const Extents<2> extents{state.range(0), state.range(1)};
  auto x = random_tensor<T, Cpu>(extents, 1), scale = random_tensor<T, Cpu>(extents, 2),
       shift = random_tensor<T, Cpu>(extents, 3);
  backward_of<T>(
      state, 7, [](const auto& a, const auto& s, const auto& t) { return Var(silu(a * (1 + s) + t)); }, x, scale,
      shift);
}

template <class T>
void modulate_rows_backward(benchmark::State& state) {
  auto x = random_tensor<T, Cpu>(Extents<2>{state.range(0), state.range(1)}, 1);
  auto scale = random_tensor<T, Cpu>(Extents<1>{state.range(1)}, 2),
       shift = random_tensor<T, Cpu>(Extents<1>{state.range(1)}, 3);
  backward_of<T>(
      state, 3, [](const auto& a, const auto& s, const auto& t) { return Var(silu(a * (1 + s) + t)); }, x, scale,
      shift);
}

template <class T>
void repeated_backward(benchmark::State& state) {
  const Extents<2> extents{state.range(0), state.range(1)};
  auto x = random_tensor<T, Cpu>(extents, 1), s = random_tensor<T, Cpu>(extents, 2);
  backward_of<T>(
      state, 5, [](const auto& a, const auto& b) { return Var(silu(a * (1 + b)) * a + a * a * b); }, x, s);
}

// 256 x 320 floats stay in the second-level cache; 16384 x 640 do not.
#define LPO_BENCH(name)                           \
  BENCHMARK(name)                                 \
      ->ArgNames({"rows", "channels", "threads"}) \
      ->Args({256, 320, 1})                       \
      ->Args({4096, 64, 1})                       \
      ->Args({16384, 640, 1})                     \
      ->Args({16384, 640, 2})                     \
      ->UseManualTime()
LPO_BENCH(copy<float>);
LPO_BENCH(copy<lpo::bfloat16>);
LPO_BENCH(modulate<float>);
LPO_BENCH(modulate<lpo::bfloat16>);
LPO_BENCH(modulate<lpo::half>);
LPO_BENCH(modulate_rows<float>);
LPO_BENCH(gated<float>);
LPO_BENCH(modulate_backward<float>);
LPO_BENCH(modulate_rows_backward<float>);
LPO_BENCH(repeated_backward<float>);
#undef LPO_BENCH

}  // namespace
