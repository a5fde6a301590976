// SPDX-License-Identifier: MIT
// The choice between ways to compute a result: by time, by bits, and what it leaves out.
#include <lpo/backend/cuda/context.cuh>
#include <lpo/backend/cuda/fastest_way.cuh>

#include <doctest/doctest.h>

#include <limits>
#include <vector>

namespace {

/// to = value (+ to), after `rounds` multiplications by `one`, which is 1: no compiler may leave them out.
__global__ void write_late_kernel(float value, int rounds, float one, bool adds, float* to) {
  for (int round = 0; round < rounds; ++round) value *= one;
  to[threadIdx.x] = adds ? value + to[threadIdx.x] : value;
}

struct Way {
  float value;
  int rounds;
  bool runs = true;
  bool forgets = false;  ///< to add to its result
};

int fastest(const std::vector<Way>& ways, const lpo::detail::Likeness& likeness, bool adds = false) {
  lpo::Context<lpo::Cuda> context;
  return lpo::detail::fastest_way(
      context.stream(), 32 * sizeof(float), static_cast<int>(ways.size()), likeness, [&](int way, void* to) {
        const Way& chosen = ways[static_cast<std::size_t>(way)];
        if (chosen.runs)
          context.launch("write_late_kernel", {1, 32}, write_late_kernel, chosen.value, chosen.rounds, 1.0f,
                         adds && !chosen.forgets, static_cast<float*>(to));
        return chosen.runs;
      });
}

const lpo::detail::Likeness same_bits = lpo::detail::same_bits();
const lpo::detail::Likeness near = lpo::detail::close_numbers<float>(0.5f);

constexpr int slow = 40000, middling = 4000, quick = 10;

}  // namespace

TEST_CASE("the fastest way is chosen, wherever it stands") {
  CHECK(fastest({{1, slow}, {1, quick}, {1, middling}}, same_bits) == 1);
  CHECK(fastest({{1, slow}, {1, middling}, {1, quick}}, same_bits) == 2);
  CHECK(fastest({{1, quick}, {1, slow}, {1, slow}}, same_bits) == 0);
}

TEST_CASE("a way with other bits is chosen only where close numbers do") {
  CHECK(fastest({{1, slow}, {1.25f, quick}, {1, middling}}, same_bits) == 2);
  CHECK(fastest({{1, slow}, {1.25f, quick}, {1, middling}}, near) == 1);
  CHECK(fastest({{0.0f, slow}, {-0.0f, quick}}, same_bits) == 0);
  CHECK(fastest({{0.0f, slow}, {-0.0f, quick}}, near) == 1);
}

TEST_CASE("a way with wrong numbers is never chosen") {
  CHECK(fastest({{1, slow}, {1.75f, quick}, {1, middling}}, near) == 2);
  CHECK(fastest({{1, slow}, {std::numeric_limits<float>::quiet_NaN(), quick}}, near) == 0);
}

TEST_CASE("a way that adds to its result is compared after two runs on zeros") {
  CHECK(fastest({{1, slow}, {1, quick}}, same_bits, true) == 1);
  CHECK(fastest({{1, slow}, {2, quick}}, same_bits, true) == 0);
  CHECK(fastest({{1, slow}, {1, quick, true, true}}, same_bits, true) == 0);
  CHECK(fastest({{1, slow}, {1, quick, true, true}}, near, true) == 0);
}

TEST_CASE("a way that cannot run is left out") {
  CHECK(fastest({{1, slow}, {1, quick, false}, {1, middling}}, same_bits) == 2);
  CHECK(fastest({{1, slow}, {1, quick, false}}, near) == 0);
  CHECK(fastest({{1, quick}}, same_bits) == 0);
}
