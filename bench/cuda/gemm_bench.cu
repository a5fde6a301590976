// SPDX-License-Identifier: MIT
// Products of Stable Diffusion 1.5's transformers on the device, with bias and with a residual, and GEGLU's product with its
// gate, in TFLOP/s beside a large product.
#include <array>

#include <lpo/backend/cuda/gated_product.cuh>

#include <cuda/device_time.cuh>

namespace {

using bench::Cuda;
using bench::index_t;

/// y [rows, out] = x [rows, in] w [out, in]^T with a bias, and with a residual where the last argument says so.
template <class T>
void product(benchmark::State& state) {
  const index_t rows = state.range(0), out = state.range(1), in = state.range(2);
  bench::Random<T> x(rows * in, 1), w(out * in, 2, 0.02f), bias(out, 3), y(rows * out, 4), residual(rows * out, 5);
  lpo::kernel::GemmParams<T> p;
  p.m = rows, p.n = out, p.k = in;
  p.a = x.data(), p.lda = in;
  p.b = w.data(), p.ldb = in, p.transpose_b = true;
  p.c = y.data(), p.ldc = out;
  p.bias = bias.data();
  p.start = residual.data();
  p.beta = state.range(3) != 0 ? 1.0f : 0.0f;
  bench::time_on_device(state, [&] { lpo::kernel::Gemm<Cuda>::run(bench::device(), p); });
  bench::count_operations<T>(state, 2.0 * static_cast<double>(rows) * static_cast<double>(out * in));
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "out", "in", "residual"})->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const int n : {2, 20})
    for (const auto& s : {std::array{4096, 320}, std::array{1024, 640}, std::array{256, 1280}, std::array{64, 1280}}) {
      const int rows = n * s[0], width = s[1];
      b->Args({rows, width, width, 0})->Args({rows, width, width, 1})->Args({rows, 3 * width, width, 0})->Args({rows, width, 4 * width, 1});
    }
}

/// out [rows, hidden] = value * gelu(gate), (value, gate) = x [rows, in] w [2 hidden, in]^T + bias.
template <class T>
void gated_product(benchmark::State& state) {
  const index_t rows = state.range(0), in = state.range(1), hidden = 4 * in;
  bench::Random<T> x(rows * in, 1), w(2 * hidden * in, 2, 0.02f), bias(2 * hidden, 3), out(rows * hidden, 4);
  lpo::kernel::GatedProductParams<T> p;
  p.rows = rows, p.in = in, p.hidden = hidden;
  p.x = x.data(), p.x_row = in;
  p.weight = w.data(), p.bias = bias.data(), p.out = out.data();
  if (!lpo::kernel::GatedProduct<Cuda>::can_run(bench::device(), p)) return state.SkipWithError("no kernel for this device");
  bench::time_on_device(state, [&] { lpo::kernel::GatedProduct<Cuda>::run(bench::device(), p); });
  bench::count_operations<T>(state, 4.0 * static_cast<double>(rows) * static_cast<double>(hidden * in));
}

void gated_shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"rows", "in"})->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const int n : {2, 20})
    for (const auto& s : {std::array{4096, 320}, std::array{1024, 640}, std::array{256, 1280}, std::array{64, 1280}}) b->Args({n * s[0], s[1]});
}

BENCHMARK_TEMPLATE(product, lpo::bfloat16)->Apply(shapes);
BENCHMARK_TEMPLATE(gated_product, lpo::bfloat16)->Apply(gated_shapes);

}  // namespace
