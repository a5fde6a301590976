// SPDX-License-Identifier: MIT
// The embedding lookup: gradients with repeated ids and a table that is used twice; parity of Cpu; errors.
#include <lpo/autograd/embedding.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/cpu/embedding.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/embedding.hpp>

#include <array>

#include "support.hpp"

using Ids = std::span<const std::int32_t>;

TEST_CASE("gradients of embedding") {
  auto table = randn(Extents<2>{6, 5}, 1);
  check_gradients(
      [](auto&, const auto& t) {
        const std::array<std::int32_t, 5> ids = {3, 0, 3, 5, 3};  // gone before backward: the tape keeps a copy
        return embedding(t, Ids(ids));
      },
      std::tie(table));
  check_gradients(
      [](auto&, const auto& t) {
        const std::array<std::int32_t, 2> ids = {3, 0}, others = {3, 1};
        return Var(embedding(t, Ids(ids)) * embedding(t, Ids(others)) + t.slice(0, 3, 5));
      },
      std::tie(table));
}

TEST_CASE("embedding on Cpu agrees with Reference") {
  std::array<std::int32_t, 300> ids;
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i * i % 23);
  const auto table = randn(Extents<2>{23, 37}, 1);
  check_parity(
      1e-6, [&](auto&, const auto& t) { return embedding(t, Ids(ids)); }, table);
}

TEST_CASE("ids outside the table") {
  Context<Reference> context;
  Tape<Reference> tape(context);
  auto table = randn(Extents<2>{6, 5}, 1);
  const auto t = variable(tape, table);
  const std::array<std::int32_t, 2> ids = {3, 6}, negative = {-1, 2};
  CHECK(error_text<lpo::ValueError>([&] { embedding(t, Ids(ids)); }) ==
        "[embedding] id 6 at position 1 is outside the table of 6 rows; does the tokenizer belong to this model?");
  CHECK(error_text<lpo::ValueError>([&] { embedding(t, Ids(negative)); }).rfind("[embedding] id -1 at position 0", 0) ==
        0);
  CHECK(embedding(t, Ids()).size() == 0);
}
