// SPDX-License-Identifier: MIT
// CudaGraph: replays compute what the captured work computes, on the values of the moment; what cannot be captured is refused.
#include <doctest/doctest.h>

#include <vector>

#include <lpo/autograd/checkpoint.hpp>
#include <lpo/backend/cuda/elementwise.cuh>
#include <lpo/backend/cuda/gemm.cuh>
#include <lpo/backend/cuda/graph.cuh>

using lpo::Cuda;
using lpo::Extents;

namespace {

std::vector<float> on_host(const lpo::Tensor<float, 1, Cuda>& tensor) {
  const auto host = lpo::to_device<lpo::Cpu>(tensor);
  return {host.data(), host.data() + host.size()};
}

}  // namespace

TEST_CASE("a replay reads the device's values of the moment and the host's of the capture") {
  lpo::Context<Cuda> context;
  auto x = lpo::Tensor<float, 1, Cuda>::from(Extents<1>{3}, std::vector<float>{1, 2, 3});
  auto y = lpo::Tensor<float, 1, Cuda>::zeros(Extents<1>{3});
  auto offset = lpo::Tensor<float, 1, Cuda>::zeros(Extents<1>{1});
  float number = 10;
  lpo::CudaGraph graph(context, [&] {
    context.copy_from_host(offset.data(), &number, sizeof(number));
    lpo::evaluate(&context, y.view(), x.view() * 2.0 + bcast_last(offset.view()));
  });
  number = 99;  // frozen at 10
  graph.replay();
  CHECK(on_host(y) == std::vector<float>{12, 14, 16});
  const std::vector<float> other = {4, 5, 6};
  context.copy_from_host(x.data(), other.data(), 3 * sizeof(float));
  graph.replay();
  CHECK(on_host(y) == std::vector<float>{18, 20, 22});
}

TEST_CASE("a training step on a tape is captured: forward, backward, products") {
  lpo::Context<Cuda> context;
  lpo::Tape<Cuda> tape(context);
  auto x = lpo::Tensor<float, 1, Cuda>::from(Extents<1>{4}, std::vector<float>{1, -2, 3, 0.5f});
  auto slope = lpo::Tensor<float, 1, Cuda>::zeros(Extents<1>{4});
  const auto ones = lpo::Tensor<float, 1, Cuda>::full(Extents<1>{4}, 1);
  const auto step = [&] {
    const auto in = lpo::variable(tape, x);
    const lpo::Var y = in * in * 3.0 + in;
    lpo::backward(y, ones.view());
    context.copy(slope.data(), in.slot()->gradient, 4 * sizeof(float));
    tape.clear();
  };
  lpo::CudaGraph graph(context, step);
  context.fill_zero(slope.data(), 4 * sizeof(float));
  graph.replay();
  CHECK(on_host(slope) == std::vector<float>{7, -11, 19, 4});  // 6 x + 1
}

TEST_CASE("sums over all blocks of a statement's gradient are replayed, several times in a row") {
  lpo::Context<Cuda> context;
  lpo::Tape<Cuda> tape(context);
  const lpo::index_t rows = 20000;
  auto x = lpo::Tensor<float, 2, Cuda>::full(Extents<2>{rows, 8}, 3);
  auto scale = lpo::Tensor<float, 1, Cuda>::full(Extents<1>{8}, 2);
  auto sums = lpo::Tensor<float, 1, Cuda>::zeros(Extents<1>{8});
  const auto ones = lpo::Tensor<float, 2, Cuda>::full(Extents<2>{rows, 8}, 1);
  lpo::CudaGraph graph(context, [&] {
    const auto s = lpo::variable(tape, scale);
    const lpo::Var y = lpo::variable(tape, x) * s;
    lpo::backward(y, ones.view());
    context.copy(sums.data(), s.slot()->gradient, 8 * sizeof(float));
    tape.clear();
  });
  for (int i = 0; i < 3; ++i) {
    context.fill_zero(sums.data(), 8 * sizeof(float));
    graph.replay();
    graph.replay();
    CHECK(on_host(sums) == std::vector<float>(8, 3.0f * static_cast<float>(rows)));
  }
}

TEST_CASE("blocks of an inference that give their memory back are captured") {
  lpo::Context<Cuda> context;
  lpo::Tape<Cuda> tape(context);
  auto x = lpo::Tensor<float, 1, Cuda>::from(Extents<1>{3}, std::vector<float>{1, 2, 3});
  auto y = lpo::Tensor<float, 1, Cuda>::zeros(Extents<1>{3});
  lpo::CudaGraph graph(context, [&] {
    const auto guard = tape.inference();
    const auto out = scoped(tape, [&] {
      const lpo::Var twice = lpo::constant(tape, x) * 2.0;
      const auto inner = scoped(tape, [&] { return lpo::Var(twice + 1.0); });
      return lpo::Var(inner * inner);
    });
    context.copy(y.data(), out.data(), 3 * sizeof(float));
    tape.clear();
  });
  context.fill_zero(y.data(), 3 * sizeof(float));
  graph.replay();
  CHECK(on_host(y) == std::vector<float>{9, 25, 49});
}

TEST_CASE("rounds of the same work: run, captured, then replayed, on the values of the moment") {
  lpo::Context<Cuda> context;
  auto x = lpo::Tensor<float, 1, Cuda>::zeros(Extents<1>{2});
  auto y = lpo::Tensor<float, 1, Cuda>::zeros(Extents<1>{2});
  lpo::RepeatedWork<Cuda> work(2);
  int calls = 0;
  const auto round = [&](float value) {
    const std::vector<float> values = {value, value + 1};
    context.copy_from_host(x.data(), values.data(), 2 * sizeof(float));
    const auto start = context.activations().mark();
    float* middle = nullptr;
    work.begin(context);
    work.run(context, [&] {
      ++calls;
      middle = reinterpret_cast<float*>(context.activations().allocate(2 * sizeof(float)));
      lpo::evaluate(&context, lpo::View<float, 1, Cuda>(middle, Extents<1>{2}), x.view() * 2.0);
    });
    // What lies between the parts may allocate: the first part's results are not overwritten.
    const std::vector<float> noise = {-1, -1};
    context.copy_from_host(context.activations().allocate(2 * sizeof(float)), noise.data(), 2 * sizeof(float));
    work.run(context, [&] {
      ++calls;
      lpo::evaluate(&context, y.view(), lpo::View<const float, 1, Cuda>(middle, Extents<1>{2}) + 1.0);
    });
    context.activations().rewind(start);
    return on_host(y);
  };
  for (int i = 0; i < 5; ++i) {
    const float value = static_cast<float>(i);
    CHECK(round(value) == std::vector<float>{2 * value + 1, 2 * value + 3});
    CHECK(calls == (i < 2 ? 2 * (i + 1) : 4));
    CHECK(work.replays() == (i >= 2));
  }
  CHECK(context.graph_launches() == 8);  // two parts of all rounds but the first
  const std::size_t reserved = context.reserved_bytes();
  for (int i = 0; i < 3; ++i) round(1);
  CHECK(context.reserved_bytes() == reserved);

  // Elsewhere in the arena the captured addresses may be taken: the round runs, and is captured anew.
  context.activations().allocate(1024);
  CHECK(round(3) == std::vector<float>{7, 9});
  CHECK(calls == 6);
  CHECK(round(4) == std::vector<float>{9, 11});
  CHECK(round(5) == std::vector<float>{11, 13});
  CHECK(calls == 8);
  work.reset();
  round(6);
  CHECK(calls == 10);

  lpo::Context<Cuda> plain(lpo::CudaOptions{.graphs = false});
  lpo::RepeatedWork<Cuda> each_time;
  int times = 0;
  for (int i = 0; i < 4; ++i) {
    each_time.begin(plain);
    each_time.run(plain, [&] { ++times; });
  }
  CHECK(times == 4);
}

TEST_CASE("work that reads from the device cannot be captured, and the context works on") {
  lpo::Context<Cuda> context;
  auto x = lpo::Tensor<float, 1, Cuda>::full(Extents<1>{1}, 2);
  float number = 0;
  CHECK_THROWS_WITH_AS(lpo::CudaGraph(context, [&] { context.copy_to_host(&number, x.data(), sizeof(float)); }),
                       "[CudaGraph] the captured work reads numbers from the device; keep losses and metrics out of it",
                       lpo::ValueError);
  context.copy_to_host(&number, x.data(), sizeof(float));
  CHECK(number == 2.0f);
  lpo::Context<Cuda> timing(lpo::CudaOptions{.time_kernels = true});
  CHECK_THROWS_AS(lpo::CudaGraph(timing, [] {}), lpo::ValueError);
}
