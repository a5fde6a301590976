// SPDX-License-Identifier: MIT
// Cases of an AdamW step: a device against the reference.
#pragma once

#include <lpo/backend/reference/adamw.hpp>

#include <backend/on_device.hpp>
#include <backend/parity.hpp>

namespace adamw_cases {

using namespace lpo_test;
using namespace parity;

template <class T>
struct State {
  std::vector<T> parameter;
  std::vector<lpo::compute_t<T>> m, v;
};

template <class Device, class T, class Gradient = T>
State<T> run(index_t count, int threads) {
  using Moment = lpo::compute_t<T>;
  auto context = test_context<Device>(threads);
  auto squares = random_values<Moment>(count, 3);
  for (auto& value : squares) value *= value;
  auto parameter = on_device<Device>(random_values<T>(count, 1));
  auto m = on_device<Device>(random_values<Moment>(count, 2)), v = on_device<Device>(squares);
  const auto gradient = on_device<Device>(random_values<Gradient>(count, 4));
  lpo::kernel::AdamWParams p;
  p.learning_rate = 0.125f, p.weight_decay = 0.25f, p.gradient_scale = 0.5f;
  p.bias1 = 0.271f, p.bias2 = 0.003f;
  lpo::kernel::AdamW<Device>::step(context, p, count, parameter.data(), gradient.data(), m.data(), v.data());
  return State<T>{to_host(parameter), to_host(m), to_host(v)};
}

template <class Device, class T, class Gradient = T>
void compare_steps() {
  for (index_t count : {0, 1, 15, 16, 37, 40001}) {
    CAPTURE(count);
    const auto expected = run<lpo::Reference, T, Gradient>(count, 1);
    const auto one = run<Device, T, Gradient>(count, 1);
    const auto three = run<Device, T, Gradient>(count, 3);
    using S = lpo::compute_t<T>;
    CHECK(difference(one.parameter, expected.parameter, 1.0) < 8 * unit<S> + (sizeof(T) == 2 ? unit<T> : 0.0));
    CHECK(difference(one.m, expected.m, 1.0) < 4 * unit<S>);
    CHECK(difference(one.v, expected.v, 1.0) < 4 * unit<S>);
    CHECK(same_bits(one.parameter, three.parameter));
    CHECK(same_bits(one.m, three.m));
    CHECK(same_bits(one.v, three.v));
  }
}

}  // namespace adamw_cases
