// SPDX-License-Identifier: MIT
// Simulated raters: the closed form of Rao and Kupper, frequencies, gaps and determinism.
#include "../../examples/tinyworld/world/rater.hpp"

#include <doctest/doctest.h>

#include <cmath>

#include "../../examples/tinyworld/world/flaws.hpp"

using namespace tinyworld;

namespace {

Measurement scored(float score, float aesthetic, float global, float question) {
  Measurement m{};
  m.score = score;
  m.aesthetic = aesthetic;
  m.global_agreement = global;
  m.question_agreement = question;
  return m;
}

}  // namespace

TEST_CASE("win_probability is Rao and Kupper's formula") {
  const RaterOptions options{0.1f, 0.3f};
  // With worths p = exp(s / T) and threshold theta = exp(0.3): P(i wins) = p_i / (p_i + theta p_j).
  const double worth_i = std::exp(0.62 / 0.1), worth_j = std::exp(0.5 / 0.1), theta = std::exp(0.3);
  CHECK(win_probability(0.12, options) == doctest::Approx(worth_i / (worth_i + theta * worth_j)).epsilon(1e-6));
  CHECK(win_probability(-0.12, options) == doctest::Approx(worth_j / (worth_j + theta * worth_i)).epsilon(1e-6));
  CHECK(win_probability(0.0, {0.1f, 0.0f}) == doctest::Approx(0.5));
  CHECK(win_probability(50.0, options) == doctest::Approx(1.0));
}

TEST_CASE("label frequencies follow the probabilities and gaps point from loser to winner") {
  const Measurement good = scored(0.70f, 6.0f, 0.8f, 0.9f);
  const Measurement bad = scored(0.64f, 6.5f, 0.7f, 0.6f);
  int first = 0, second = 0, ties = 0;
  const int total = 40000;
  for (std::uint64_t i = 0; i < total; ++i) {
    const RatedPair pair = rate_pair(good, bad, 3, i);
    CHECK(pair.label_0 + pair.label_1 == 1.0f);
    if (pair.is_tie()) {
      ++ties;
      CHECK(pair.label_0 == 0.5f);
    } else {
      ++(pair.label_0 > 0.5f ? first : second);
      const float sign = pair.label_0 > 0.5f ? 1.0f : -1.0f;
      CHECK(pair.aesthetic_gap == doctest::Approx(sign * -0.5));
      CHECK(pair.clipscore_gap == doctest::Approx(sign * 0.1));
      CHECK(pair.vqascore_gap == doctest::Approx(sign * 0.3));
    }
  }
  const double p = win_probability(0.06), q = win_probability(-0.06);
  CHECK(std::fabs(first - total * p) < 5 * std::sqrt(total * p * (1 - p)));
  CHECK(std::fabs(second - total * q) < 5 * std::sqrt(total * q * (1 - q)));
  CHECK(ties > 0);
}

TEST_CASE("labels depend on seed and pair only") {
  const Measurement a = scored(0.5f, 5, 0.5f, 0.5f);
  const Measurement b = scored(0.52f, 5, 0.5f, 0.5f);
  int differing = 0;
  for (std::uint64_t i = 0; i < 200; ++i) {
    CHECK(rate_pair(a, b, 1, i).label_0 == rate_pair(a, b, 1, i).label_0);
    differing += rate_pair(a, b, 1, i).label_0 != rate_pair(a, b, 2, i).label_0;
  }
  CHECK(differing > 40);
}

TEST_CASE("the default raters are right about 0.85 to 0.92 of the time on flawed pictures, with some ties") {
  double ties = 0, best = 0, decided = 0;
  for (std::uint64_t i = 0; i < 1500; ++i) {
    const CaptionedScene sample = sample_captioned(41, i, Split::train);
    lpo::RandomStream random(42, static_cast<std::uint32_t>(i));
    const Measurement first = score_image(attempt(random, sample.scene), sample.caption);
    const Measurement second = score_image(attempt(random, sample.scene), sample.caption);
    const double gap = static_cast<double>(first.score) - static_cast<double>(second.score);
    const double p = win_probability(gap), q = win_probability(-gap);
    ties += 1 - p - q, best += std::max(p, q), decided += p + q;
  }
  CHECK(best / decided > 0.85);
  CHECK(best / decided < 0.92);
  CHECK(ties / 1500 > 0.03);
  CHECK(ties / 1500 < 0.12);
}
