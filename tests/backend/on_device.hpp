// SPDX-License-Identifier: MIT
// What lets one backend test run on host devices and on Cuda: arrays that live where the kernel computes.
#pragma once

#include <vector>

#include <lpo/testing/test_context.hpp>

namespace lpo_test {

using lpo::testing::test_context;

/// An array in device memory, copied from a vector.
template <class Device, class T>
class DeviceArray {
 public:
  explicit DeviceArray(const std::vector<T>& values) : block_(values.size() * sizeof(T)), size_(values.size()) {
    lpo::DeviceMemory<Device>::copy_from_host(block_.data(), values.data(), size_ * sizeof(T));
  }
  T* data() const { return reinterpret_cast<T*>(block_.data()); }
  std::vector<T> values() const {
    std::vector<T> copy(size_);
    lpo::DeviceMemory<Device>::copy_to_host(copy.data(), data(), size_ * sizeof(T));
    return copy;
  }

 private:
  typename lpo::DeviceMemory<Device>::Block block_;
  std::size_t size_;
};

/// `values` where kernels of the device reach them: has data().
template <class Device, class T>
auto on_device(std::vector<T> values) {
  if constexpr (lpo::is_host_device<Device>)
    return values;
  else
    return DeviceArray<Device, T>(values);
}

template <class T>
std::vector<T> to_host(std::vector<T> values) {
  return values;
}
template <class Device, class T>
std::vector<T> to_host(const DeviceArray<Device, T>& array) {
  return array.values();
}

}  // namespace lpo_test
