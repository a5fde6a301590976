// SPDX-License-Identifier: MIT
// The CPU's matrix product against the Reference device, and the Reference device against numbers worked out by hand.
#include <lpo/backend/cpu/gated_product.hpp>
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

TEST_CASE_TEMPLATE("cpu gemm gives the same bits on any number of threads", T, float, double, lpo::bfloat16) {
  struct Case {
    index_t m, n, k;
    bool transpose_a, transpose_b;
  };
  for (const Case& x :
       {Case{300, 320, 640, false, true}, Case{77, 320, 768, false, true}, Case{16, 96, 1300, false, true},
        Case{130, 650, 257, false, false}, Case{320, 200, 600, true, false}, Case{40, 72, 2500, true, true}}) {
    CAPTURE(x.m);
    const auto a = random_values<T>(x.m * x.k, 1), b = random_values<T>(x.n * x.k, 2);
    std::vector<T> first;
    for (const int threads : {1, 2, 3, 7}) {
      CAPTURE(threads);
      std::vector<T> c(static_cast<std::size_t>(x.m * x.n));
      lpo::kernel::GemmParams<T> p;
      p.m = x.m, p.n = x.n, p.k = x.k;
      p.transpose_a = x.transpose_a, p.transpose_b = x.transpose_b;
      p.a = a.data(), p.lda = x.transpose_a ? x.m : x.k;
      p.b = b.data(), p.ldb = x.transpose_b ? x.k : x.n;
      p.c = c.data(), p.ldc = x.n;
      lpo::Context<lpo::Cpu> context(threads);
      lpo::kernel::Gemm<lpo::Cpu>::run(context, p);
      if (first.empty()) first = c;
      CHECK(same_bits(c, first));
    }
  }
}

TEST_CASE_TEMPLATE("cpu gated product agrees with the reference's product and gelu in double", T, float, lpo::bfloat16,
                   lpo::half) {
  struct Case {
    index_t rows, in, hidden, gap;
    bool bias;
  };
  for (const Case& x : {Case{1, 7, 64, 0, true}, Case{23, 64, 128, 5, false}, Case{100, 65, 64, 0, true},
                        Case{130, 96, 320, 2, true}, Case{64, 2100, 64, 0, true}}) {
    CAPTURE(x.rows);
    CAPTURE(x.in);
    CAPTURE(x.hidden);
    const index_t x_row = x.in + x.gap, width = 2 * x.hidden;
    const auto input = random_values<T>(x.rows * x_row, 1), weight = random_values<T>(width * x.in, 2),
               bias = random_values<T>(width, 3);
    lpo::kernel::GatedProductParams<T> p;
    p.rows = x.rows, p.in = x.in, p.hidden = x.hidden;
    p.x = input.data(), p.x_row = x_row, p.weight = weight.data(), p.bias = x.bias ? bias.data() : nullptr;
    std::vector<T> out(static_cast<std::size_t>(x.rows * x.hidden)), again = out, both(2 * out.size());
    auto expected = both;
    lpo::Context<lpo::Cpu> one_thread(1), three_threads(3);
    REQUIRE(lpo::kernel::GatedProduct<lpo::Cpu>::can_run(one_thread, p));
    p.out = out.data();
    lpo::kernel::GatedProduct<lpo::Cpu>::run(one_thread, p);
    p.out = again.data(), p.both = both.data();
    lpo::kernel::GatedProduct<lpo::Cpu>::run(three_threads, p);
    CHECK(same_bits(out, again));

    lpo::Context<lpo::Reference> reference(1);
    lpo::kernel::GemmParams<T> g;
    g.m = x.rows, g.n = width, g.k = x.in;
    g.a = p.x, g.lda = x_row, g.b = p.weight, g.ldb = x.in, g.transpose_b = true, g.bias = p.bias;
    g.c = expected.data(), g.ldc = width;
    lpo::kernel::Gemm<lpo::Reference>::run(reference, g);
    CHECK(difference(both, expected, std::sqrt(static_cast<double>(x.in) + 1.0)) < tolerance<T>(x.in));

    double worst = 0;
    for (index_t i = 0; i < x.rows * x.hidden; ++i) {
      const auto at = static_cast<std::size_t>(i / x.hidden * width + i % x.hidden);
      const double gate = as_double(both[at + static_cast<std::size_t>(x.hidden)]);
      const double product = as_double(both[at]) * gate, wanted = product * 0.5 * std::erfc(-gate / std::sqrt(2.0));
      const double found = as_double(out[static_cast<std::size_t>(i)]);
      worst = std::max(worst, std::fabs(found - wanted) / (1e-3 + std::fabs(product)));
    }
    CHECK(worst <= 0.5 * unit<T> + 2e-7);  // the error of gelu(x) is one of erf: relative to x
  }
}

TEST_CASE("cpu gated product declines what does not fill panels, and double") {
  lpo::Context<lpo::Cpu> context(1);
  lpo::kernel::GatedProductParams<float> p;
  p.rows = 4, p.in = 8, p.hidden = 33;
  CHECK_FALSE(lpo::kernel::GatedProduct<lpo::Cpu>::can_run(context, p));
  lpo::kernel::GatedProductParams<double> d;
  d.rows = 4, d.in = 8, d.hidden = 64;
  CHECK_FALSE(lpo::kernel::GatedProduct<lpo::Cpu>::can_run(context, d));
}
