// SPDX-License-Identifier: MIT
// Cases of the matrix product: a device against the reference.
#pragma once

#include <lpo/backend/reference/gemm.hpp>

#include <backend/on_device.hpp>
#include <backend/parity.hpp>

namespace gemm_cases {

using namespace lpo_test;
using namespace parity;

struct Case {
  index_t m, n, k;
  bool transpose_a = false, transpose_b = false;
  float alpha = 1.0f, beta = 0.0f;
  bool bias = false;
  index_t batch = 1;
  bool share_a = false, share_b = false;
  index_t gap = 0;  // extra elements per stored row
  bool start = false;  // what beta multiplies lies elsewhere
};

inline const Case cases[] = {
    {1, 1, 1},
    {0, 5, 3},
    {5, 0, 3},
    {5, 7, 0, false, false, 1.0f, 0.5f, true},
    {4, 3, 0},
    {7, 5, 3, false, false, 0.5f, 2.0f, true, 1, false, false, 3},
    {7, 5, 3, true, false, 1.0f, 1.0f, false, 1, false, false, 1},
    {7, 5, 3, false, true, -1.0f, 0.0f, true, 1, false, false, 2},
    {7, 5, 3, true, true, 1.5f, 1.0f, true, 1, false, false, 5},
    {64, 64, 64},
    {65, 65, 65, false, true, 1.0f, 0.0f, true},
    {33, 96, 96, false, true},
    {96, 96, 130, true, false, 1.0f, 1.0f},
    {8, 300, 260, false, true, 0.5f, 0.0f, true},  // few rows: computed transposed
    {77, 170, 257, false, true, 0.5f, 2.0f, true, 1, false, false, 3},
    {90, 70, 700, false, false, 1.0f, 0.0f, true},  // each job packs its own part of B
    {90, 203, 700, false, false, 1.0f, 1.0f, false, 2, false, false, 1},
    {1, 200, 33, false, true, 2.0f, 1.0f, true, 1, false, false, 3},
    {200, 1, 33, false, true, 1.0f, 0.0f, true},
    {50, 3, 27, false, true, 1.0f, 0.0f, true},
    {20, 128, 40, false, false, 1.0f, 0.0f, true, 1, false, false, 16},  // B in place
    {130, 80, 40, false, false},
    {31, 17, 2500, true, false, 0.5f, 1.0f},                            // split over k
    {64, 48, 5000, false, true, 1.0f, 0.0f, true},                      // split over k
    {200, 130, 40, true, false, 1.0f, 0.0f, true, 1, false, false, 3},  // A packed
    {200, 130, 20, true, true, 1.0f, 1.0f, false, 2, true},
    {193, 128, 20, true, false, 1.0f, 0.0f, false, 2},
    {500, 200, 9},
    {9, 20, 12, false, true, 1.0f, 0.0f, false, 5, false, true},
    {20, 9, 12, true, false, 1.0f, 1.0f, true, 4, true, false, 2},
    {12, 32, 16, false, false, 1.0f, 0.0f, false, 3},
    {6, 40, 16, false, true, 1.0f, 1.0f, true, 3},
    {10, 10, 2100, false, true, 1.0f, 1.0f, true, 2, false, false, 1},
    {7, 5, 3, false, true, 1.0f, 1.0f, true, 1, false, false, 3, true},
    {65, 33, 130, false, true, 0.5f, 2.0f, false, 1, false, false, 0, true},
    {6, 40, 16, false, true, 1.0f, 1.0f, true, 3, false, false, 8, true},
    {5, 7, 0, false, false, 1.0f, 0.5f, true, 1, false, false, 0, true},
};

template <class T>
struct Operands {
  std::vector<T> a, b, c, bias, start;
  lpo::kernel::GemmParams<T> params;

  explicit Operands(const Case& x) {
    auto& p = params;
    const index_t rows_a = x.transpose_a ? x.k : x.m, rows_b = x.transpose_b ? x.n : x.k;
    p.m = x.m, p.n = x.n, p.k = x.k;
    p.lda = (x.transpose_a ? x.m : x.k) + x.gap;
    p.ldb = (x.transpose_b ? x.k : x.n) + x.gap;
    p.ldc = x.n + x.gap;
    p.transpose_a = x.transpose_a, p.transpose_b = x.transpose_b;
    p.alpha = x.alpha, p.beta = x.beta;
    p.batch = x.batch;
    p.batch_stride_a = x.share_a ? 0 : rows_a * p.lda;
    p.batch_stride_b = x.share_b ? 0 : rows_b * p.ldb;
    p.batch_stride_c = x.m * p.ldc;
    a = random_values<T>(x.batch * rows_a * p.lda, 1);
    b = random_values<T>(x.batch * rows_b * p.ldb, 2);
    c = random_values<T>(x.batch * x.m * p.ldc, 3);
    bias = random_values<T>(x.n, 4);
    if (x.bias) p.bias = bias.data();
    start = random_values<T>(x.batch * x.m * p.ldc, 5);
    if (x.start) p.start = start.data();
    if (x.beta == 0.0f || x.start)  // what C held must not matter, except between its rows
      for (index_t row = 0; row < x.batch * x.m; ++row)
        std::fill_n(c.begin() + row * p.ldc, x.n, static_cast<T>(std::nanf("")));
    p.a = a.data(), p.b = b.data();
  }
};

template <class Device, class T>
std::vector<T> run_in(lpo::Context<Device>& context, const Operands<T>& operands) {
  auto params = operands.params;
  const auto a = on_device<Device>(operands.a), b = on_device<Device>(operands.b), bias = on_device<Device>(operands.bias);
  auto c = on_device<Device>(operands.c);
  params.a = a.data(), params.b = b.data(), params.c = c.data();
  const auto start = on_device<Device>(operands.start);
  if (params.bias != nullptr) params.bias = bias.data();
  if (params.start != nullptr) params.start = start.data();
  lpo::kernel::Gemm<Device>::run(context, params);
  return to_host(c);
}

template <class Device, class T>
std::vector<T> run(const Operands<T>& operands, int threads) {
  auto context = test_context<Device>(threads);
  return run_in(context, operands);
}

template <class Device, class T>
void compare_products() {
  for (const Case& x : cases) {
    CAPTURE(x.m);
    CAPTURE(x.n);
    CAPTURE(x.k);
    CAPTURE(x.transpose_a);
    CAPTURE(x.transpose_b);
    CAPTURE(x.batch);
    const Operands<T> operands(x);
    const auto expected = run<lpo::Reference>(operands, 1);
    const auto one = run<Device>(operands, 1);
    CHECK(difference(one, expected, std::sqrt(static_cast<double>(x.k) + 1.0)) < tolerance<T>(x.k));
    CHECK(same_bits(one, run<Device>(operands, 3)));
  }
}

}  // namespace gemm_cases
