// SPDX-License-Identifier: MIT
// Philox against the Random123 known-answer vectors, its normals against moments and the Kolmogorov-Smirnov bound.
#include <lpo/base/philox.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

TEST_CASE("philox4x32_10 gives the known-answer vectors of Random123") {
  const auto zero = lpo::philox4x32_10(0, 0, 0, 0, 0, 0);
  CHECK(zero.v[0] == 0x6627e8d5u);
  CHECK(zero.v[1] == 0xe169c58du);
  CHECK(zero.v[2] == 0xbc57ac4cu);
  CHECK(zero.v[3] == 0x9b00dbd8u);
  const std::uint32_t f = 0xffffffffu;
  const auto ones = lpo::philox4x32_10(f, f, f, f, f, f);
  CHECK(ones.v[0] == 0x408f276du);
  CHECK(ones.v[1] == 0x41c83b0eu);
  CHECK(ones.v[2] == 0xa20bc7c6u);
  CHECK(ones.v[3] == 0x6d5451fdu);
  const auto pi = lpo::philox4x32_10(0x243f6a88u, 0x85a308d3u, 0x13198a2eu, 0x03707344u, 0xa4093822u, 0x299f31d0u);
  CHECK(pi.v[0] == 0xd16cfe09u);
  CHECK(pi.v[1] == 0x94fdccebu);
  CHECK(pi.v[2] == 0x5001e420u);
  CHECK(pi.v[3] == 0x24126ea1u);
}

TEST_CASE("philox_block places seed, element, operation and step as documented") {
  const lpo::RandomKey key{0x299f31d0a4093822ull, 0x13198a2eu, 0x03707344u};
  const auto block = lpo::philox_block(key, 0x85a308d3243f6a88ull);
  CHECK(block.v[0] == 0xd16cfe09u);
  CHECK(block.v[3] == 0x24126ea1u);
}

TEST_CASE("uniform01 lies in (0, 1] at both ends") {
  CHECK(lpo::uniform01(0) == 0x1p-33f);
  CHECK(lpo::uniform01(0xffffffffu) == 1.0f);
  CHECK(lpo::uniform01(0x80000000u) == doctest::Approx(0.5));
}

TEST_CASE("own logarithm, cosine and sine agree with double precision") {
  double worst_log = 0;
  double worst_trig = 0;
  lpo::RandomStream stream(5);
  for (int i = 0; i < 200000; ++i) {
    // Shifting by a random amount visits every binary exponent, not only the common ones.
    const std::uint32_t bits = stream.next_u32() >> stream.uniform_int(32);
    const float u = i % 2 == 0 ? lpo::uniform01(bits) : lpo::uniform01(~bits);
    const double expected = std::log(static_cast<double>(u));
    const double error = std::fabs(lpo::detail::philox_log(u) - expected);
    if (u == 1.0f) {
      CHECK(error == 0);
    } else {
      worst_log = std::max(worst_log, error / std::fabs(expected));
    }
    const std::uint32_t turn = stream.next_u32();
    float c;
    float s;
    lpo::detail::philox_cos_sin(turn, c, s);
    const double angle = 2 * 3.14159265358979323846 * turn / 4294967296.0;
    worst_trig = std::max({worst_trig, std::fabs(c - std::cos(angle)), std::fabs(s - std::sin(angle))});
  }
  CHECK(worst_log < 3e-7);
  CHECK(worst_trig < 2e-7);
}

TEST_CASE("the largest normal is finite and near the documented bound") {
  float z0;
  float z1;
  lpo::box_muller(0, 0, z0, z1);
  CHECK(z0 == doctest::Approx(std::sqrt(-2 * std::log(0x1p-33))));
  CHECK(z1 == 0);
  lpo::box_muller(0xffffffffu, 12345, z0, z1);
  CHECK(z0 == 0);
}

TEST_CASE("normals have the moments of N(0, 1) and pass Kolmogorov-Smirnov") {
  const std::size_t count = 400000;
  std::vector<float> z(count);
  lpo::philox_fill_normal({42, 7, 3}, z.data(), count);
  double m1 = 0, m2 = 0, m3 = 0, m4 = 0, lag = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double v = z[i];
    m1 += v, m2 += v * v, m3 += v * v * v, m4 += v * v * v * v;
    if (i > 0) lag += v * z[i - 1];
  }
  const auto n = static_cast<double>(count);
  // Bounds are five standard errors of each estimate under N(0, 1).
  CHECK(std::fabs(m1 / n) < 5 * std::sqrt(1 / n));
  CHECK(std::fabs(m2 / n - 1) < 5 * std::sqrt(2 / n));
  CHECK(std::fabs(m3 / n) < 5 * std::sqrt(15 / n));
  CHECK(std::fabs(m4 / n - 3) < 5 * std::sqrt(96 / n));
  CHECK(std::fabs(lag / n) < 5 * std::sqrt(1 / n));
  std::sort(z.begin(), z.end());
  double distance = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const double cdf = 0.5 * std::erfc(-static_cast<double>(z[i]) / std::sqrt(2.0));
    distance = std::max(
        {distance, std::fabs(cdf - static_cast<double>(i) / n), std::fabs(cdf - static_cast<double>(i + 1) / n)});
  }
  CHECK(distance * std::sqrt(n) < 1.95);  // the 0.1 % critical value
}

TEST_CASE("an element's normal does not depend on how many are drawn") {
  std::vector<float> few(5);
  std::vector<float> many(64);
  lpo::philox_fill_normal({9, 1, 2}, few.data(), few.size());
  lpo::philox_fill_normal({9, 1, 2}, many.data(), many.size());
  for (std::size_t i = 0; i < few.size(); ++i) CHECK(few[i] == many[i]);
  std::vector<float> other(64);
  lpo::philox_fill_normal({9, 1, 3}, other.data(), other.size());
  CHECK(other != many);
}

TEST_CASE("RandomStream resumes exactly from a saved position") {
  for (int skip = 0; skip < 9; ++skip) {
    lpo::RandomStream a(77, 3, 1);
    for (int i = 0; i < skip; ++i) a.next_u32();
    lpo::RandomStream b(a.key(), a.position());
    for (int i = 0; i < 20; ++i) {
      CHECK(a.normal() == b.normal());
      CHECK(a.uniform_int(10) == b.uniform_int(10));
    }
    CHECK(a.position() == b.position());
  }
}

TEST_CASE("uniform_int is unbiased and shuffle is a uniform permutation") {
  lpo::RandomStream stream(1);
  std::vector<int> counts(6, 0);
  for (int i = 0; i < 60000; ++i) ++counts[stream.uniform_int(6)];
  double chi2 = 0;
  for (int c : counts) chi2 += (c - 10000.0) * (c - 10000.0) / 10000.0;
  CHECK(chi2 < 20.5);  // 0.1 % critical value at 5 degrees of freedom
  CHECK(stream.uniform_int(0) == 0);
  CHECK(stream.uniform_int(1) == 0);
  // A range just above 2^31 exposes a modulo bias of a factor of two.
  const std::uint32_t large = 3221225472u;  // 3 * 2^30
  int low = 0;
  for (int i = 0; i < 30000; ++i) low += stream.uniform_int(large) < (1u << 30);
  CHECK(std::fabs(low - 10000.0) < 5 * std::sqrt(30000 * (1.0 / 3) * (2.0 / 3)));

  std::vector<int> orders(6, 0);
  for (int i = 0; i < 60000; ++i) {
    std::vector<int> items{0, 1, 2};
    stream.shuffle(items);
    ++orders[static_cast<std::size_t>(items[0] * 2 + (items[1] > items[2] ? 1 : 0))];
  }
  chi2 = 0;
  for (int c : orders) chi2 += (c - 10000.0) * (c - 10000.0) / 10000.0;
  CHECK(chi2 < 20.5);
}

TEST_CASE("bernoulli honours its extremes") {
  lpo::RandomStream stream(2);
  int hits = 0;
  for (int i = 0; i < 10000; ++i) {
    CHECK_FALSE(stream.bernoulli(0.0f));
    CHECK(stream.bernoulli(1.0f));
    hits += stream.bernoulli(0.25f);
  }
  CHECK(std::fabs(hits - 2500.0) < 5 * std::sqrt(10000 * 0.25 * 0.75));
}

TEST_CASE("a part of a field has the bits of the whole, wherever it begins and ends") {
  std::vector<float> whole(37);
  lpo::philox_fill_normal({9, 1, 2}, whole.data(), whole.size());
  for (const std::size_t first : {0u, 1u, 4u, 7u, 36u, 37u})
    for (const std::size_t count : {0u, 1u, 3u, 9u}) {
      if (first + count > whole.size()) continue;
      std::vector<float> part(count, -9.0f);
      lpo::philox_fill_normal({9, 1, 2}, part.data(), count, first);
      CHECK(std::equal(part.begin(), part.end(), whole.begin() + static_cast<std::ptrdiff_t>(first)));
    }
}
