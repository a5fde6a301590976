// SPDX-License-Identifier: MIT
// Group norm with SiLU and layer norm on the device, in GB/s beside a copy.
#include <array>

#include <lpo/backend/cuda/normalization.cuh>

#include <cuda/device_time.cuh>

namespace {

using bench::Cuda;
using bench::index_t;

template <class T>
struct Norm {
  lpo::kernel::GroupNormShape shape;
  index_t size;
  bench::Random<T> x, dy, y, weight, bias, dweight, dbias;
  bench::Random<lpo::compute_t<T>> mean, inverse;

  explicit Norm(const benchmark::State& state)
      : shape{state.range(0), state.range(1) * state.range(1), state.range(2), 32, 1e-5f, true},
        size(shape.n * shape.spatial * shape.c), x(size, 1), dy(size, 2), y(size, 3), weight(shape.c, 4), bias(shape.c, 5),
        dweight(shape.c, 6), dbias(shape.c, 7), mean(shape.n * shape.spatial, 8), inverse(shape.n * shape.spatial, 9) {
    forward();
  }
  void forward() {
    lpo::kernel::GroupNorm<Cuda>::forward(bench::device(), shape, x.data(), weight.data(), bias.data(), y.data(), mean.data(),
                                          inverse.data());
  }
  double bytes() const { return static_cast<double>(size) * sizeof(T); }
};

/// Counted as one read and one write of x.
template <class T>
void group_norm_silu_forward(benchmark::State& state) {
  Norm<T> p(state);
  bench::time_on_device(state, [&] { p.forward(); });
  bench::count_bytes(state, 2 * p.bytes());
}

/// Counted as one read of x and dy and one write of dx.
template <class T>
void group_norm_silu_backward(benchmark::State& state) {
  Norm<T> p(state);
  bench::time_on_device(state, [&] {
    lpo::kernel::GroupNorm<Cuda>::backward(bench::device(), p.shape, p.x.data(), p.weight.data(), p.bias.data(), p.mean.data(),
                                           p.inverse.data(), p.dy.data(), p.y.data(), false, p.dweight.data(), false,
                                           p.dbias.data(), false);
  });
  bench::count_bytes(state, 3 * p.bytes());
}

template <class T>
void layer_norm_forward(benchmark::State& state) {
  Norm<T> p(state);
  bench::time_on_device(state, [&] {
    lpo::kernel::LayerNorm<Cuda>::forward(bench::device(), p.shape.n * p.shape.spatial, p.shape.c, 1e-5f, p.x.data(),
                                          p.weight.data(), p.bias.data(), p.y.data(), p.mean.data(), p.inverse.data());
  });
  bench::count_bytes(state, 2 * p.bytes());
}

template <class T>
void layer_norm_backward(benchmark::State& state) {
  Norm<T> p(state);
  bench::time_on_device(state, [&] {
    lpo::kernel::LayerNorm<Cuda>::backward(bench::device(), p.shape.n * p.shape.spatial, p.shape.c, p.x.data(), p.weight.data(),
                                           p.mean.data(), p.inverse.data(), p.dy.data(), p.y.data(), false, p.dweight.data(),
                                           false, p.dbias.data(), false);
  });
  bench::count_bytes(state, 3 * p.bytes());
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"n", "hw", "c"})->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const auto& s : {std::array{2, 64, 320}, std::array{20, 64, 320}, std::array{20, 32, 640}, std::array{20, 16, 1280},
                        std::array{8, 128, 320}})
    b->Args({s[0], s[1], s[2]});
}

BENCHMARK_TEMPLATE(group_norm_silu_forward, lpo::bfloat16)->Apply(shapes);
BENCHMARK_TEMPLATE(group_norm_silu_backward, lpo::bfloat16)->Apply(shapes);
BENCHMARK_TEMPLATE(layer_norm_forward, lpo::bfloat16)->Apply(shapes);
BENCHMARK_TEMPLATE(layer_norm_backward, lpo::bfloat16)->Apply(shapes);

}  // namespace
