// SPDX-License-Identifier: MIT
// Elementary functions: accuracy over their whole range against libm in double, special values, packs equal to scalars.
#include <lpo/tensor/math.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstdint>
#include <limits>

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
const float not_a_number = std::numeric_limits<float>::quiet_NaN();

/// Largest relative error over `count` points of [low, high], spaced evenly; results below the normal range are
/// skipped.
template <class Function, class Exact>
double worst(float low, float high, Function&& function, Exact&& exact, int count = 200000) {
  double error = 0;
  for (int i = 0; i <= count; ++i) {
    const float x = low + (high - low) * (static_cast<float>(i) / static_cast<float>(count));
    const double e = exact(static_cast<double>(x));
    if (std::fabs(e) < 1.2e-38) continue;
    error = std::fmax(error, std::fabs(static_cast<double>(function(x)) - e) / std::fabs(e));
  }
  return error;
}

}  // namespace

namespace math = lpo::detail;

TEST_CASE("relative error over the range") {
  CHECK(worst(
            -87.3f, 88.7f, [](float x) { return math::exp(x); }, [](double x) { return std::exp(x); }) < 1.5e-7);
  CHECK(worst(
            -20.0f, 20.0f, [](float x) { return math::exp(x); }, [](double x) { return std::exp(x); }) < 1.2e-7);
  CHECK(worst(
            1e-30f, 1e30f, [](float x) { return math::log(x); }, [](double x) { return std::log(x); }) < 2e-7);
  CHECK(worst(
            0.5f, 2.0f, [](float x) { return math::log(x); }, [](double x) { return std::log(x); }) < 2e-7);
  CHECK(worst(
            -20.0f, 20.0f, [](float x) { return math::tanh(x); }, [](double x) { return std::tanh(x); }) < 3e-7);
  CHECK(worst(
            -1e-3f, 1e-3f, [](float x) { return math::tanh(x); }, [](double x) { return std::tanh(x); }) < 2e-7);
  CHECK(worst(
            -6.0f, 6.0f, [](float x) { return math::erf(x); }, [](double x) { return std::erf(x); }) < 5e-7);
  CHECK(worst(
            -80.0f, 80.0f, [](float x) { return math::sigmoid(x); }, [](double x) { return 1 / (1 + std::exp(-x)); }) <
        4e-7);
  CHECK(worst(
            -80.0f, 90.0f, [](float x) { return math::softplus(x); },
            [](double x) { return std::fmax(x, 0) + std::log1p(std::exp(-std::fabs(x))); }) < 5e-7);
}

TEST_CASE("special values") {
  CHECK(math::exp(0.0f) == 1.0f);
  CHECK(math::exp(infinity) == infinity);
  CHECK(math::exp(89.0f) == infinity);
  CHECK(math::exp(88.7f) < infinity);
  CHECK(math::exp(-infinity) == 0.0f);
  CHECK(math::exp(-103.0f) > 0.0f);  // subnormal
  CHECK(std::isnan(math::exp(not_a_number)));
  CHECK(math::log(1.0f) == 0.0f);
  CHECK(math::log(0.0f) == -infinity);
  CHECK(math::log(infinity) == infinity);
  CHECK(std::isnan(math::log(-1.0f)));
  CHECK(std::isnan(math::log(not_a_number)));
  CHECK(math::log(1e-45f) == doctest::Approx(std::log(1.4e-45)).epsilon(1e-3));
  CHECK(math::tanh(infinity) == 1.0f);
  CHECK(math::tanh(-infinity) == -1.0f);
  CHECK(std::isnan(math::tanh(not_a_number)));
  CHECK(math::erf(infinity) == 1.0f);
  CHECK(std::isnan(math::erf(not_a_number)));
  CHECK(math::sigmoid(infinity) == 1.0f);
  CHECK(math::sigmoid(-infinity) == 0.0f);
  CHECK(std::isnan(math::sigmoid(not_a_number)));
  CHECK(math::softplus(200.0f) == 200.0f);
  CHECK(math::softplus(-200.0f) == 0.0f);
}

TEST_CASE("a pack gives the bits of the scalar") {
  const auto same = [](auto&& pack, auto&& scalar) {
    for (int i = -4000; i < 4000; ++i) {
      float x[lpo::pack_width], y[lpo::pack_width];
      for (int lane = 0; lane < lpo::pack_width; ++lane)
        x[lane] = static_cast<float>(i) * 0.03f + static_cast<float>(lane) * 0.001f;
      math::store_pack(y, pack(math::load_pack(x)));
      for (int lane = 0; lane < lpo::pack_width; ++lane) {
        const float s = scalar(x[lane]);
        if (!(y[lane] == s) && !(std::isnan(y[lane]) && std::isnan(s))) return false;
      }
    }
    return true;
  };
  const auto both = [&](auto&& f) { return same(f, f); };
  CHECK(both([](auto x) { return math::exp(x); }));
  CHECK(both([](auto x) { return math::log(x); }));
  CHECK(both([](auto x) { return math::tanh(x); }));
  CHECK(both([](auto x) { return math::erf(x); }));
  CHECK(both([](auto x) { return math::sigmoid(x); }));
  CHECK(both([](auto x) { return math::softplus(x); }));
}
