// SPDX-License-Identifier: MIT
// The register tile of every instruction set that this machine runs, against plain sums in double.
#include <doctest/doctest.h>

#include <cmath>
#include <vector>

#include <lpo/backend/cpu/product_pack.hpp>

namespace {

using lpo::index_t;
namespace detail = lpo::detail;

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

template <class S>
void compare(const detail::TileKernel<S>& kernel, const Size& size, int threads, bool columns_of_b) {
  const auto [m, n, k] = size;
  const std::vector<S> a = sixteenths<S>(m * k, 1), b = sixteenths<S>(n * k, 2), bias = sixteenths<S>(n, 3);
  std::vector<S> c(static_cast<std::size_t>(m * n), S(-7));
  lpo::Context<lpo::Cpu> context(threads);
  lpo::Scratch<lpo::Cpu> scratch(context);
  detail::TileProduct<S> p;
  p.kernel = &kernel;
  p.m = m, p.n = n, p.k = k;
  p.a = a.data();
  p.rows = detail::even_rows(m, k);
  p.a_step = detail::even_steps(scratch, k, 1);
  const index_t* lines = detail::even_steps(scratch, k, n);
  detail::pack_panels(context, scratch, p, 1,
                      [&](index_t, index_t column, index_t first, index_t last, S* to, index_t valid) {
                        if (columns_of_b)
                          detail::pack_columns(kernel, b.data() + column * k, k, first, last, to, valid);
                        else
                          detail::pack_rows(kernel, b.data() + column, lines, first, last, to, valid);
                      });
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
        sum += static_cast<double>(a[static_cast<std::size_t>(i * k + l)]) *
               static_cast<double>(b[static_cast<std::size_t>(columns_of_b ? j * k + l : l * n + j)]);
      if (static_cast<double>(c[static_cast<std::size_t>(i * n + j)]) != sum) ++wrong;
    }
  CAPTURE(kernel.lanes);
  CAPTURE(m);
  CAPTURE(n);
  CAPTURE(k);
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE_TEMPLATE("every register tile of this machine gives the exact sums", S, float, double) {
  const Size sizes[] = {{1, 1, 1},    {6, 16, 8},    {7, 17, 3},     {8, 48, 5},   {23, 31, 33},   {24, 64, 64},
                        {25, 65, 66}, {77, 130, 40}, {100, 33, 500}, {49, 96, 77}, {13, 20, 2500}, {5, 191, 1}};
  const auto& kernels = detail::tile_kernels<S>();
  REQUIRE(kernels.count >= 1);
  for (int i = 0; i < kernels.count; ++i)
    for (const Size& size : sizes)
      for (const bool columns_of_b : {false, true}) compare(*kernels.kernel[i], size, 1 + i % 2, columns_of_b);
}

TEST_CASE("the chosen register tile is the widest that this machine runs") {
  const auto& kernels = detail::tile_kernels<float>();
  CHECK(&detail::tile_kernel<float>() == kernels.kernel[0]);
  for (int i = 1; i < kernels.count; ++i) CHECK(kernels.kernel[i]->lanes < kernels.kernel[0]->lanes);
}
