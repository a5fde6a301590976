// SPDX-License-Identifier: MIT
// Views: element addresses of slices, permutations and reshapes, density, and the texts of wrong requests.
#include <lpo/tensor/view.hpp>

#include <doctest/doctest.h>

#include <numeric>
#include <vector>

#include "../error_text.hpp"

using lpo::Cpu;
using lpo::Extents;
using lpo::index_t;
using lpo::View;

namespace {

/// 0, 1, 2, … under the given extents.
template <int Rank>
struct Numbered {
  std::vector<float> values;
  View<float, Rank, Cpu> view;
  explicit Numbered(const Extents<Rank>& extents)
      : values(static_cast<std::size_t>(extents.size())), view(values.data(), extents) {
    std::iota(values.begin(), values.end(), 0.0f);
  }
};

}  // namespace

TEST_CASE("a new view is dense and row-major") {
  const Numbered<3> x({2, 3, 4});
  CHECK(x.view.strides == Extents<3>{12, 4, 1});
  CHECK(x.view.dense());
  CHECK(x.view.size() == 24);
  CHECK(x.view(1, 2, 3) == 23.0f);
  CHECK(x.view(1, 0, 2) == 14.0f);
}

TEST_CASE("slices of slices are windows on the same memory") {
  const Numbered<3> x({4, 5, 6});
  const auto window = x.view.slice(1, 1, 4).slice(2, 2, 5).slice(1, 1, 3);
  CHECK(window.extents == Extents<3>{4, 2, 3});
  CHECK(window(3, 1, 2) == x.view(3, 3, 4));
  CHECK_FALSE(window.dense());
  CHECK(x.view.slice(0, 1, 3).dense());
  CHECK(x.view.slice(0, 2, 2).size() == 0);
  window(0, 0, 0) = -1;
  CHECK(x.view(0, 2, 2) == -1.0f);
}

TEST_CASE("permute reorders axes") {
  const Numbered<4> x({2, 3, 4, 5});
  const auto channels_first = x.view.permute({0, 3, 1, 2});
  CHECK(channels_first.extents == Extents<4>{2, 5, 3, 4});
  CHECK(channels_first(1, 4, 2, 3) == x.view(1, 2, 3, 4));
  CHECK_FALSE(channels_first.dense());
  CHECK(channels_first.permute({0, 2, 3, 1}).dense());
}

TEST_CASE("reshape keeps the order of elements") {
  const Numbered<2> x({6, 4});
  const auto cube = x.view.reshape(Extents<3>{2, 3, 4});
  CHECK(cube(1, 2, 3) == 23.0f);
  CHECK(cube.reshape(Extents<1>{24})(7) == 7.0f);
  CHECK(x.view.slice(0, 2, 4).reshape(Extents<1>{8})(0) == 8.0f);
}

TEST_CASE("axes of one element do not matter for density") {
  const Numbered<3> x({3, 4, 5});
  CHECK(x.view.slice(0, 1, 2).slice(1, 2, 3).dense());
  CHECK_FALSE(x.view.slice(1, 2, 3).dense());
  CHECK(View<float, 2, Cpu>(nullptr, {0, 5}).dense());
}

TEST_CASE("views convert to views of const") {
  const Numbered<2> x({2, 2});
  const View<const float, 2, Cpu> read_only = x.view;
  CHECK(read_only(1, 1) == 3.0f);
  static_assert(std::is_trivially_copyable_v<View<float, 4, Cpu>>);
}

TEST_CASE("wrong requests name the axis and the extents") {
  const Numbered<3> x({2, 3, 4});
  const auto text = [](auto&& call) { return error_text<lpo::ShapeError>(call); };
  CHECK(text([&] { x.view.slice(1, 2, 4); }) == "[slice] range [2, 4) does not fit axis 1 of [2, 3, 4]");
  CHECK(text([&] { x.view.slice(3, 0, 1); }) == "[slice] range [0, 1) does not fit axis 3 of [2, 3, 4]");
  CHECK(text([&] { x.view.slice(0, -1, 1); }) == "[slice] range [-1, 1) does not fit axis 0 of [2, 3, 4]");
  CHECK(text([&] { x.view.slice(0, 1, 0); }) == "[slice] range [1, 0) does not fit axis 0 of [2, 3, 4]");
  CHECK(text([&] { x.view.permute({0, 0, 1}); }) == "[permute] the order must name each of 3 axes once");
  CHECK(text([&] { x.view.permute({0, 1, 3}); }) == "[permute] the order must name each of 3 axes once");
  CHECK(text([&] { x.view.reshape(Extents<2>{5, 5}); }) == "[reshape] [2, 3, 4] has 24 elements, [5, 5] has 25");
  CHECK(text([&] { x.view.slice(1, 0, 2).reshape(Extents<1>{16}); }) ==
        "[reshape] [2, 2, 4] is strided; copy it first, a Var with contiguous(x)");
}
