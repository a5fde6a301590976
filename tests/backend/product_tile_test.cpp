// SPDX-License-Identifier: MIT
// The register tile of every instruction set that this machine runs, against plain sums in double.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include <lpo/backend/cpu/bfloat16_product.hpp>
#include <lpo/backend/cpu/product_run.hpp>

#include <backend/plain_pairs.hpp>

namespace {

using lpo::index_t;
namespace detail = lpo::detail;
using lpo_test::open_states;
using lpo_test::plain_pairs;

struct Size {
  index_t m, n, k;
};

/// Multiples of 1/16 below 1: short sums of their products are exact in float.
template <class S>
std::vector<S> sixteenths(index_t count, std::uint32_t seed) {
  std::vector<S> values(static_cast<std::size_t>(count));
  for (auto& value : values) {
    seed = seed * 1664525u + 1013904223u;
    value = static_cast<S>(static_cast<int>(seed >> 27) - 16) / S(16);
  }
  return values;
}

/// A's lines in runs of `run`, which have a gap of 3 elements behind each, or A stored along m if `run` is 0; B along k
/// or along n.
template <class S>
void compare(const detail::TileKernel<S>& kernel, const Size& size, index_t run, int threads, bool columns_of_b) {
  const index_t m = size.m, n = size.n, k = size.k, line = run == 0 ? k : (k + run - 1) / run * (run + 3);
  const std::vector<S> a = sixteenths<S>(m * line, 1), b = sixteenths<S>(n * k, 2), bias = sixteenths<S>(n, 3);
  std::vector<S> c(static_cast<std::size_t>(m * n), S(-7));
  lpo::Context<lpo::Cpu> context(threads);
  lpo::Scratch<lpo::Cpu> scratch(context);
  detail::TileProduct<S> p;
  p.kernel = &kernel;
  p.m = m, p.n = n, p.k = k;
  p.a = {a.data(), 0, detail::even_rows(m, run == 0 ? 1 : line), run == 0 ? k : run, run + 3};
  if (run == 0) p.a.offset = detail::even_steps(scratch, k, m);
  p.b = columns_of_b ? detail::RightOperand<S>::along_k(b.data(), 0, detail::even_rows(n, k))
                     : detail::RightOperand<S>::along_n(b.data(), 0, detail::even_steps(scratch, k, n));
  detail::TileOutput<S> out;
  out.c = c.data();
  out.rows = detail::even_rows(m, n);
  out.bias = bias.data();
  detail::run_product(context, p, out);
  index_t wrong = 0;
  for (index_t i = 0; i < m; ++i)
    for (index_t j = 0; j < n; ++j) {
      double sum = static_cast<double>(bias[static_cast<std::size_t>(j)]);
      for (index_t l = 0; l < k; ++l)
        sum += static_cast<double>(a[static_cast<std::size_t>(
                   run == 0 ? l * m + i : i * line + l / run * (run + 3) + l % run)]) *
               static_cast<double>(b[static_cast<std::size_t>(columns_of_b ? j * k + l : l * n + j)]);
      if (static_cast<double>(c[static_cast<std::size_t>(i * n + j)]) != sum) ++wrong;
    }
  CAPTURE(kernel.lanes);
  CAPTURE(m);
  CAPTURE(n);
  CAPTURE(k);
  CAPTURE(run);
  CHECK(wrong == 0);
}

/// A's lines in runs of `run`, which have a gap of 3 elements behind each, or A stored along m if `run` is 0; B along k
/// or along n.
void compare_pairs(const detail::PairTiles& tiles, const Size& size, index_t run, index_t batch, int threads,
                   bool columns_of_b, float beta) {
  using lpo::bfloat16;
  const index_t m = size.m, n = size.n, k = size.k;
  const bool across = run == 0;
  const index_t line = across ? k : k / run * (run + 3);
  const auto at = [](index_t i) { return static_cast<std::size_t>(i); };
  const auto a = sixteenths<float>(batch * m * line, 1), b = sixteenths<float>(n * k, 2),
             bias = sixteenths<float>(n, 3);
  const auto stored = [](const std::vector<float>& from) {
    std::vector<bfloat16> to;
    for (const float value : from) to.push_back(bfloat16(value));
    return to;
  };
  const auto left = stored(a), right = stored(b), added = stored(bias);
  auto c = stored(sixteenths<float>(batch * m * n, 4));
  const auto before = c;
  lpo::Context<lpo::Cpu> context(threads);
  lpo::Scratch<lpo::Cpu> scratch(context);
  detail::PairProduct p;
  p.tiles = &tiles;
  p.m = m, p.n = n, p.k = k, p.batch = batch;
  p.a = {left.data(), m * line, detail::even_rows(m, line), run, run + 3};
  p.b = {right.data(), 0, detail::even_rows(n, k), k};
  if (across) p.a.offset = detail::even_steps(scratch, k, m);
  if (!columns_of_b) p.b.offset = detail::even_steps(scratch, k, n);
  detail::TileOutput<bfloat16> out;
  out.c = c.data();
  out.rows = detail::even_rows(m, n);
  out.bias = added.data();
  out.beta = beta;
  out.batch_c = m * n;
  detail::run_pair_product(context, p, out);
  index_t wrong = 0;
  for (index_t i = 0; i < batch * m; ++i)
    for (index_t j = 0; j < n; ++j) {
      float sum = bias[at(j)] + beta * static_cast<float>(before[at(i * n + j)]);
      for (index_t l = 0; l < k; ++l) {
        const index_t in_a = across ? i / m * m * line + l * m + i % m : i * line + l / run * (run + 3) + l % run;
        sum += a[at(in_a)] * b[at(columns_of_b ? j * k + l : l * n + j)];
      }
      if (c[at(i * n + j)].bits != bfloat16(sum).bits) ++wrong;
    }
  CAPTURE(m);
  CAPTURE(n);
  CAPTURE(k);
  CAPTURE(run);
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("tiles of pairs of bfloat16 give the exact sums") {
  std::vector<const detail::PairTiles*> list = {&plain_pairs<false>, &plain_pairs<true>};
  for (int i = 0; i < detail::pair_tiles().count; ++i) list.push_back(detail::pair_tiles().tiles[i]);
  MESSAGE("sets of instructions for pairs on this machine: ", list.size() - 2);
  struct Case {
    Size size;
    index_t run, batch;
  };
  const Case cases[] = {{{1, 1, 1}, 1, 1},      {{16, 16, 32}, 32, 1},  {{17, 33, 3}, 3, 2},    {{31, 47, 64}, 32, 1},
                        {{33, 65, 66}, 11, 1},  {{77, 130, 96}, 32, 2}, {{100, 33, 520}, 40, 1}, {{300, 20, 36}, 12, 1},
                        {{300, 90, 288}, 96, 1}, {{5, 191, 1}, 1, 3},    {{64, 70, 1100}, 550, 1},
                        {{70, 90, 133}, 0, 2},  {{16, 16, 32}, 0, 1},   {{310, 5, 64}, 0, 1},
                        // few rows and long lines (swapped), and more rows than one job takes
                        {{64, 70, 1024}, 64, 1}, {{5, 191, 544}, 34, 2}, {{50, 40, 512}, 0, 2}, {{700, 40, 64}, 64, 1}};
  for (const auto* tiles : list)
    for (const Case& x : cases)
      for (const bool columns_of_b : {false, true})
        for (const int threads : {1, 3})
          for (const float beta : {0.0f, 0.5f})
            compare_pairs(*tiles, x.size, x.run, x.batch, threads, columns_of_b, beta);
  CHECK(open_states == 0);
}

TEST_CASE_TEMPLATE("every register tile of this machine gives the exact sums", S, float, double) {
  const Size sizes[] = {{1, 1, 1},    {6, 16, 8},    {7, 17, 3},     {8, 48, 5},   {23, 31, 33},   {24, 64, 64},
                        {25, 65, 66}, {77, 130, 40}, {100, 33, 500}, {49, 96, 77}, {13, 20, 2500}, {5, 191, 1},
                        {300, 48, 70}, {40, 300, 700}};
  const auto& kernels = detail::tile_kernels<S>();
  REQUIRE(kernels.count >= 1);
  for (int i = 0; i < kernels.count; ++i)
    for (const Size& size : sizes)
      for (const index_t run : {size.k, index_t{0}, index_t{7}})
        for (const bool columns_of_b : {false, true})
          for (const int threads : {1, 3}) compare(*kernels.kernel[i], size, run, threads, columns_of_b);
}

TEST_CASE("the chosen register tile is the widest that this machine runs") {
  const auto& kernels = detail::tile_kernels<float>();
  CHECK(&detail::tile_kernel<float>() == kernels.kernel[0]);
  for (int i = 1; i < kernels.count; ++i) CHECK(kernels.kernel[i]->lanes < kernels.kernel[0]->lanes);
}
