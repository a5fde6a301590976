// expect: lpo expression: one statement holds at most 40 operations; assign a part of it
// SPDX-License-Identifier: MIT
// A statement of 47 additions.
#include <lpo/tensor/operators.hpp>

void add(const lpo::View<float, 2, lpo::Cpu>& x) {
  auto seven = x + x + x + x + x + x + x + x;
  auto fifteen = seven + seven;
  auto thirty = fifteen + fifteen;
  auto too_many = thirty + fifteen;
  (void)too_many;
}
