// SPDX-License-Identifier: MIT
// One AdamW step of both host backends.
#include <lpo/backend/cpu/adamw.hpp>
#include <lpo/backend/reference/adamw.hpp>

#include "parity.hpp"

using namespace parity;

namespace {

template <class T>
struct State {
  std::vector<T> parameter;
  std::vector<lpo::compute_t<T>> m, v;
};

template <class Device, class T>
State<T> run(index_t count, int threads) {
  lpo::Context<Device> context(threads);
  State<T> state{random_values<T>(count, 1), random_values<lpo::compute_t<T>>(count, 2),
                 random_values<lpo::compute_t<T>>(count, 3)};
  for (auto& value : state.v) value *= value;
  const auto gradient = random_values<T>(count, 4);
  lpo::kernel::AdamWParams p;
  p.learning_rate = 0.125f, p.weight_decay = 0.25f, p.gradient_scale = 0.5f;
  p.bias1 = 0.271f, p.bias2 = 0.003f;
  lpo::kernel::AdamW<Device>::step(context, p, count, state.parameter.data(), gradient.data(), state.m.data(),
                                   state.v.data());
  return state;
}

}  // namespace

TEST_CASE("the first step of reference AdamW moves by the learning rate") {
  // After one step from zero moments, m / bias1 = g and v / bias2 = g^2, so p -= lr (sign(g) + weight_decay p).
  lpo::Context<lpo::Reference> context(1);
  double parameter[] = {2.0, 2.0, -4.0}, m[3] = {}, v[3] = {};
  const double gradient[] = {0.5, -3.0, 100.0};
  lpo::kernel::AdamWParams p;
  p.learning_rate = 0.125f, p.weight_decay = 0.25f, p.epsilon = 0.0f;
  p.beta1 = 0.75f, p.beta2 = 0.5f, p.bias1 = 0.25f, p.bias2 = 0.5f;
  lpo::kernel::AdamW<lpo::Reference>::step(context, p, 3, parameter, gradient, m, v);
  CHECK(parameter[0] == doctest::Approx(2.0 - 0.125 * (1.0 + 0.5)).epsilon(1e-14));
  CHECK(parameter[1] == doctest::Approx(2.0 - 0.125 * (-1.0 + 0.5)).epsilon(1e-14));
  CHECK(parameter[2] == doctest::Approx(-4.0 - 0.125 * (1.0 - 1.0)).epsilon(1e-14));
  CHECK(m[1] == doctest::Approx(-0.75).epsilon(1e-14));
  CHECK(v[1] == doctest::Approx(4.5).epsilon(1e-14));
}

TEST_CASE_TEMPLATE("cpu AdamW agrees with the reference", T, LPO_STORAGE_TYPES) {
  for (index_t count : {0, 1, 15, 16, 37, 40001}) {
    CAPTURE(count);
    const auto expected = run<lpo::Reference, T>(count, 1);
    const auto one = run<lpo::Cpu, T>(count, 1);
    const auto three = run<lpo::Cpu, T>(count, 3);
    using S = lpo::compute_t<T>;
    CHECK(difference(one.parameter, expected.parameter, 1.0) < 8 * unit<S> + (sizeof(T) == 2 ? unit<T> : 0.0));
    CHECK(difference(one.m, expected.m, 1.0) < 4 * unit<S>);
    CHECK(difference(one.v, expected.v, 1.0) < 4 * unit<S>);
    CHECK(same_bits(one.parameter, three.parameter));
    CHECK(same_bits(one.m, three.m));
    CHECK(same_bits(one.v, three.v));
  }
}
