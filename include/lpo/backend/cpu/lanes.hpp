// SPDX-License-Identifier: MIT
// Lane helpers of the CPU kernels: rows whose length is no multiple of the pack, transposed tiles, unrolled loops.
#pragma once

#include <bit>
#include <cstring>
#include <utility>

#include <lpo/base/extents.hpp>
#include <lpo/tensor/wide_pack.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

/// What a kernel on storage T computes with: a pack of floats, or one double.
template <class T>
struct LanesOf {
  using type = Pack;
};
template <>
struct LanesOf<double> {
  using type = double;
};
template <class T>
using lanes_t = typename LanesOf<T>::type;

/// Calls `body(integral_constant<int, 0>)` … `body(integral_constant<int, Count - 1>)`: arrays of packs indexed by it
/// stay in registers at every optimisation level.
template <int Count, class Body>
LPO_ALWAYS_INLINE void unroll(Body&& body) {
  [&]<int... I>(std::integer_sequence<int, I...>) __attribute__((always_inline)) {
    (body(std::integral_constant<int, I>{}), ...);
  }
  (std::make_integer_sequence<int, Count>{});
}

/// load_lanes, without the intrinsic about whose header g++ 12 warns (an uninitialised value that is masked out).
template <class V, class T>
LPO_ALWAYS_INLINE V load_all(const T* p) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, half> && std::is_same_v<V, Pack>)
    return std::bit_cast<Pack>(_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#endif
  return load_lanes<V>(p);
}

/// Loads the first `count` lanes (1 <= count < width) from p; the others are `fill`. Nothing beyond them is read.
template <class V, class T>
LPO_ALWAYS_INLINE V load_first(const T* p, index_t count, float fill) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float> && std::is_same_v<V, Pack>)
    return std::bit_cast<Pack>(
        _mm512_mask_loadu_ps(_mm512_set1_ps(fill), static_cast<__mmask16>((1u << count) - 1u), p));
#endif
  constexpr index_t width = LaneTraits<V>::width;
  if constexpr (std::is_same_v<T, float>) {
    float values[width];
    for (index_t lane = 0; lane < width; ++lane) values[lane] = lane < count ? p[lane] : fill;
    return load_lanes<V>(values);
  } else {
    T values[width];
    std::memset(static_cast<void*>(values), 0, sizeof(values));
    std::memcpy(static_cast<void*>(values), p, static_cast<std::size_t>(count) * sizeof(T));
    float numbers[width];
    store_lanes(numbers, load_all<V>(values));
    for (index_t lane = count; lane < width; ++lane) numbers[lane] = fill;
    return load_lanes<V>(numbers);
  }
}

template <class V, class T>
LPO_ALWAYS_INLINE void store_first(T* p, index_t count, V value) {
#if defined(__AVX512F__)
  if constexpr (std::is_same_v<T, float> && std::is_same_v<V, Pack>) {
    _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1u), std::bit_cast<__m512>(value));
    return;
  }
#endif
  T values[LaneTraits<V>::width];
  store_lanes(values, value);
  std::memcpy(static_cast<void*>(p), values, static_cast<std::size_t>(count) * sizeof(T));
}

/// A whole pack (or one double) at a time.
template <class V>
struct AllLanes {
  template <class T>
  LPO_ALWAYS_INLINE V load(const T* p, typename LaneTraits<V>::scalar = 0) const {
    return load_all<V>(p);
  }
  template <class T>
  LPO_ALWAYS_INLINE void store(T* p, V value) const {
    store_lanes(p, value);
  }
};

/// The last, shorter piece of a row.
template <class V>
struct SomeLanes {
  index_t count;

  template <class T>
  LPO_ALWAYS_INLINE V load(const T* p, float fill = 0.0f) const {
    return load_first<V>(p, count, fill);
  }
  template <class T>
  LPO_ALWAYS_INLINE void store(T* p, V value) const {
    store_first(p, count, value);
  }
};

/// Walks [begin, end) in packs: `body(at, lanes)`, where `lanes.load(p + at)` and `lanes.store(p + at, v)` keep within
/// it.
template <class V, class Body>
LPO_ALWAYS_INLINE void for_lanes(index_t begin, index_t end, Body&& body) {
  constexpr index_t width = LaneTraits<V>::width;
  index_t at = begin;
  for (; at + width <= end; at += width) body(at, AllLanes<V>{});
  if constexpr (width > 1) {
    if (at < end) body(at, SomeLanes<V>{end - at});
  }
}

/// Rounded up to whole packs.
template <class V>
constexpr index_t padded(index_t count) {
  constexpr index_t width = LaneTraits<V>::width;
  return (count + width - 1) / width * width;
}

// One step of a transposition by halves: swaps bit `Step` of the row number with the same bit of the lane number.
template <int Step, class V, int... Lane>
LPO_ALWAYS_INLINE void exchange(V& low, V& high, std::integer_sequence<int, Lane...>) {
  constexpr int width = static_cast<int>(sizeof...(Lane));
  const V a = low, b = high;
  low = shuffle_lanes<((Lane & Step) == 0 ? Lane : Lane - Step + width)...>(a, b);
  high = shuffle_lanes<((Lane & Step) == 0 ? Lane + Step : Lane + width)...>(a, b);
}

template <int Step, class V, int width>
LPO_ALWAYS_INLINE void transpose_step(V (&rows)[width]) {
  unroll<width>([&](auto row) __attribute__((always_inline)) {
    if constexpr ((row & Step) == 0)
      exchange<Step>(rows[row], rows[row + Step], std::make_integer_sequence<int, width>{});
  });
  if constexpr (Step * 2 < width) transpose_step<Step * 2>(rows);
}

/// rows[i][lane] becomes rows[lane][i].
template <class V>
LPO_ALWAYS_INLINE void transpose_lanes(V (&rows)[LaneTraits<V>::width]) {
  transpose_step<1>(rows);
}
LPO_ALWAYS_INLINE void transpose_lanes(double (&)[1]) {}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
