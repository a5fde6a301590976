// SPDX-License-Identifier: MIT
// Fused statements and their gradients on the device, in GB/s beside a copy: silu(x * (1 + scale) + shift).
#include <array>

#include <lpo/autograd/var.hpp>
#include <lpo/backend/cuda/elementwise.cuh>

#include <cuda/device_time.cuh>

namespace {

using bench::Cuda;
using bench::index_t;
using lpo::Extents;

/// x [n, h, w, c] with scale and shift per channel ([c]) or per image and channel ([n, 1, 1, c]).
template <class T>
struct Statement {
  index_t n, size, c;
  bool per_image;
  bench::Random<T> x, scale, shift, y;
  lpo::View<const T, 4, Cuda> x_view, scale_view, shift_view;

  explicit Statement(const benchmark::State& state)
      : n(state.range(0)), size(state.range(1)), c(state.range(2)), per_image(state.range(3) != 0), x(n * size * size * c, 1),
        scale(n * c, 2), shift(n * c, 3), y(n * size * size * c, 4), x_view(x.data(), Extents<4>{n, size, size, c}),
        scale_view(scale.data(), Extents<4>{per_image ? n : 1, 1, 1, c}), shift_view(shift.data(), scale_view.extents) {}

  double bytes_of_x() const { return static_cast<double>(n * size * size * c) * sizeof(T); }
  auto expression() const { return silu(x_view * (1 + scale_view) + shift_view); }
};

template <class T>
void statement_forward(benchmark::State& state) {
  Statement<T> s(state);
  const lpo::View<T, 4, Cuda> out(s.y.data(), s.x_view.extents);
  bench::time_on_device(state, [&] { lpo::evaluate(&bench::device(), out, s.expression()); });
  bench::count_bytes(state, 2 * s.bytes_of_x());
}

/// Reads x and the output's gradient, writes x's gradient and two sums.
template <class T>
void statement_backward(benchmark::State& state) {
  Statement<T> s(state);
  bench::Random<T> dy(s.n * s.size * s.size * s.c, 5), dscale(s.n * s.c), dshift(s.n * s.c);
  auto e = s.expression();
  using Tree = typename decltype(e)::tree_type;
  const lpo::View<T, 4, Cuda> out(s.y.data(), s.x_view.extents);
  const auto space = lpo::detail::iteration_space(out, e);
  const void* data[] = {s.x.data(), s.scale.data(), s.shift.data()};
  void* gradients[] = {s.y.data(), dscale.data(), dshift.data()};
  const bool accumulate[3] = {};
  static_assert(Tree::leaves == 3);
  bench::time_on_device(state, [&] {
    lpo::Evaluator<Cuda>::backward(&bench::device(), space, e.tree, static_cast<const T*>(dy.data()), data, gradients, accumulate);
  });
  bench::count_bytes(state, 3 * s.bytes_of_x());
}

void shapes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"n", "hw", "c", "per_image"})->UseManualTime()->Unit(benchmark::kMicrosecond);
  for (const int per_image : {0, 1})
    for (const auto& s : {std::array{2, 64, 320}, std::array{20, 64, 320}, std::array{20, 16, 1280}, std::array{8, 128, 320}})
      b->Args({s[0], s[1], s[2], per_image});
}

BENCHMARK_TEMPLATE(statement_forward, lpo::bfloat16)->Apply(shapes);
BENCHMARK_TEMPLATE(statement_backward, lpo::bfloat16)->Apply(shapes);
BENCHMARK_TEMPLATE(statement_forward, float)->Apply(shapes);
BENCHMARK_TEMPLATE(statement_backward, float)->Apply(shapes);

}  // namespace
