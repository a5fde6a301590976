// SPDX-License-Identifier: MIT
// Golden files in tests: tensors in lpo's layout, and the error measure of tests/reference/README.md.
#pragma once

#include <doctest/doctest.h>

#include <cmath>
#include <string>
#include <vector>

#include <lpo/io/json.hpp>
#include <lpo/io/parameters.hpp>
#include <lpo/testing/test_context.hpp>

namespace golden {

using lpo::index_t;

inline lpo::SafetensorsFile open(const std::string& name) {
  return lpo::SafetensorsFile(std::string(LPO_TEST_GOLDEN_DIR) + "/" + name + ".safetensors");
}

/// The tensors under a prefix, as a file of their own without it; `file` must live until that is written.
inline lpo::SafetensorsWriter part_of(const lpo::SafetensorsFile& file, const std::string& prefix) {
  lpo::SafetensorsWriter writer;
  for (const std::string& key : file.keys())
    if (key.starts_with(prefix))
      writer.add(key.substr(prefix.size()), file.info(key).dtype, file.info(key).shape, file.info(key).data);
  return writer;
}

/// Row-major NCHW -> NHWC.
template <class T>
std::vector<T> channels_last(const std::vector<T>& values, index_t n, index_t c, index_t area) {
  std::vector<T> out(values.size());
  for (index_t row = 0; row < n; ++row)
    for (index_t channel = 0; channel < c; ++channel)
      for (index_t at = 0; at < area; ++at)
        out[static_cast<std::size_t>((row * area + at) * c + channel)] =
            values[static_cast<std::size_t>((row * c + channel) * area + at)];
  return out;
}

/// A tensor of the file's own rank; `image` tells that the file has NCHW.
template <class T, int Rank, class Device>
lpo::Tensor<T, Rank, Device> tensor(const lpo::SafetensorsFile& file, const std::string& key, bool image = Rank == 4) {
  const auto& shape = file.info(key).shape;
  REQUIRE_MESSAGE(static_cast<int>(shape.size()) == Rank, key);
  auto values = file.read_vector<T>(key);
  lpo::Extents<Rank> extents{};
  for (int axis = 0; axis < Rank; ++axis) extents[axis] = shape[static_cast<std::size_t>(axis)];
  if constexpr (Rank == 4) {
    if (image) {
      values = channels_last(values, shape[0], shape[1], shape[2] * shape[3]);
      extents = {shape[0], shape[2], shape[3], shape[1]};
    }
  }
  return lpo::Tensor<T, Rank, Device>::from(extents, values);
}

/// `count` numbers of any device's memory, in double.
template <class Device, class T>
std::vector<double> numbers_at(const T* data, index_t count) {
  std::vector<std::remove_const_t<T>> host(static_cast<std::size_t>(count));
  lpo::DeviceMemory<Device>::copy_to_host(host.data(), data, host.size() * sizeof(T));
  std::vector<double> values(host.size());
  for (std::size_t i = 0; i < host.size(); ++i) values[i] = static_cast<double>(static_cast<lpo::compute_t<T>>(host[i]));
  return values;
}

/// ||value - truth|| / max(||truth||, 1e-3 sqrt(n)); infinite for NaN.
template <class A, class B>
double relative_error(const A* value, const B* truth, index_t count) {
  double difference = 0, norm = 0;
  for (index_t i = 0; i < count; ++i) {
    const double d = static_cast<double>(value[i]) - static_cast<double>(truth[i]);
    difference += d * d;
    norm += static_cast<double>(truth[i]) * static_cast<double>(truth[i]);
  }
  const double error = std::sqrt(difference) /
                       std::max(std::sqrt(norm), 1e-3 * std::sqrt(static_cast<double>(std::max<index_t>(count, 1))));
  return std::isnan(error) ? HUGE_VAL : error;
}

/// Checks a value of the tape against the file.
template <class T, int Rank, class Device, int Channels>
void check_value(const lpo::SafetensorsFile& file, const std::string& key,
                 const lpo::Var<T, Rank, Device, Channels>& value, double tolerance) {
  const auto truth = tensor<T, Rank, lpo::Reference>(file, key);
  CAPTURE(key);
  REQUIRE(lpo::to_string(truth.extents()) == lpo::to_string(value.extents()));
  CHECK(relative_error(numbers_at<Device>(value.data(), value.size()).data(), truth.data(), truth.size()) <= tolerance);
}

/// Checks the gradient of an input that was made by `variable`.
template <class T, int Rank, class Device, int Channels>
void check_gradient(const lpo::SafetensorsFile& file, const std::string& key,
                    const lpo::Var<T, Rank, Device, Channels>& input, double tolerance) {
  const auto truth = tensor<T, Rank, lpo::Reference>(file, key);
  const auto gradient = lpo::read_gradient(input);
  CAPTURE(key);
  REQUIRE(truth.size() == gradient.size());
  CHECK(relative_error(numbers_at<Device>(gradient.data(), gradient.size()).data(), truth.data(), truth.size()) <= tolerance);
}

/// A weight's gradient in the file's layout.
template <class T, class Device>
std::vector<double> file_gradient(const lpo::AnyParameter<T, Device>& p) {
  auto values = numbers_at<Device>(p.gradient(), p.size());
  if (!lpo::detail::needs_permutation(p)) return values;
  std::vector<double> oihw(values.size());
  lpo::detail::permute_convolution(static_cast<const double*>(values.data()), oihw.data(), p.extents, true);
  return oihw;
}

/// Checks all weight gradients that the file has under `grad/`; returns how many. `model_prefix` is the store's.
template <class T, class Device>
int check_weight_gradients(const lpo::SafetensorsFile& file, const lpo::ParameterStore<T, Device>& store,
                           double tolerance, const std::string& file_prefix = "grad/",
                           const std::string& model_prefix = "") {
  int checked = 0;
  for (const auto& entry : store.entries()) {
    const auto* parameter = entry.parameter;
    const std::string key = file_prefix + entry.name.substr(model_prefix.size());
    if (!parameter->trainable() || !file.contains(key)) continue;
    const auto truth = file.read_vector<double>(key);
    const auto mine = file_gradient(*parameter);
    CAPTURE(key);
    REQUIRE(truth.size() == mine.size());
    CHECK(relative_error(mine.data(), truth.data(), parameter->size()) <= tolerance);
    ++checked;
  }
  return checked;
}

/// Checks norm, sum and dot product with the weight of every gradient in `grad_stats`. Errors count relative to the
/// gradient's norm, times the norm of what it was multiplied with.
template <class T, class Device>
int check_gradient_statistics(const lpo::SafetensorsFile& file, const lpo::ParameterStore<T, Device>& store,
                              double tolerance, const std::string& model_prefix = "") {
  const auto keys = lpo::parse_json<lpo::SortedJson>(file.metadata().at("grad_stats_keys"), "test", file.path());
  const auto stats = file.read_vector<double>("grad_stats");
  int checked = 0;
  for (const auto& entry : store.entries()) {
    const std::string& name = entry.name;
    const auto* p = entry.parameter;
    std::size_t row = 0;
    while (row < keys.size() && keys[row].template get<std::string>() != name.substr(model_prefix.size())) ++row;
    if (row == keys.size() || !p->trainable()) continue;
    const auto gradient = numbers_at<Device>(p->gradient(), p->size()), values = numbers_at<Device>(p->data(), p->size());
    double square = 0, sum = 0, dot = 0, weight = 0;
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      const double g = gradient[i], w = values[i];
      square += g * g, sum += g, dot += g * w, weight += w * w;
    }
    const double norm = stats[3 * row];
    const double floor = std::max(norm, 1e-3 * std::sqrt(static_cast<double>(p->size())));
    CAPTURE(name);
    CHECK(std::fabs(std::sqrt(square) - norm) <= tolerance * floor);
    CHECK(std::fabs(sum - stats[3 * row + 1]) <= tolerance * floor * std::sqrt(static_cast<double>(p->size())));
    CHECK(std::fabs(dot - stats[3 * row + 2]) <= tolerance * floor * std::sqrt(weight));
    ++checked;
  }
  return checked;
}

}  // namespace golden
