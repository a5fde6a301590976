// SPDX-License-Identifier: MIT
// Matrix products in the three forms that a linear layer needs, as a fraction of the FMA peak; Eigen's float product
// beside.
#include <Eigen/Core>
#include <vector>

#include <lpo/backend/cpu/gemm.hpp>

#include "peak.hpp"

namespace {

using lpo::index_t;

enum Form { forward, data_gradient, weight_gradient };  // y = x W^T, dx = dy W, dW = dy^T x

/// Arguments: rows, out, in, form, threads.
template <class T>
void gemm(benchmark::State& state) {
  const index_t rows = state.range(0), out = state.range(1), in = state.range(2);
  const int threads = static_cast<int>(state.range(4));
  lpo::Context<lpo::Cpu> context(threads);
  auto x = bench::filled<T>(rows * in, 0.5f), weight = bench::filled<T>(out * in, 0.25f),
       y = bench::filled<T>(rows * out, 1.0f), bias = bench::filled<T>(out, 1.0f);
  lpo::kernel::GemmParams<T> p;
  switch (state.range(3)) {
    case forward:
      p.m = rows, p.n = out, p.k = in;
      p.a = x.data(), p.lda = in, p.b = weight.data(), p.ldb = in, p.transpose_b = true, p.c = y.data(), p.ldc = out;
      p.bias = bias.data();
      break;
    case data_gradient:
      p.m = rows, p.n = in, p.k = out;
      p.a = y.data(), p.lda = out, p.b = weight.data(), p.ldb = in, p.c = x.data(), p.ldc = in;
      break;
    default:
      p.m = out, p.n = in, p.k = rows;
      p.a = y.data(), p.lda = out, p.transpose_a = true, p.b = x.data(), p.ldb = in, p.c = weight.data(), p.ldc = in;
  }
  lpo::kernel::Gemm<lpo::Cpu>::run(context, p);  // maps the pages that it needs
  for (auto _ : state) {
    lpo::kernel::Gemm<lpo::Cpu>::run(context, p);
    benchmark::ClobberMemory();
  }
  bench::count_operations<T>(state, 2.0 * static_cast<double>(rows * out * in), threads);
}

/// The same forward product by Eigen on one thread: what the register tile has to beat to be worth its lines.
void eigen_forward(benchmark::State& state) {
  using Matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  const index_t rows = state.range(0), out = state.range(1), in = state.range(2);
  Matrix x = Matrix::Constant(rows, in, 0.5f), weight = Matrix::Constant(out, in, 0.25f), y(rows, out);
  const Eigen::RowVectorXf bias = Eigen::RowVectorXf::Ones(out);
  for (auto _ : state) {
    y.noalias() = x * weight.transpose();
    y.rowwise() += bias;
    benchmark::ClobberMemory();
  }
  bench::count_operations(state, 2.0 * static_cast<double>(rows * out * in), 1);
}

void shapes(benchmark::internal::Benchmark* benchmark) {
  const std::vector<std::vector<index_t>> sizes = {
      {2048, 64, 64},  {512, 96, 96},   {512, 128, 128},  {128, 192, 192},  {8, 256, 64},     {64, 256, 256},
      {2048, 256, 64}, {1, 1280, 1280}, {4096, 320, 320}, {1024, 640, 640}, {256, 1280, 1280},
      {4096, 2560, 320}, {1024, 5120, 640}, {77, 320, 768}, {77, 1280, 768}, {64, 1280, 1280}};
  for (const auto& size : sizes)
    for (index_t form : {0, 1, 2})
      for (index_t threads : bench::thread_counts()) benchmark->Args({size[0], size[1], size[2], form, threads});
  benchmark->ArgNames({"rows", "out", "in", "form", "threads"})->UseRealTime();
}

}  // namespace

BENCHMARK_TEMPLATE(gemm, float)->Apply(shapes);
BENCHMARK_TEMPLATE(gemm, lpo::bfloat16)->Apply(shapes);
BENCHMARK_TEMPLATE(gemm, double)->Args({2048, 64, 64, 0, 1})->Args({1024, 640, 640, 0, 1})->UseRealTime();
BENCHMARK(eigen_forward)
    ->ArgsProduct({{2048}, {64}, {64}})
    ->Args({512, 96, 96})
    ->Args({512, 128, 128})
    ->Args({8, 256, 64})
    ->Args({1, 1280, 1280})
    ->Args({4096, 320, 320})
    ->Args({1024, 640, 640})
    ->MinTime(0.05)
    ->UseRealTime();
