// SPDX-License-Identifier: MIT
// Selection of the best and worst candidate against published gaps, ties and permutations.
#include <lpo/preference/pair_selection.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

TEST_CASE("four scores: best, worst and the softmax gap") {
  const std::vector<float> scores = {3.10f, 2.40f, 4.05f, 3.55f};
  const auto pair = lpo::select_pair(scores);
  CHECK(pair.win == 2);
  CHECK(pair.lose == 1);
  CHECK(pair.delta == doctest::Approx(1.65));
  CHECK(std::fabs(pair.gap - 0.6777821) < 2e-7);
  CHECK(pair.kept(0.5));
}

TEST_CASE("the gap of a score difference, and the threshold is strict") {
  const std::vector<float> half = {0.5f, 0.0f}, two = {-1.0f, 1.0f};
  CHECK(std::fabs(lpo::select_pair(half).gap - 0.2449187) < 1e-7);
  CHECK(std::fabs(lpo::select_pair(two).gap - 0.7615942) < 1e-7);
  const auto pair = lpo::select_pair(two);
  CHECK_FALSE(pair.kept(pair.gap));
  CHECK(pair.kept(std::nextafter(pair.gap, 0.0)));
}

TEST_CASE("one candidate or equal scores keep nothing") {
  const std::vector<float> one = {3.0f}, equal = {1.5f, 1.5f, 1.5f};
  CHECK_FALSE(lpo::select_pair(one).kept(0.0));
  CHECK_FALSE(lpo::select_pair(equal).kept(0.0));
  CHECK(lpo::select_pair(equal).gap == 0);
}

TEST_CASE("ties take the lowest index") {
  const std::vector<float> scores = {1, 4, 0, 4, 0};
  CHECK(lpo::select_pair(scores).win == 1);
  CHECK(lpo::select_pair(scores).lose == 2);
}

TEST_CASE("permuting candidates leaves the kept pair unchanged") {
  const std::vector<float> scores = {3.10f, 2.40f, 4.05f, 3.55f};
  std::vector<int> order = {0, 1, 2, 3};
  do {
    std::vector<float> shuffled;
    for (const int k : order) shuffled.push_back(scores[static_cast<std::size_t>(k)]);
    const auto pair = lpo::select_pair(shuffled);
    CHECK(order[static_cast<std::size_t>(pair.win)] == 2);
    CHECK(order[static_cast<std::size_t>(pair.lose)] == 1);
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_CASE("rows of candidate k and prompt b lie at k*B + b") {
  const std::vector<float> scores = {1, 10, 3, 30, 2, 20};  // K = 3, B = 2
  const auto second = lpo::select_pair(scores, 1, 2, 3);
  CHECK(second.win == 1);
  CHECK(second.lose == 0);
  CHECK(second.delta == 20);
}

TEST_CASE("a score that is not a number is an error") {
  const std::vector<float> scores = {1.0f, std::numeric_limits<float>::quiet_NaN()};
  CHECK_THROWS_AS(lpo::select_pair(scores), lpo::ValueError);
}
