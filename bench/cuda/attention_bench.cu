// SPDX-License-Identifier: MIT
// Attention of Stable Diffusion's shapes on the device, in TFLOP/s beside a large product; bench/peers/attention_torch.py
// times the same shapes.
#include <array>
#include <cmath>

#include <lpo/backend/cuda/attention.cuh>

#include <cuda/device_time.cuh>

namespace {

using bench::Cuda;
using bench::index_t;

template <class T>
struct Attention {
  lpo::kernel::AttentionShape shape;
  index_t q_size, k_size;
  bench::Random<T> q, k, v, out, dout, dq, dk, dv;
  bench::Random<float> log_sum_exp;

  explicit Attention(const benchmark::State& state)
      : shape{state.range(0),
              state.range(2),
              state.range(3),
              state.range(1),
              state.range(4),
              static_cast<float>(1.0 / std::sqrt(static_cast<double>(state.range(4)))),
              false,
              state.range(1) * state.range(4),
              state.range(1) * state.range(4),
              state.range(1) * state.range(4),
              state.range(1) * state.range(4)},
        q_size(shape.batch * shape.queries * shape.q_row),
        k_size(shape.batch * shape.keys * shape.k_row),
        q(q_size, 1),
        k(k_size, 2),
        v(k_size, 3),
        out(q_size, 4),
        dout(q_size, 5),
        dq(q_size, 6),
        dk(k_size, 7),
        dv(k_size, 8),
        log_sum_exp(shape.batch * shape.heads * shape.queries, 9) {
    forward();
  }
  void forward() {
    lpo::kernel::Attention<Cuda>::forward(bench::device(), shape, q.data(), k.data(), v.data(), out.data(),
                                          log_sum_exp.data());
  }
  void backward() {
    lpo::kernel::Attention<Cuda>::backward(bench::device(), shape, q.data(), k.data(), v.data(), out.data(),
                                           log_sum_exp.data(), dout.data(), dq.data(), false, dk.data(), false,
                                           dv.data(), false);
  }
  /// Of one product of queries and keys.
  double operations() const {
    return 2.0 * static_cast<double>(shape.batch * shape.heads * shape.queries * shape.keys * shape.width);
  }
};

/// Two products.
template <class T>
void attention_forward(benchmark::State& state) {
  Attention<T> p(state);
  bench::time_on_device(state, [&] { p.forward(); });
  bench::count_operations<T>(state, 2 * p.operations());
}

/// Five products; that the probabilities are computed again, once per side, is not counted.
template <class T>
void attention_backward(benchmark::State& state) {
  Attention<T> p(state);
  bench::time_on_device(state, [&] { p.backward(); });
  bench::count_operations<T>(state, 5 * p.operations());
}

/// Stable Diffusion 1.5 (self, to 77 words), then SDXL.
void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"n", "heads", "queries", "keys", "width"})->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const int n : {2, 20})
    for (const auto& s : {std::array{4096, 40}, std::array{1024, 80}, std::array{256, 160}, std::array{64, 160}}) {
      b->Args({n, 8, s[0], s[0], s[1]});
      b->Args({n, 8, s[0], 77, s[1]});
    }
  for (const int n : {2, 8})
    for (const auto& s : {std::array{10, 4096}, std::array{20, 1024}}) {
      b->Args({n, s[0], s[1], s[1], 64});
      b->Args({n, s[0], s[1], 77, 64});
    }
}

BENCHMARK_TEMPLATE(attention_forward, lpo::bfloat16)->Apply(shapes);
BENCHMARK_TEMPLATE(attention_forward, lpo::half)->Apply(shapes);
BENCHMARK_TEMPLATE(attention_backward, lpo::bfloat16)->Apply(shapes);
BENCHMARK_TEMPLATE(attention_backward, lpo::half)->Apply(shapes);

}  // namespace
