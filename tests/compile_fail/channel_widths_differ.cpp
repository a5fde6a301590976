// expect: lpo operator: static channel widths differ; project one operand to the other's width
// SPDX-License-Identifier: MIT
// Expressions of 64 and of 128 channels are added.
#include <lpo/tensor/operators.hpp>

template <int Channels>
using Features = lpo::Expression<lpo::tree::Argument<float, false>, float, 4, lpo::Cpu, Channels, false>;

void add(const Features<64>& narrow, const Features<128>& wide) {
  auto sum = narrow + wide;
  (void)sum;
}
