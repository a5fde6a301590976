// SPDX-License-Identifier: MIT
// Sinusoidal timestep features and the two-layer embedding that follows them.
#pragma once

#include <cmath>
#include <span>
#include <vector>

#include <lpo/nn/linear.hpp>

namespace lpo::inline LPO_ABI {

/// [count] numbers -> [count, width] on the host: cosines first, then sines, of value * 10000^(-i / (width / 2)). Angles
/// in double.
template <class T>
std::vector<T> sinusoidal_features(std::span<const float> values, int width) {
  const int half = width / 2;
  std::vector<T> host(values.size() * static_cast<std::size_t>(width));
  for (std::size_t row = 0; row < values.size(); ++row) {
    for (int i = 0; i < half; ++i) {
      const double angle = static_cast<double>(values[row]) * std::exp(-std::log(10000.0) * i / half);
      T* at = host.data() + row * static_cast<std::size_t>(width);
      at[i] = static_cast<T>(static_cast<compute_t<T>>(std::cos(angle)));
      at[half + i] = static_cast<T>(static_cast<compute_t<T>>(std::sin(angle)));
    }
  }
  return host;
}

/// The same on a tape.
template <class T, class Device>
Var<T, 2, Device> sinusoidal_embedding(Tape<Device>& tape, std::span<const float> values, int width) {
  const auto out = make_output<T>(tape, Extents<2>{static_cast<index_t>(values.size()), width}, false);
  const std::vector<T> host = sinusoidal_features<T>(values, width);
  tape.context().copy_from_host(out.data(), host.data(), host.size() * sizeof(T));
  return out;
}

/// linear_2(silu(linear_1(x))). Keys: linear_1, linear_2.
template <int In, int Out, class T, class Device>
struct TimestepEmbedding {
  Linear<In, Out, T, Device> linear_1;
  Linear<Out, Out, T, Device> linear_2;

  template <int C>
  Var<T, 2, Device, Out> operator()(const Var<T, 2, Device, C>& x) {
    Var hidden = silu(linear_1(x));  // [n, Out]
    return linear_2(hidden);
  }
  void visit(ParameterVisitor<T, Device>& v) {
    v("linear_1", linear_1);
    v("linear_2", linear_2);
  }
};

}  // namespace lpo::inline LPO_ABI
