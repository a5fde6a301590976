// SPDX-License-Identifier: MIT
// Attention: gradients for self, cross and causal attention, slices of one projection, shared inputs; parity; errors.
#include <lpo/autograd/attention.hpp>
#include <lpo/backend/cpu/attention.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/reference/attention.hpp>
#include <lpo/backend/reference/elementwise.hpp>

#include "support.hpp"

TEST_CASE("gradients of attention") {
  auto q = randn(Extents<3>{2, 5, 6}, 1), k = randn(Extents<3>{2, 4, 6}, 2), v = randn(Extents<3>{2, 4, 6}, 3);
  SUBCASE("cross") {
    for (const index_t heads : {1, 2, 3})
      check_gradients([&](auto&, const auto& a, const auto& b, const auto& c) { return attention(a, b, c, heads); },
                      std::tie(q, k, v));
  }
  SUBCASE("self and causal") {
    auto keys = randn(Extents<3>{2, 5, 6}, 4), values = randn(Extents<3>{2, 5, 6}, 5);
    for (const bool causal : {false, true})
      check_gradients([&](auto&, const auto& a, const auto& b, const auto& c) { return attention(a, b, c, 2, causal); },
                      std::tie(q, keys, values));
  }
  SUBCASE("slices of one projection") {
    auto qkv = randn(Extents<3>{2, 5, 18}, 6);
    check_gradients(
        [](auto&, const auto& a) {
          return attention(a.slice(2, 0, 6), a.slice(2, 6, 12), a.slice(2, 12, 18), 3, true);
        },
        std::tie(qkv));
  }
  SUBCASE("a batch slice, and a window of positions of one item") {
    check_gradients(
        [](auto&, const auto& a, const auto& b, const auto& c) {
          return attention(a.slice(0, 1, 2).slice(1, 1, 4), b.slice(0, 0, 1), c.slice(0, 1, 2), 2);
        },
        std::tie(q, k, v));
  }
  SUBCASE("keys that are also the values, and everything from one value") {
    check_gradients([](auto&, const auto& a, const auto& b) { return attention(a, b, b, 2); }, std::tie(q, k));
    check_gradients([](auto&, const auto& a) { return attention(a, a, a, 2); }, std::tie(q));
    auto wide = randn(Extents<3>{2, 3, 7}, 7);
    check_gradients(
        [](auto&, const auto& a) { return attention(a.slice(2, 0, 4), a.slice(2, 1, 5), a.slice(2, 3, 7), 2); },
        std::tie(wide));
  }
  SUBCASE("frozen queries") {
    check_gradients([](auto&, const auto& a, const auto& b, const auto& c) { return attention(a, b, c, 2); },
                    std::tie(std::as_const(q), k, v));
  }
}

TEST_CASE("attention on Cpu agrees with Reference") {
  const auto q = randn(Extents<3>{2, 45, 40}, 1), k = randn(Extents<3>{2, 29, 40}, 2),
             v = randn(Extents<3>{2, 29, 40}, 3);
  const auto qkv = randn(Extents<3>{2, 35, 3 * 24}, 4);
  check_parity(
      5e-6, [](auto&, const auto& a, const auto& b, const auto& c) { return attention(a, b, c, 5); }, q, k, v);
  check_parity(
      5e-6, [](auto&, const auto& a, const auto& b) { return attention(a, b, b, 5); }, q, k);
  check_parity(
      5e-6, [](auto&, const auto& a) { return attention(a, a, a, 4, true); }, q);
  check_parity(
      5e-6,
      [](auto&, const auto& a) {
        return attention(a.slice(2, 0, 24), a.slice(2, 24, 48), a.slice(2, 48, 72), 2, true);
      },
      qkv);
}

TEST_CASE("extents that do not fit") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto qs = randn(Extents<3>{2, 5, 6}, 1), ks = randn(Extents<3>{2, 4, 6}, 2), vs = randn(Extents<3>{2, 3, 6}, 3);
  const auto q = variable(tape, qs), k = variable(tape, ks), v = variable(tape, vs);
  CHECK(error_text<lpo::ShapeError>([&] { attention(q, k, k, 4); }) ==
        "[attention] 6 channels cannot be split into 4 heads");
  CHECK(error_text<lpo::ShapeError>([&] { attention(q, k, v, 2); }) ==
        "[attention] keys [2, 4, 6] and values [2, 3, 6] must have the same extents");
  CHECK(error_text<lpo::ShapeError>([&] { attention(q, k, k, 2, true); }) ==
        "[attention] a causal mask needs as many queries as keys");
  CHECK(error_text<lpo::ShapeError>([&] { attention(q, k.slice(2, 0, 4), k.slice(2, 0, 4), 2); }) ==
        "[attention] queries [2, 5, 6] and keys [2, 4, 4] differ in batch or channels");
  CHECK(error_text<lpo::ShapeError>([&] { attention(q.slice(1, 0, 2), k, k, 2); }) ==
        "[attention] inputs may only be strided between positions; copy them first");
}
