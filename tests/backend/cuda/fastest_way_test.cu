// SPDX-License-Identifier: MIT
// The choice between ways to compute a result: by time, by bits, and what it leaves out.
#include <lpo/backend/cuda/context.cuh>
#include <lpo/backend/cuda/fastest_way.cuh>

#include <doctest/doctest.h>

#include <vector>

namespace {

/// to = value (+ to), after `rounds` rounds of work.
__global__ void write_late_kernel(float value, int rounds, bool adds, float* to) {
  volatile unsigned state = threadIdx.x + 1;
  for (int round = 0; round < rounds; ++round) state = state * 1664525u + 1013904223u;
  to[threadIdx.x] = adds ? value + to[threadIdx.x] : value;
}

struct Way {
  float value;
  int rounds;
  bool runs = true;
};

int fastest(const std::vector<Way>& ways, bool same_bits, bool adds = false) {
  lpo::Context<lpo::Cuda> context;
  return lpo::detail::fastest_way(
      context.stream(), 32 * sizeof(float), static_cast<int>(ways.size()), same_bits, [&](int way, void* to) {
        const Way& chosen = ways[static_cast<std::size_t>(way)];
        if (chosen.runs)
          context.launch("write_late_kernel", {1, 32}, write_late_kernel, chosen.value, chosen.rounds, adds,
                         static_cast<float*>(to));
        return chosen.runs;
      });
}

constexpr int slow = 40000, middling = 4000, quick = 10;

}  // namespace

TEST_CASE("the fastest way is chosen, wherever it stands") {
  CHECK(fastest({{1, slow}, {1, quick}, {1, middling}}, true) == 1);
  CHECK(fastest({{1, slow}, {1, middling}, {1, quick}}, true) == 2);
  CHECK(fastest({{1, quick}, {1, slow}, {1, slow}}, true) == 0);
}

TEST_CASE("a way with other bits is chosen only where bits do not matter") {
  CHECK(fastest({{1, slow}, {2, quick}, {1, middling}}, true) == 2);
  CHECK(fastest({{1, slow}, {2, quick}, {1, middling}}, false) == 1);
  CHECK(fastest({{0.0f, slow}, {-0.0f, quick}}, true) == 0);
}

TEST_CASE("a way that adds to its result is compared after one run on zeros") {
  CHECK(fastest({{1, slow}, {1, quick}}, true, true) == 1);
  CHECK(fastest({{1, slow}, {2, quick}}, true, true) == 0);
}

TEST_CASE("a way that cannot run is left out") {
  CHECK(fastest({{1, slow}, {1, quick, false}, {1, middling}}, true) == 2);
  CHECK(fastest({{1, slow}, {1, quick, false}}, false) == 0);
  CHECK(fastest({{1, quick}}, true) == 0);
}
