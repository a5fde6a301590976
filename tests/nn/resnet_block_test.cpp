// SPDX-License-Identifier: MIT
// ResnetBlock2D: finite differences of every input and weight, with and without time embedding and shortcut.
#include <lpo/nn/resnet_block.hpp>

#include "block_gradcheck.hpp"

using namespace lpo;

TEST_CASE("a ResNet block with time embedding and shortcut has the right gradients") {
  CheckedModule<ResnetBlock2D<4, 6, 5, 2, double, Reference>> block([](auto&) {}, 12);
  auto x = testing::random_tensor<double, Reference>(Extents<4>{2, 3, 4, 4}, 1);
  auto time = testing::random_tensor<double, Reference>(Extents<2>{2, 5}, 2);
  const auto result = testing::gradcheck<Reference>(
      [&](auto&, const auto& input, const auto& t) { return block.module(input, t, 1e-5f); }, std::tie(x, time),
      block.options);
  CHECK_MESSAGE(result.passed, result.message);
  CHECK(result.checked > 100);
}

TEST_CASE("a ResNet block without both has the right gradients") {
  CheckedModule<ResnetBlock2D<4, 4, 0, 2, double, Reference>> block([](auto&) {}, 12);
  auto x = testing::random_tensor<double, Reference>(Extents<4>{1, 3, 2, 4}, 1);
  const auto result = testing::gradcheck<Reference>(
      [&](auto&, const auto& input) { return block.module(input, {}, 1e-6f); }, std::tie(x), block.options);
  CHECK_MESSAGE(result.passed, result.message);
}
