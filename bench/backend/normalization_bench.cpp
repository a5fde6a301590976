// SPDX-License-Identifier: MIT
// Group norm, layer norm and softmax in GB/s of what must be read and written once, beside a copy of the same size.
#include <lpo/backend/cpu/normalization.hpp>

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstddef>
#include <cstring>

#include <backend/peak.hpp>

namespace {

using lpo::index_t;

/// In memory aligned as that of tensors is: glibc's memcpy drops to a sixth of its rate on Zen 3 where the distance of
/// source and target is 16 bytes more than a multiple of 4 KiB.
lpo::Tensor<float, 1> ramp(index_t count) {
  auto values = lpo::Tensor<float, 1>::zeros({count});
  for (index_t i = 0; i < count; ++i) values.data()[i] = static_cast<float>(i % 1009) / 504.5f - 1.0f;
  return values;
}

/// `passes` tensors of `count` floats.
void report(benchmark::State& state, index_t count, int passes) {
  state.counters["GB/s"] =
      benchmark::Counter(1e-9 * static_cast<double>(count * 4 * passes), benchmark::Counter::kIsIterationInvariantRate);
}

/// The ceiling of the rows below: memcpy in chunks over the threads.
void copy(benchmark::State& state) {
  lpo::Context<lpo::Cpu> ctx(static_cast<int>(state.range(4)));
  const index_t count = state.range(0) * state.range(1) * state.range(2);
  const auto x = ramp(count);
  auto y = ramp(count);
  for (auto _ : state)
    ctx.executor().parallel_for(count, 32768, [&](index_t begin, index_t end) {
      std::memcpy(y.data() + begin, x.data() + begin, static_cast<std::size_t>(end - begin) * sizeof(float));
    });
  report(state, count, 2);
}

struct Norm {
  lpo::kernel::GroupNormShape shape;
  index_t count;
  lpo::Tensor<float, 1> x, y, dx, weight, bias, dweight, dbias, mean, inverse;

  explicit Norm(const benchmark::State& state)
      : shape{state.range(0), state.range(1), state.range(2), std::max<index_t>(1, state.range(3)), 1e-5f, true},
        count(shape.n * shape.spatial * shape.c),
        x(ramp(count)),
        y(ramp(count)),
        dx(ramp(count)),
        weight(ramp(shape.c)),
        bias(ramp(shape.c)),
        dweight(ramp(shape.c)),
        dbias(ramp(shape.c)),
        mean(ramp(shape.n * std::max(shape.groups, shape.spatial))),
        inverse(ramp(mean.size())) {}
};

void group_norm_silu_forward(benchmark::State& state) {
  Norm p(state);
  lpo::Context<lpo::Cpu> ctx(static_cast<int>(state.range(4)));
  for (auto _ : state)
    lpo::kernel::GroupNorm<lpo::Cpu>::forward(ctx, p.shape, p.x.data(), p.weight.data(), p.bias.data(), p.y.data(),
                                              p.mean.data(), p.inverse.data());
  report(state, p.count, 2);
}

void group_norm_silu_backward(benchmark::State& state) {
  Norm p(state);
  lpo::Context<lpo::Cpu> ctx(static_cast<int>(state.range(4)));
  using Kernel = lpo::kernel::GroupNorm<lpo::Cpu>;
  Kernel::forward(ctx, p.shape, p.x.data(), p.weight.data(), p.bias.data(), p.y.data(), p.mean.data(),
                  p.inverse.data());
  for (auto _ : state)
    Kernel::backward(ctx, p.shape, p.x.data(), p.weight.data(), p.bias.data(), p.mean.data(), p.inverse.data(),
                     p.y.data(), p.dx.data(), false, p.dweight.data(), false, p.dbias.data(), false);
  report(state, p.count, 3);
}

void layer_norm_forward(benchmark::State& state) {
  Norm p(state);
  lpo::Context<lpo::Cpu> ctx(static_cast<int>(state.range(4)));
  for (auto _ : state)
    lpo::kernel::LayerNorm<lpo::Cpu>::forward(ctx, p.shape.n * p.shape.spatial, p.shape.c, 1e-5f, p.x.data(),
                                              p.weight.data(), p.bias.data(), p.y.data(), p.mean.data(),
                                              p.inverse.data());
  report(state, p.count, 2);
}

void layer_norm_backward(benchmark::State& state) {
  Norm p(state);
  lpo::Context<lpo::Cpu> ctx(static_cast<int>(state.range(4)));
  using Kernel = lpo::kernel::LayerNorm<lpo::Cpu>;
  const index_t rows = p.shape.n * p.shape.spatial;
  Kernel::forward(ctx, rows, p.shape.c, 1e-5f, p.x.data(), p.weight.data(), p.bias.data(), p.y.data(), p.mean.data(),
                  p.inverse.data());
  for (auto _ : state)
    Kernel::backward(ctx, rows, p.shape.c, p.x.data(), p.weight.data(), p.mean.data(), p.inverse.data(), p.y.data(),
                     p.dx.data(), false, p.dweight.data(), false, p.dbias.data(), false);
  report(state, p.count, 3);
}

void softmax_forward(benchmark::State& state) {
  Norm p(state);
  lpo::Context<lpo::Cpu> ctx(static_cast<int>(state.range(4)));
  for (auto _ : state)
    lpo::kernel::Softmax<lpo::Cpu>::forward(ctx, p.shape.n * p.shape.spatial, p.shape.c, p.x.data(), p.y.data());
  report(state, p.count, 2);
}

/// SD1.5's largest map, a deep one, and the tiny models' maps; each with one, two and all threads.
void shapes(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"n", "spatial", "c", "groups", "threads"});
  for (const index_t threads : bench::thread_counts()) {
    bench->Args({2, 4096, 320, 32, threads});
    bench->Args({2, 256, 1280, 32, threads});
    bench->Args({64, 256, 32, 8, threads});
    bench->Args({64, 64, 64, 8, threads});
    bench->Args({64, 16, 96, 32, threads});
  }
  bench->UseRealTime()->Unit(benchmark::kMicrosecond);
}

}  // namespace

BENCHMARK(copy)->Apply(shapes);
BENCHMARK(group_norm_silu_forward)->Apply(shapes);
BENCHMARK(group_norm_silu_backward)->Apply(shapes);
BENCHMARK(layer_norm_forward)->Apply(shapes);
BENCHMARK(layer_norm_backward)->Apply(shapes);
BENCHMARK(softmax_forward)->Apply(shapes);
