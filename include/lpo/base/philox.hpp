// SPDX-License-Identifier: MIT
// Counter-based random numbers (Philox4x32-10): the same bits on CPU and GPU, for any number of threads, at any
// position.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include <lpo/base/config.hpp>

namespace lpo::inline LPO_ABI {

/// Four independent 32-bit words, the output of one Philox evaluation.
struct PhiloxBlock {
  std::uint32_t v[4];
};

/// Names one random field: the key is `seed`, and a draw is addressed by (element block, operation, step).
/// `operation` tells apart the places in a program that draw, `step` the iterations of one place.
struct RandomKey {
  std::uint64_t seed = 0;
  std::uint32_t operation = 0;
  std::uint32_t step = 0;
};

/// Philox4x32 with ten rounds of counter (c0..c3) under key (k0, k1).
/// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
LPO_HOST_DEVICE inline PhiloxBlock philox4x32_10(std::uint32_t c0, std::uint32_t c1, std::uint32_t c2, std::uint32_t c3,
                                                 std::uint32_t k0, std::uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * c0;
    const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * c2;
    const std::uint32_t next0 = static_cast<std::uint32_t>(product1 >> 32) ^ c1 ^ k0;
    const std::uint32_t next2 = static_cast<std::uint32_t>(product0 >> 32) ^ c3 ^ k1;
    c0 = next0;
    c1 = static_cast<std::uint32_t>(product1);
    c2 = next2;
    c3 = static_cast<std::uint32_t>(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return PhiloxBlock{{c0, c1, c2, c3}};
}

/// The four words number `element_block` of the field `key`; words 4b..4b+3 of a flat array are block b.
LPO_HOST_DEVICE inline PhiloxBlock philox_block(RandomKey key, std::uint64_t element_block) {
  return philox4x32_10(static_cast<std::uint32_t>(element_block), static_cast<std::uint32_t>(element_block >> 32),
                       key.operation, key.step, static_cast<std::uint32_t>(key.seed),
                       static_cast<std::uint32_t>(key.seed >> 32));
}

/// Maps 32 random bits to a float in (0, 1]; never 0, so that its logarithm is finite. Mean of the map is 1/2.
LPO_HOST_DEVICE inline float uniform01(std::uint32_t bits) {
  return std::fma(static_cast<float>(bits), 0x1p-32f, 0x1p-33f);
}

namespace detail {

// Every multiply-add below is an explicit fma, so that no compiler is free to contract it or not: with sqrt (correctly
// rounded everywhere) the results have the same bits on all targets.

/// Natural logarithm of a normal positive float; relative error below 2e-7. Polynomial: Cephes logf (S. Moshier).
LPO_HOST_DEVICE inline float philox_log(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  // Shift the mantissa range from [1, 2) to [sqrt(1/2), sqrt(2)) so that the polynomial argument is centred on 0.
  const std::uint32_t shifted = bits - 0x3F3504F3u;
  const float exponent = static_cast<float>(static_cast<std::int32_t>(shifted) >> 23);
  const std::uint32_t mantissa_bits = (shifted & 0x007FFFFFu) + 0x3F3504F3u;
  float mantissa;
  std::memcpy(&mantissa, &mantissa_bits, sizeof mantissa);
  const float f = mantissa - 1.0f;
  const float square = f * f;
  float p = 7.0376836292e-2f;
  p = std::fma(p, f, -1.1514610310e-1f);
  p = std::fma(p, f, 1.1676998740e-1f);
  p = std::fma(p, f, -1.2420140846e-1f);
  p = std::fma(p, f, 1.4249322787e-1f);
  p = std::fma(p, f, -1.6668057665e-1f);
  p = std::fma(p, f, 2.0000714765e-1f);
  p = std::fma(p, f, -2.4999993993e-1f);
  p = std::fma(p, f, 3.3333331174e-1f);
  float tail = p * f;
  tail = std::fma(tail, square, exponent * -2.12194440e-4f);
  tail = std::fma(-0.5f, square, tail);
  return std::fma(exponent, 0.693359375f, f + tail);
}

/// cos and sin of the angle 2 pi bits / 2^32; the reduction to [-pi/4, pi/4] is exact integer arithmetic.
LPO_HOST_DEVICE inline void philox_cos_sin(std::uint32_t bits, float& cosine, float& sine) {
  const std::uint32_t quadrant = (bits + 0x20000000u) >> 30;
  const auto offset = static_cast<std::int32_t>(bits - (quadrant << 30));
  const float angle = static_cast<float>(offset) * 1.4629180792671596e-9f;  // 2 pi / 2^32
  const float square = angle * angle;
  float s = std::fma(-1.9515295891e-4f, square, 8.3321608736e-3f);
  s = std::fma(s, square, -1.6666654611e-1f);
  s = std::fma(s * square, angle, angle);
  float c = std::fma(2.443315711809948e-5f, square, -1.388731625493765e-3f);
  c = std::fma(c, square, 4.166664568298827e-2f);
  c = std::fma(c, square, -0.5f);
  c = std::fma(c, square, 1.0f);
  const bool swap = (quadrant & 1u) != 0;
  const float x = swap ? s : c;
  const float y = swap ? c : s;
  cosine = (quadrant == 1u || quadrant == 2u) ? -x : x;
  sine = (quadrant & 2u) != 0 ? -y : y;
}

}  // namespace detail

/// Two independent standard normals from two random words (Box and Muller 1958); |z| <= 6.77.
LPO_HOST_DEVICE inline void box_muller(std::uint32_t bits0, std::uint32_t bits1, float& z0, float& z1) {
  const float radius = std::sqrt(-2.0f * detail::philox_log(uniform01(bits0)));
  float cosine;
  float sine;
  detail::philox_cos_sin(bits1, cosine, sine);
  z0 = radius * cosine;
  z1 = radius * sine;
}

/// Standard normals 4b..4b+3 of the field (seed, operation, step), where b = element_block.
LPO_HOST_DEVICE inline void philox_normal4(std::uint64_t seed, std::uint64_t element_block, std::uint32_t operation,
                                           std::uint32_t step, float out[4]) {
  const PhiloxBlock block = philox_block(RandomKey{seed, operation, step}, element_block);
  box_muller(block.v[0], block.v[1], out[0], out[1]);
  box_muller(block.v[2], block.v[3], out[2], out[3]);
}

/// Writes standard normals first..first+count-1 of the field `key`; element i has the same bits wherever a call begins
/// and ends.
inline void philox_fill_normal(RandomKey key, float* out, std::size_t count, std::uint64_t first = 0) {
  const std::uint64_t end = first + count;
  for (std::uint64_t block = first / 4; 4 * block < end; ++block) {
    float four[4];
    philox_normal4(key.seed, block, key.operation, key.step, four);
    for (std::uint64_t i = std::max(first, 4 * block); i < std::min(end, 4 * block + 4); ++i) out[i - first] = four[i % 4];
  }
}

/// Sequential host-side generator over one Philox field, for shuffles, sampling and the like.
/// Its whole state is (key, position): save `position()`, construct with the same key, `seek()`, and it goes on
/// exactly.
class RandomStream {
 public:
  RandomStream() = default;
  explicit RandomStream(RandomKey key, std::uint64_t position = 0) : key_(key) { seek(position); }
  explicit RandomStream(std::uint64_t seed, std::uint32_t operation = 0, std::uint32_t step = 0)
      : RandomStream(RandomKey{seed, operation, step}) {}

  RandomKey key() const { return key_; }

  /// Number of 32-bit words consumed so far.
  std::uint64_t position() const { return position_; }

  /// Continues at `position`, as if that many words had been drawn.
  void seek(std::uint64_t position) {
    position_ = position;
    if (position % 4 != 0) block_ = philox_block(key_, position / 4);
  }

  std::uint32_t next_u32() {
    if (position_ % 4 == 0) block_ = philox_block(key_, position_ / 4);
    return block_.v[position_++ % 4];
  }

  std::uint64_t next_u64() {
    const std::uint64_t low = next_u32();
    return low | (std::uint64_t{next_u32()} << 32);
  }

  /// Uniform float in (0, 1]; one word.
  float uniform() { return uniform01(next_u32()); }

  /// Uniform float between `low` and `high`; one word.
  float uniform(float low, float high) { return std::fma(high - low, uniform(), low); }

  /// Standard normal; two words. The second normal of the pair is dropped so that the position is the whole state.
  float normal() {
    const std::uint32_t bits0 = next_u32();
    const std::uint32_t bits1 = next_u32();
    float z0;
    float z1;
    box_muller(bits0, bits1, z0, z1);
    return z0;
  }

  /// True with probability `probability` (0 never, 1 always); one word.
  bool bernoulli(float probability) {
    return static_cast<double>(next_u32()) < static_cast<double>(probability) * 4294967296.0;
  }

  /// Unbiased integer in [0, n); n = 0 gives 0. Lemire's multiply-and-reject, usually one word.
  std::uint32_t uniform_int(std::uint32_t n) {
    if (n == 0) return 0;
    std::uint64_t product = std::uint64_t{next_u32()} * n;
    if (static_cast<std::uint32_t>(product) < n) {
      const std::uint32_t threshold = static_cast<std::uint32_t>(-n) % n;
      while (static_cast<std::uint32_t>(product) < threshold) product = std::uint64_t{next_u32()} * n;
    }
    return static_cast<std::uint32_t>(product >> 32);
  }

  /// Fisher-Yates over anything with size() and operator[]; at most 2^32 - 1 elements.
  template <class Sequence>
  void shuffle(Sequence&& sequence) {
    using std::swap;
    for (std::size_t i = sequence.size(); i > 1; --i) {
      const std::size_t j = uniform_int(static_cast<std::uint32_t>(i));
      swap(sequence[i - 1], sequence[j]);
    }
  }

 private:
  RandomKey key_;
  std::uint64_t position_ = 0;
  PhiloxBlock block_{};
};

}  // namespace lpo::inline LPO_ABI
