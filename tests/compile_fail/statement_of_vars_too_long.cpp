// expect: lpo expression: one statement holds at most 40 operations; assign a part of it to a tensor or Var first
// SPDX-License-Identifier: MIT
// A recorded statement of 48 additions.
#include <lpo/autograd/var.hpp>
#include <lpo/backend/cpu/elementwise.hpp>

void forward(const lpo::Var<float, 2, lpo::Cpu>& x) {
  auto twelve = x + 1 + 2 + 3 + 4 + 5 + 6 + 1 + 2 + 3 + 4 + 5 + 6;
  auto twenty_four = twelve + 1 + 2 + 3 + 4 + 5 + 6 + 1 + 2 + 3 + 4 + 5 + 6;
  auto thirty_six = twenty_four + 1 + 2 + 3 + 4 + 5 + 6 + 1 + 2 + 3 + 4 + 5 + 6;
  lpo::Var y = thirty_six + 1 + 2 + 3 + 4 + 5 + 6 + 1 + 2 + 3 + 4 + 5 + 6;
}
