// SPDX-License-Identifier: MIT
// The CPU's matrix product against the Reference device, and the Reference device against numbers worked out by hand.
#include <lpo/backend/cpu/gemm.hpp>
#include <lpo/backend/reference/gemm.hpp>

#include <backend/gemm_cases.hpp>

using namespace gemm_cases;

TEST_CASE("reference gemm computes a product worked out by hand") {
  // [1 2; 3 4] [5 6; 7 8] = [19 22; 43 50]
  const double a[] = {1, 2, 3, 4}, b[] = {5, 6, 7, 8}, bias[] = {0.5, -0.5};
  double c[] = {1, 1, 1, 1};
  lpo::Context<lpo::Reference> context(1);
  lpo::kernel::GemmParams<double> p;
  p.m = p.n = p.k = p.lda = p.ldb = p.ldc = 2;
  p.a = a, p.b = b, p.c = c;
  lpo::kernel::Gemm<lpo::Reference>::run(context, p);
  CHECK(std::vector<double>(c, c + 4) == std::vector<double>{19, 22, 43, 50});
  p.transpose_a = true;  // [1 3; 2 4] [5 6; 7 8] = [26 30; 38 44]
  p.alpha = 2.0f, p.beta = -1.0f, p.bias = bias;
  lpo::kernel::Gemm<lpo::Reference>::run(context, p);
  CHECK(std::vector<double>(c, c + 4) == std::vector<double>{33.5, 37.5, 33.5, 37.5});
  p.transpose_b = true;  // [1 3; 2 4] [5 7; 6 8] = [23 31; 34 46]
  p.alpha = 1.0f, p.beta = 0.0f, p.bias = nullptr;
  lpo::kernel::Gemm<lpo::Reference>::run(context, p);
  CHECK(std::vector<double>(c, c + 4) == std::vector<double>{23, 31, 34, 46});
}

TEST_CASE_TEMPLATE("cpu gemm agrees with the reference", T, LPO_STORAGE_TYPES) { compare_products<lpo::Cpu, T>(); }
