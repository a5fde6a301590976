// SPDX-License-Identifier: MIT
// Kept packed weights: the bits of products that pack in each call, for every form of every matrix, and no stale ones.
#include <lpo/backend/cpu/conv2d.hpp>
#include <lpo/backend/cpu/gated_product.hpp>
#include <lpo/backend/cpu/gemm.hpp>

#include <backend/parity.hpp>

using namespace parity;

namespace {

/// Runs `product(context, weight, result)` without and twice with a promise about `weight`; all must have the same bits.
template <class T, class Product>
void expect_same_bits(std::vector<T>& weight, index_t results, int threads, const Product& product) {
  lpo::Context<lpo::Cpu> plain(threads), keeping(threads);
  keeping.packed_weights().promise(weight.data(), weight.size() * sizeof(T));
  std::vector<T> expected(static_cast<std::size_t>(results)), found = expected;
  product(plain, weight.data(), expected.data());
  CHECK(plain.packed_weights().reserved_bytes() == 0);
  for (int turn = 0; turn < 2; ++turn) {
    std::fill(found.begin(), found.end(), T{});
    product(keeping, weight.data(), found.data());
    CHECK(same_bits(found, expected));
  }
}

template <class T>
lpo::kernel::GemmParams<T> product_of(index_t m, index_t n, index_t k, bool transpose_b, const T* a, const T* b, T* c) {
  lpo::kernel::GemmParams<T> p;
  p.m = m, p.n = n, p.k = k, p.transpose_b = transpose_b;
  p.a = a, p.lda = k, p.b = b, p.ldb = transpose_b ? k : n, p.c = c, p.ldc = n;
  return p;
}

}  // namespace

TEST_CASE_TEMPLATE("products keep the packed form of constant weights, with the same bits", T, float, double, lpo::bfloat16,
                   lpo::half) {
  struct Case {
    index_t m, n, k;
  };
  for (const int threads : {1, 3})
    for (const bool transpose_b : {true, false})
      for (const Case& x : {Case{1, 1, 1}, Case{1, 40, 33}, Case{5, 17, 1}, Case{70, 1, 20}, Case{77, 320, 768}, Case{130, 48, 1300},
                            Case{300, 33, 65}, Case{1000, 96, 64}}) {
        CAPTURE(x.m);
        CAPTURE(x.n);
        CAPTURE(x.k);
        CAPTURE(transpose_b);
        const auto a = random_values<T>(x.m * x.k, 1), bias = random_values<T>(x.n, 3);
        auto weight = random_values<T>(x.n * x.k, 2);
        expect_same_bits(weight, x.m * x.n, threads, [&](auto& context, const T* b, T* c) {
          auto p = product_of(x.m, x.n, x.k, transpose_b, a.data(), b, c);
          p.bias = bias.data();
          lpo::kernel::Gemm<lpo::Cpu>::run(context, p);
        });
      }
}

TEST_CASE_TEMPLATE("convolutions and gated products keep packed weights, with the same bits", T, float, lpo::bfloat16) {
  for (const index_t stride : {1, 2})
    for (const index_t kernel : {1, 3, 4}) {
      CAPTURE(stride);
      CAPTURE(kernel);
      lpo::kernel::Conv2dShape s;
      s.n = 2, s.h = 9, s.w = 12, s.c = 32, s.o = 24, s.kernel_h = s.kernel_w = kernel, s.stride = stride;
      s.pad_top = s.pad_left = kernel / 2, s.pad_bottom = s.pad_right = kernel / 2;
      const index_t inputs = s.n * s.h * s.w * s.c, outputs = s.n * s.out_h() * s.out_w() * s.o;
      const auto x = random_values<T>(inputs, 1), dy = random_values<T>(outputs, 2);
      auto weight = random_values<T>(s.o * kernel * kernel * s.c, 3);
      // Both directions in one context: several forms of one matrix.
      expect_same_bits(weight, outputs + inputs, 2, [&](auto& context, const T* w, T* to) {
        lpo::kernel::Conv2d<lpo::Cpu>::forward(context, s, x.data(), w, static_cast<const T*>(nullptr), to);
        lpo::kernel::Conv2d<lpo::Cpu>::backward_data(context, s, dy.data(), w, to + outputs, false);
      });
    }
  const index_t rows = 50, in = 96, hidden = 128;
  const auto x = random_values<T>(rows * in, 1);
  auto weight = random_values<T>(2 * hidden * in, 2);
  // The gated product interleaves values and gates, the plain one does not, and a third sees the same bytes as [in, 2 hidden].
  expect_same_bits(weight, rows * hidden * 5, 2, [&](auto& context, const T* w, T* to) {
    lpo::kernel::GatedProductParams<T> g;
    g.rows = rows, g.in = in, g.hidden = hidden, g.x = x.data(), g.x_row = in, g.weight = w, g.out = to;
    REQUIRE(lpo::kernel::GatedProduct<lpo::Cpu>::can_run(context, g));
    lpo::kernel::GatedProduct<lpo::Cpu>::run(context, g);
    for (const bool transpose_b : {true, false}) {
      T* const c = to + rows * hidden * (transpose_b ? 1 : 3);
      lpo::kernel::Gemm<lpo::Cpu>::run(context, product_of(rows, 2 * hidden, in, transpose_b, x.data(), w, c));
    }
  });
}

TEST_CASE("filters that Winograd's convolution transforms are not kept") {
  lpo::kernel::Conv2dShape s;
  s.n = 1, s.h = s.w = 16, s.c = s.o = 64, s.kernel_h = s.kernel_w = 3;
  s.pad_top = s.pad_left = s.pad_bottom = s.pad_right = 1;
  REQUIRE(lpo::detail::winograd_pays<float>(lpo::detail::WinogradShape::forward(s), s));
  const index_t count = s.h * s.w * s.c;
  const auto x = random_values<float>(count, 1), weight = random_values<float>(s.o * 9 * s.c, 2);
  std::vector<float> y(static_cast<std::size_t>(count)), dx = y;
  lpo::Context<lpo::Cpu> context(2);
  context.packed_weights().promise(weight.data(), weight.size() * sizeof(float));
  lpo::kernel::Conv2d<lpo::Cpu>::forward(context, s, x.data(), weight.data(), static_cast<const float*>(nullptr), y.data());
  lpo::kernel::Conv2d<lpo::Cpu>::backward_data(context, s, y.data(), weight.data(), dx.data(), false);
  CHECK(context.packed_weights().reserved_bytes() == 0);
}

TEST_CASE("packed weights are made once, dropped when told to, and never outlive their promise") {
  const index_t m = 64, n = 96, k = 128;
  const auto a = random_values<float>(m * k, 1);
  auto weight = random_values<float>(n * k, 2);
  std::vector<float> c(static_cast<std::size_t>(m * n)), expected = c;
  lpo::Context<lpo::Cpu> context(2), plain(2);
  auto& kept = context.packed_weights();
  const auto run = [&](auto& on, std::vector<float>& to) {
    lpo::kernel::Gemm<lpo::Cpu>::run(on, product_of(m, n, k, true, a.data(), weight.data(), to.data()));
  };
  run(context, c);
  CHECK(kept.reserved_bytes() == 0);  // nothing was promised
  kept.promise(weight.data(), weight.size() * sizeof(float));
  CHECK(kept.promised(weight.data()));
  CHECK(kept.promised(weight.data() + n * k - 1));
  CHECK_FALSE(kept.promised(weight.data() + n * k));
  run(context, c);
  const auto bytes = kept.reserved_bytes();
  CHECK(bytes >= weight.size() * sizeof(float));
  CHECK(context.reserved_bytes() >= bytes);
  run(context, c);
  CHECK(kept.reserved_bytes() == bytes);

  const auto change_weight = [&](std::uint64_t seed) {
    const auto other = random_values<float>(n * k, seed);
    std::copy(other.begin(), other.end(), weight.begin());
  };
  change_weight(3);
  run(context, c);
  run(plain, expected);
  CHECK_FALSE(same_bits(c, expected));  // a broken promise: the kept form was used
  kept.drop();
  run(context, c);
  CHECK(same_bits(c, expected));

  kept.forget(weight.data());
  CHECK_FALSE(kept.promised(weight.data()));
  CHECK(kept.reserved_bytes() == 0);
  change_weight(4);
  run(context, c);
  run(plain, expected);
  CHECK(same_bits(c, expected));
}
