// SPDX-License-Identifier: MIT
// Attention forward and backward in GFLOP/s, beside the fused multiply-add peak measured in the same run.
#include <lpo/backend/cpu/attention.hpp>

#include <benchmark/benchmark.h>

#include <cmath>
#include <cstddef>
#include <vector>

#include <backend/peak.hpp>

namespace {

using lpo::index_t;

template <class T>
std::vector<T> ramp(index_t count, int period) {
  std::vector<T> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i)
    values[i] = T(static_cast<float>(static_cast<int>(i % static_cast<std::size_t>(period)) - period / 2) /
                  static_cast<float>(period));
  return values;
}

template <class T>
struct Problem {
  lpo::kernel::AttentionShape shape;
  std::vector<T> q, k, v, out, dout, dq, dk, dv;
  std::vector<float> level;

  explicit Problem(const benchmark::State& state) {
    const index_t batch = state.range(0), queries = state.range(1), keys = state.range(2), heads = state.range(3);
    const index_t width = state.range(4), row = heads * width;
    shape = {batch, queries, keys, heads, width, 1.0f / std::sqrt(static_cast<float>(width)),
             false, row,     row,  row,   row};
    q = ramp<T>(batch * queries * row, 101);
    k = ramp<T>(batch * keys * row, 97);
    v = ramp<T>(batch * keys * row, 89);
    dout = ramp<T>(batch * queries * row, 83);
    out = dq = q;
    dk = dv = k;
    level.resize(static_cast<std::size_t>(batch * heads * queries));
  }
  double products() const {
    return 2.0 * static_cast<double>(shape.batch * shape.heads * shape.queries * shape.keys * shape.width);
  }
};

/// Two products per query and key.
template <class T>
void attention_forward(benchmark::State& state) {
  Problem<T> p(state);
  lpo::Context<lpo::Cpu> ctx(static_cast<int>(state.range(5)));
  const auto run = [&] {
    lpo::kernel::Attention<lpo::Cpu>::forward(ctx, p.shape, p.q.data(), p.k.data(), p.v.data(), p.out.data(),
                                              p.level.data());
  };
  run();  // maps the pages that it needs
  for (auto _ : state) run();
  bench::count_operations<T>(state, 2.0 * p.products(), static_cast<int>(state.range(5)));
}

/// Counted as the five products of a backward that recomputes the scores once.
template <class T>
void attention_backward(benchmark::State& state) {
  Problem<T> p(state);
  lpo::Context<lpo::Cpu> ctx(static_cast<int>(state.range(5)));
  using Kernel = lpo::kernel::Attention<lpo::Cpu>;
  Kernel::forward(ctx, p.shape, p.q.data(), p.k.data(), p.v.data(), p.out.data(), p.level.data());
  const auto run = [&] {
    Kernel::backward(ctx, p.shape, p.q.data(), p.k.data(), p.v.data(), p.out.data(), p.level.data(), p.dout.data(),
                     p.dq.data(), false, p.dk.data(), false, p.dv.data(), false);
  };
  run();  // maps the pages that it needs
  for (auto _ : state) run();
  bench::count_operations<T>(state, 5.0 * p.products(), static_cast<int>(state.range(5)));
}

/// SD1.5 self attention at its three sizes and text attention; the tiny models; each with one, two and all threads.
void shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"batch", "queries", "keys", "heads", "width", "threads"});
  for (const index_t threads : bench::thread_counts()) {
    bench->Args({1, 4096, 4096, 8, 40, threads});
    bench->Args({2, 1024, 1024, 8, 80, threads});
    bench->Args({2, 256, 256, 8, 160, threads});
    bench->Args({2, 4096, 77, 8, 40, threads});
    bench->Args({2, 1024, 77, 8, 80, threads});
    bench->Args({64, 64, 64, 2, 32, threads});
    bench->Args({64, 64, 32, 2, 32, threads});
    bench->Args({64, 16, 16, 4, 32, threads});
    bench->Args({64, 16, 32, 4, 16, threads});
    bench->Args({64, 4, 16, 4, 32, threads});
  }
  bench->UseRealTime()->Unit(benchmark::kMicrosecond);
}

}  // namespace

BENCHMARK(attention_forward<float>)->Apply(shapes);
BENCHMARK(attention_backward<float>)->Apply(shapes);
BENCHMARK(attention_forward<lpo::bfloat16>)->Apply(shapes);
BENCHMARK(attention_backward<lpo::bfloat16>)->Apply(shapes);
