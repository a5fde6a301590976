// SPDX-License-Identifier: MIT
// TorchGenerator: the numbers of PyTorch's CPU generator, so that a seed gives the noise that diffusers users know.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <type_traits>

#include <lpo/base/philox.hpp>
#include <lpo/base/scalar.hpp>

namespace lpo::inline LPO_ABI {

/// `torch.Generator("cpu").manual_seed(seed)`: Mersenne Twister MT19937 (Matsumoto and Nishimura, ACM TOMACS 8, 1998),
/// of whose seed torch uses the low 32 bits. One generator draws one sequence, whatever calls it is divided into.
class TorchGenerator {
 public:
  explicit TorchGenerator(std::uint64_t seed) {
    state_[0] = static_cast<std::uint32_t>(seed);
    for (std::uint32_t i = 1; i < length; ++i) state_[i] = 1812433253u * (state_[i - 1] ^ (state_[i - 1] >> 30)) + i;
  }

  /// The next 32 bits.
  std::uint32_t bits() {
    if (next_ == length) twist();
    std::uint32_t y = state_[next_++];
    y ^= y >> 11;
    y ^= (y << 7) & 0x9d2c5680u;
    y ^= (y << 15) & 0xefc60000u;
    return y ^ (y >> 18);
  }

  /// torch.rand: as many random bits as T's significand has, over that power of two, in [0, 1).
  template <Scalar T>
  T uniform() {
    if constexpr (std::is_same_v<T, double>) {
      const std::uint64_t high = bits();
      return static_cast<double>((high << 32 | bits()) & ((std::uint64_t{1} << 53) - 1)) * 0x1p-53;
    } else {
      constexpr int digits = std::is_same_v<T, float> ? 24 : std::is_same_v<T, half> ? 11 : 8;
      return static_cast<T>(static_cast<float>(bits() & ((1u << digits) - 1)) / static_cast<float>(1u << digits));
    }
  }

  /// torch.randn(values.size(), dtype=T, generator=...). The float values are torch's bit for bit where torch uses its
  /// AVX2 code (any x86 processor since 2013); elsewhere torch itself differs by up to 1e-5 relative.
  template <Scalar T>
  void randn(std::span<T> values);

 private:
  static constexpr std::uint32_t length = 624, shift = 397;

  void twist() {
    for (std::uint32_t i = 0; i < length; ++i) {
      const std::uint32_t y = (state_[i] & 0x80000000u) | (state_[(i + 1) % length] & 0x7fffffffu);
      state_[i] = state_[(i + shift) % length] ^ (y >> 1) ^ (y & 1u ? 0x9908b0dfu : 0u);
    }
    next_ = 0;
  }

  double normal();

  std::uint32_t state_[length];
  std::uint32_t next_ = length;
  std::optional<double> spare_;  ///< every draw of `normal` makes two; torch keeps the second across calls
};

namespace detail {

inline constexpr double two_pi = 6.283185307179586476925;

struct SineCosine {
  float sine, cosine;
};

/// sin and cos of 0 <= x < 2 pi with the roundings of torch's AVX2 code: Cephes' reduction by multiples of pi/4 in
/// three parts, and its polynomials. As in philox.hpp, std::fma says where it fuses and nothing else can be contracted.
inline SineCosine torch_sine_cosine(float x) {
  const int octant = (static_cast<int>(x * 1.27323954473516f) + 1) & ~1;
  const float y = static_cast<float>(octant);
  x = std::fma(y, -0.78515625f, x);
  x = std::fma(y, -2.4187564849853515625e-4f, x);
  x = std::fma(y, -3.77489497744594108e-8f, x);
  const float square = x * x;
  float cosine = std::fma(2.443315711809948e-5f, square, -1.388731625493765e-3f);
  cosine = std::fma(cosine, square, 4.166664568298827e-2f) * square;
  cosine = std::fma(cosine, square, -0.5f * square) + 1.0f;
  float sine = std::fma(-1.9515295891e-4f, square, 8.3321608736e-3f);
  sine = std::fma(sine, square, -1.6666654611e-1f) * square;
  sine = std::fma(sine, x, x);
  const bool swapped = (octant & 2) != 0;
  const float s = swapped ? cosine : sine, c = swapped ? sine : cosine;
  return {(octant & 4) != 0 ? -s : s, ((octant - 2) & 4) == 0 ? -c : c};
}

/// Box-Muller in place on sixteen uniforms: number j and j + 8 become radius cos and radius sin.
template <class T>
void torch_normal_block(T* values) {
  for (int j = 0; j < 8; ++j) {
    if constexpr (std::is_same_v<T, float>) {
      const float radius = std::sqrt(-2.0f * philox_log(1.0f - values[j]));
      const auto [sine, cosine] = torch_sine_cosine(static_cast<float>(two_pi) * values[j + 8]);
      values[j] = radius * cosine;
      values[j + 8] = radius * sine;
    } else {
      using Number = compute_t<T>;
      // Every operation of torch's 16-bit types rounds to them.
      const auto rounded = [](auto value) { return static_cast<Number>(static_cast<T>(static_cast<Number>(value))); };
      const Number log = rounded(std::log(1 - static_cast<Number>(values[j])));
      const Number radius = rounded(std::sqrt(-2 * log));
      const Number angle = rounded(two_pi * static_cast<double>(static_cast<Number>(values[j + 8])));
      values[j] = static_cast<T>(radius * rounded(std::cos(angle)));
      values[j + 8] = static_cast<T>(radius * rounded(std::sin(angle)));
    }
  }
}

}  // namespace detail

template <Scalar T>
void TorchGenerator::randn(std::span<T> values) {
  const std::size_t size = values.size();
  if (size < 16) {
    for (T& value : values) value = static_cast<T>(static_cast<compute_t<T>>(normal()));
    return;
  }
  for (T& value : values) value = uniform<T>();
  for (std::size_t i = 0; i + 16 <= size; i += 16) detail::torch_normal_block(values.data() + i);
  if (size % 16 == 0) return;
  T* const tail = values.data() + size - 16;  // the last sixteen are drawn again
  for (int i = 0; i < 16; ++i) tail[i] = uniform<T>();
  detail::torch_normal_block(tail);
}

/// The path of short tensors: Box-Muller in double, one pair at a time.
inline double TorchGenerator::normal() {
  if (spare_) {
    const double value = *spare_;
    spare_.reset();
    return value;
  }
  const double angle = detail::two_pi * uniform<double>();
  const double radius = std::sqrt(-2 * std::log1p(-uniform<double>()));
  spare_ = radius * std::sin(angle);
  return radius * std::cos(angle);
}

}  // namespace lpo::inline LPO_ABI
