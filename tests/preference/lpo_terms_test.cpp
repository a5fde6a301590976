// SPDX-License-Identifier: MIT
// The scalar LPO objective against published vectors, its metrics, and the overflow of the naive form.
#include <lpo/preference/lpo_terms.hpp>

#include <doctest/doctest.h>

#include <cmath>

using lpo::lpo_pair_terms;

namespace {

void check_digits(double value, double expected, double tolerance = 5.1e-8) {
  CAPTURE(value);
  CAPTURE(expected);
  CHECK(std::fabs(value - expected) <= tolerance);
}

}  // namespace

TEST_CASE("ratios, argument, loss and derivative, beta 500, clip 0.1") {
  const struct {
    double delta_win, delta_lose, ratio_win, ratio_lose, argument, loss, gradient_win, gradient_lose;
  } table[] = {{0, 0, 1, 1, 0, 0.6931472, -250, 250},
               {0.002, -0.001, 1.0020020, 0.9990005, 1.5, 0.2014133, -91.2127619, 91.2127619},
               {0.001, 0.004, 1.0010005, 1.0040080, -1.5, 1.7014133, -408.7872381, 408.7872381},
               {0.05, 0.2, 1.0512711, 1.1, -22.6550899, 22.6550899, -500, 0},
               {-0.2, 0.2, 0.9, 1.1, -100.3353477, 100.3353477, 0, 0}};
  for (const auto& row : table) {
    const auto terms = lpo_pair_terms(row.delta_win, row.delta_lose, {});
    check_digits(terms.ratio_win, row.ratio_win);
    check_digits(terms.ratio_lose, row.ratio_lose);
    check_digits(terms.argument, row.argument);
    check_digits(terms.loss, row.loss);
    check_digits(terms.gradient_win, row.gradient_win, 1e-7);
    check_digits(terms.gradient_lose, row.gradient_lose, 1e-7);
    const auto swapped = lpo_pair_terms(row.delta_lose, row.delta_win, {});
    CHECK(swapped.argument == -terms.argument);
  }
}

TEST_CASE("the derivatives are those of the loss") {
  for (const double win : {-0.07, 0.0003, 0.05, 0.3})
    for (const double lose : {-0.2, -0.0004, 0.06}) {
      const auto terms = lpo_pair_terms(win, lose, {});
      const double h = 1e-6;
      const double slope_win =
          (lpo_pair_terms(win + h, lose, {}).loss - lpo_pair_terms(win - h, lose, {}).loss) / (2 * h);
      const double slope_lose =
          (lpo_pair_terms(win, lose + h, {}).loss - lpo_pair_terms(win, lose - h, {}).loss) / (2 * h);
      CHECK(std::fabs(terms.gradient_win - slope_win) < 1e-4);
      CHECK(std::fabs(terms.gradient_lose - slope_lose) < 1e-4);
    }
}

TEST_CASE("a clip that leaves no ratio, or more than all, is refused") {
  for (const double clip : {0.0, -0.1, 1.0, std::nan("")})
    CHECK_THROWS_AS(lpo_pair_terms(0, 0, {.clip = clip}), lpo::ValueError);
  CHECK(lpo_pair_terms(0, 0, {.clip = 0.999}).argument == 0);
}

TEST_CASE("the gradient passes at the ends of the clip range and not beyond") {
  CHECK(lpo_pair_terms(std::log1p(0.1), 0.0, {}).gradient_win != 0);
  CHECK(lpo_pair_terms(0.0, std::log1p(-0.1), {}).gradient_lose != 0);
  CHECK(lpo_pair_terms(0.0954, 0.0, {}).gradient_win == 0);
  CHECK(lpo_pair_terms(0.0, -0.1054, {}).gradient_lose == 0);
}

TEST_CASE("the naive logarithm of a sigmoid overflows in fp32, the stable one does not") {
  const lpo::LpoLossOptions naive{500, 0.1, false};
  const auto overflow = lpo_pair_terms(-0.2, 0.2, naive);
  CHECK(std::isinf(overflow.loss));
  CHECK(std::isnan(overflow.gradient_win));
  check_digits(lpo_pair_terms(0.002, -0.001, naive).loss, 0.2014133, 1e-6);
  check_digits(lpo_pair_terms(0.002, -0.001, naive).gradient_win, -91.2127619, 1e-4);
}

TEST_CASE("metrics are means; equal ratios count as wrong") {
  lpo::LpoMetrics metrics;
  metrics.add(lpo_pair_terms(0, 0, {}));
  metrics.add(lpo_pair_terms(0.002, -0.001, {}));
  metrics.add(lpo_pair_terms(0.001, 0.004, {}));
  metrics.add(lpo_pair_terms(0.05, 0.2, {}));
  metrics.add(lpo_pair_terms(0.2, 0.3, {}));
  CHECK(metrics.pairs == 5);
  check_digits(metrics.implicit_accuracy, 0.2);
  check_digits(metrics.ratio_win, (1 + 1.0020020 + 1.0010005 + 1.0512711 + 1.1) / 5);
  check_digits(metrics.ratio_lose, (1 + 0.9990005 + 1.0040080 + 1.1 + 1.1) / 5);
  check_digits(metrics.margin, metrics.ratio_win - metrics.ratio_lose);
  check_digits(metrics.loss, (0.6931472 * 2 + 0.2014133 + 1.7014133 + 22.6550899) / 5);
  check_digits(metrics.win_clipped, 0.2);
  check_digits(metrics.lose_clipped, 0.4);
}
