// SPDX-License-Identifier: MIT
// Extents: sizes, comparison, dense strides, deduction and text.
#include <lpo/base/extents.hpp>

#include <doctest/doctest.h>

using lpo::Extents;

TEST_CASE("size, comparison and strides") {
  constexpr Extents<4> e{2, 3, 4, 5};
  static_assert(e.size() == 120);
  static_assert(e == Extents<4>{2, 3, 4, 5});
  static_assert(!(e == Extents<4>{2, 3, 5, 4}));
  static_assert(lpo::dense_strides(e) == Extents<4>{60, 20, 5, 1});
  static_assert(Extents<3>{2, 0, 4}.size() == 0);
  static_assert(lpo::dense_strides(Extents<3>{2, 0, 4}) == Extents<3>{0, 4, 1});
  static_assert(std::is_same_v<decltype(Extents{1, 2, 3}), Extents<3>>);
  lpo::index_t product = 1;
  for (const auto size : e) product *= size;
  CHECK(product == 120);
}

TEST_CASE("sizes beyond 32 bits") {
  constexpr Extents<3> e{70000, 70000, 3};
  static_assert(e.size() == 14700000000);
  CHECK(lpo::dense_strides(e)[0] == 210000);
}

TEST_CASE("text") {
  CHECK(to_string(Extents<1>{7}) == "[7]");
  CHECK(to_string(Extents<4>{1, 64, 64, 320}) == "[1, 64, 64, 320]");
}
