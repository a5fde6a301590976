// SPDX-License-Identifier: MIT
// One AdamW step of both host backends.
#include <lpo/backend/cpu/adamw.hpp>
#include <lpo/backend/reference/adamw.hpp>

#include <backend/adamw_cases.hpp>

using namespace adamw_cases;

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

TEST_CASE_TEMPLATE("cpu AdamW agrees with the reference", T, LPO_STORAGE_TYPES) { compare_steps<lpo::Cpu, T>(); }

TEST_CASE_TEMPLATE("cpu AdamW steps float parameters by 16-bit gradients", T, lpo::bfloat16, lpo::half) {
  compare_steps<lpo::Cpu, float, T>();
}
