// expect: lpo operator: operands are on different devices; copy one with to_device() first
// SPDX-License-Identifier: MIT
// Host memory plus device memory.
#include <lpo/tensor/operators.hpp>

void add(const lpo::View<float, 2, lpo::Cpu>& host, const lpo::View<float, 2, lpo::Cuda>& device) {
  auto sum = host + device;
  (void)sum;
}
