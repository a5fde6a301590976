// expect: lpo expression: one statement holds at most 40 operations; assign a part of it to a tensor or Var first
// SPDX-License-Identifier: MIT
// A statement of 48 additions.
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/tensor/operators.hpp>
#include <lpo/tensor/tensor.hpp>

void add(const lpo::View<float, 2, lpo::Cpu>& x) {
  auto six = x + 1 + 2 + 3 + 4 + 5 + 6;
  auto twelve = six + 1 + 2 + 3 + 4 + 5 + 6;
  auto twenty_four = twelve + 1 + 2 + 3 + 4 + 5 + 6 + 1 + 2 + 3 + 4 + 5 + 6;
  auto thirty_six = twenty_four + 1 + 2 + 3 + 4 + 5 + 6 + 1 + 2 + 3 + 4 + 5 + 6;
  lpo::Tensor<float, 2, lpo::Cpu> y = thirty_six + 1 + 2 + 3 + 4 + 5 + 6 + 1 + 2 + 3 + 4 + 5 + 6;
}
