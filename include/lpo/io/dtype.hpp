// SPDX-License-Identifier: MIT
// Element types of tensors in files, and bulk conversion between them and the types lpo computes with.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <string_view>
#include <type_traits>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>
#include <lpo/base/scalar.hpp>
#include <lpo/tensor/pack.hpp>

namespace lpo::inline LPO_ABI {

/// Element types of the safetensors format, in its order: a later one is never narrower. Little-endian in files.
enum class DType : std::uint8_t { BOOL, U8, I8, F8_E5M2, F8_E4M3, I16, U16, F16, BF16, I32, U32, F32, F64, I64, U64 };

inline constexpr int dtype_count = 15;

/// The name in a file's header, for example "BF16".
constexpr std::string_view dtype_name(DType dtype) {
  constexpr std::string_view names[dtype_count] = {"BOOL", "U8",  "I8",  "F8_E5M2", "F8_E4M3", "I16", "U16", "F16",
                                                   "BF16", "I32", "U32", "F32",     "F64",     "I64", "U64"};
  return names[static_cast<int>(dtype)];
}

/// Bytes of one element.
constexpr std::size_t dtype_size(DType dtype) {
  constexpr std::uint8_t sizes[dtype_count] = {1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 8, 8, 8};
  return sizes[static_cast<int>(dtype)];
}

/// True for F8 up to F64, false for booleans and integers.
constexpr bool is_floating(DType dtype) {
  return dtype == DType::F8_E5M2 || dtype == DType::F8_E4M3 || dtype == DType::F16 || dtype == DType::BF16 ||
         dtype == DType::F32 || dtype == DType::F64;
}

/// The type with this name, or nothing.
constexpr std::optional<DType> dtype_of_name(std::string_view name) {
  for (int i = 0; i < dtype_count; ++i)
    if (dtype_name(static_cast<DType>(i)) == name) return static_cast<DType>(i);
  return std::nullopt;
}

namespace detail {

struct Float8E5M2 {
  std::uint8_t bits;
};
struct Float8E4M3 {
  std::uint8_t bits;
};
struct Boolean {
  std::uint8_t bits;
};

/// half to float without branches, and without arithmetic on subnormal floats, which is slow.
inline float half_to_float(std::uint16_t bits) {
  const std::uint32_t shifted = static_cast<std::uint32_t>(bits & 0x7fffu) << 13;
  const float subnormal = std::bit_cast<float>(shifted | 0x38800000u) - 0x1p-14f;
  const std::uint32_t special = shifted >= 0x0f800000u ? 0x7f800000u : 0u;  // infinity and NaN
  const std::uint32_t normal = (shifted + 0x38000000u) | special;
  const std::uint32_t magnitude = shifted < 0x00800000u ? std::bit_cast<std::uint32_t>(subnormal) : normal;
  return std::bit_cast<float>(magnitude | (static_cast<std::uint32_t>(bits & 0x8000u) << 16));
}

/// E4M3 is a half with a shorter exponent field.
inline float float8_e4m3_value(std::uint8_t bits) {
  if ((bits & 0x7f) == 0x7f) return std::numeric_limits<float>::quiet_NaN();
  const float magnitude = half_to_float(static_cast<std::uint16_t>((bits & 0x7f) << 7)) * 256.0f;
  return (bits & 0x80) != 0 ? -magnitude : magnitude;
}

/// Rounds to a float with `mantissa_bits` and least normal exponent `least`; nearest even, overflow left to the caller.
inline float round_mantissa(float magnitude, int mantissa_bits, int least) {
  int exponent = 0;
  std::frexp(magnitude, &exponent);  // magnitude = m 2^exponent with m in [1/2, 1)
  const int quantum = std::max(exponent - 1, least) - mantissa_bits;
  return std::ldexp(std::nearbyint(std::ldexp(magnitude, -quantum)), quantum);
}

/// Bits of a rounded magnitude in a format with `mantissa_bits` and exponent bias 1 - `least`.
inline std::uint8_t small_float_bits(float rounded, int mantissa_bits, int least) {
  if (rounded == 0.0f) return 0;
  int exponent = 0;
  std::frexp(rounded, &exponent);
  const int clamped = std::max(exponent - 1, least);
  const int significand = static_cast<int>(std::ldexp(rounded, mantissa_bits - clamped));
  // A significand below 2^mantissa_bits is subnormal: its field then reads exponent 0 by the same sum.
  return static_cast<std::uint8_t>(((clamped - least) << mantissa_bits) + significand);
}

/// FP8 E5M2: like half with 2 mantissa bits; overflow becomes infinity.
inline std::uint8_t float8_e5m2_bits(float value) {
  const std::uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (std::isnan(value)) return static_cast<std::uint8_t>(sign | 0x7f);
  const float rounded = std::isinf(value) ? value : round_mantissa(std::fabs(value), 2, -14);
  if (std::fabs(rounded) > 57344.0f) return static_cast<std::uint8_t>(sign | 0x7c);
  return static_cast<std::uint8_t>(sign | small_float_bits(rounded, 2, -14));
}

/// FP8 E4M3 ("fn"): no infinities, largest value 448; beyond it NaN.
inline std::uint8_t float8_e4m3_bits(float value) {
  const std::uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (!std::isfinite(value)) return static_cast<std::uint8_t>(sign | 0x7f);
  const float rounded = round_mantissa(std::fabs(value), 3, -6);
  if (rounded > 448.0f) return static_cast<std::uint8_t>(sign | 0x7f);
  return static_cast<std::uint8_t>(sign | small_float_bits(rounded, 3, -6));
}

/// Calls `function(std::type_identity<T>{})` with the C++ type that stores `dtype`.
template <class Function>
decltype(auto) with_storage_type(DType dtype, Function&& function) {
  switch (dtype) {
    case DType::BOOL:
      return function(std::type_identity<Boolean>{});
    case DType::U8:
      return function(std::type_identity<std::uint8_t>{});
    case DType::I8:
      return function(std::type_identity<std::int8_t>{});
    case DType::F8_E5M2:
      return function(std::type_identity<Float8E5M2>{});
    case DType::F8_E4M3:
      return function(std::type_identity<Float8E4M3>{});
    case DType::I16:
      return function(std::type_identity<std::int16_t>{});
    case DType::U16:
      return function(std::type_identity<std::uint16_t>{});
    case DType::F16:
      return function(std::type_identity<half>{});
    case DType::BF16:
      return function(std::type_identity<bfloat16>{});
    case DType::I32:
      return function(std::type_identity<std::int32_t>{});
    case DType::U32:
      return function(std::type_identity<std::uint32_t>{});
    case DType::F32:
      return function(std::type_identity<float>{});
    case DType::F64:
      return function(std::type_identity<double>{});
    case DType::I64:
      return function(std::type_identity<std::int64_t>{});
    case DType::U64:
      return function(std::type_identity<std::uint64_t>{});
  }
  throw ValueError("[dtype] not an element type");
}

/// The arithmetic value (a float, double or integer) of one stored element.
template <class Stored>
auto arithmetic_value(Stored stored) {
  if constexpr (std::is_arithmetic_v<Stored>) {
    return stored;
  } else if constexpr (std::is_same_v<Stored, half>) {
    return half_to_float(stored.bits);
  } else if constexpr (std::is_same_v<Stored, bfloat16>) {
    return static_cast<float>(stored);
  } else if constexpr (std::is_same_v<Stored, Float8E5M2>) {
    return half_to_float(static_cast<std::uint16_t>(stored.bits << 8));
  } else if constexpr (std::is_same_v<Stored, Float8E4M3>) {
    return float8_e4m3_value(stored.bits);
  } else {
    static_assert(std::is_same_v<Stored, Boolean>);
    return static_cast<std::uint8_t>(stored.bits != 0 ? 1 : 0);
  }
}

/// Rounds to nearest and clamps to the range of `Integer`; NaN becomes 0.
template <class Integer>
Integer clamped_integer(double value) {
  if (std::isnan(value)) return Integer{0};
  const double rounded = std::nearbyint(value);
  if (rounded <= static_cast<double>(std::numeric_limits<Integer>::min())) return std::numeric_limits<Integer>::min();
  if (rounded >= static_cast<double>(std::numeric_limits<Integer>::max())) return std::numeric_limits<Integer>::max();
  return static_cast<Integer>(rounded);
}

template <class Stored, class Value>
Stored stored_value(Value value) {
  if constexpr (std::is_same_v<Stored, half> || std::is_same_v<Stored, bfloat16>) {
    return Stored(static_cast<float>(value));
  } else if constexpr (std::is_same_v<Stored, Float8E5M2>) {
    return Stored{float8_e5m2_bits(static_cast<float>(value))};
  } else if constexpr (std::is_same_v<Stored, Float8E4M3>) {
    return Stored{float8_e4m3_bits(static_cast<float>(value))};
  } else if constexpr (std::is_same_v<Stored, Boolean>) {
    return Stored{static_cast<std::uint8_t>(value != Value{0} ? 1 : 0)};
  } else if constexpr (std::is_integral_v<Stored> && std::is_floating_point_v<Value>) {
    return clamped_integer<Stored>(static_cast<double>(value));
  } else {
    return static_cast<Stored>(value);
  }
}

/// Whether registers convert between the two types in a few instructions.
template <class From, class To>
constexpr bool packs_convert() {
#if (defined(__F16C__) && defined(__AVX2__)) || defined(__AVX512F__)
  constexpr auto fits = []<class T>(std::type_identity<T>) {
    return std::is_same_v<T, float> || std::is_same_v<T, half> || std::is_same_v<T, bfloat16>;
  };
  return fits(std::type_identity<From>{}) && fits(std::type_identity<To>{});
#else
  return false;
#endif
}

/// Data in files need not be aligned: packs load and store at any address, single elements go through memcpy.
template <class From, class To>
void convert_elements(const void* source, void* destination, index_t count) {
  if constexpr (std::is_same_v<From, To>) {
    if (count > 0) std::memcpy(destination, source, static_cast<std::size_t>(count) * sizeof(To));
  } else {
    const auto from = [&](index_t i) { return static_cast<const unsigned char*>(source) + i * static_cast<index_t>(sizeof(From)); };
    const auto to = [&](index_t i) { return static_cast<unsigned char*>(destination) + i * static_cast<index_t>(sizeof(To)); };
    index_t at = 0;
    if constexpr (packs_convert<From, To>())
      for (; at + pack_width <= count; at += pack_width)
        store_pack(reinterpret_cast<To*>(to(at)), load_pack(reinterpret_cast<const From*>(from(at))));
    for (; at < count; ++at) {
      From input;
      std::memcpy(&input, from(at), sizeof(From));
      const To output = stored_value<To>(arithmetic_value(input));
      std::memcpy(to(at), &output, sizeof(To));
    }
  }
}

}  // namespace detail

/// The DType that stores elements of type `T`.
template <class T>
constexpr DType dtype_of() {
  if constexpr (std::is_same_v<T, float>)
    return DType::F32;
  else if constexpr (std::is_same_v<T, double>)
    return DType::F64;
  else if constexpr (std::is_same_v<T, half>)
    return DType::F16;
  else if constexpr (std::is_same_v<T, bfloat16>)
    return DType::BF16;
  else if constexpr (std::is_same_v<T, bool>)
    return DType::BOOL;
  else {
    static_assert(std::is_integral_v<T>,
                  "lpo dtype_of: no file format element type for T; use a float or integer type");
    constexpr bool with_sign = std::is_signed_v<T>;
    if constexpr (sizeof(T) == 1)
      return with_sign ? DType::I8 : DType::U8;
    else if constexpr (sizeof(T) == 2)
      return with_sign ? DType::I16 : DType::U16;
    else if constexpr (sizeof(T) == 4)
      return with_sign ? DType::I32 : DType::U32;
    else
      return with_sign ? DType::I64 : DType::U64;
  }
}

/// Converts `count` elements of type `from` at `source` (any alignment) to type `to` at `destination`.
/// Floats round to nearest even; floats to integers round and clamp; overflow to F16 and F8_E5M2 is infinity, to
/// F8_E4M3 NaN. Among F32, F16 and BF16 a NaN stays a NaN of the same sign; its other bits are not promised.
inline void convert(DType from, const void* source, DType to, void* destination, index_t count) {
  detail::with_storage_type(from, [&](auto from_tag) {
    detail::with_storage_type(to, [&](auto to_tag) {
      detail::convert_elements<typename decltype(from_tag)::type, typename decltype(to_tag)::type>(source, destination,
                                                                                                   count);
    });
  });
}

/// `count` elements of type `from` at `source` (any alignment) to values of type `To`.
template <class To>
void convert_from(DType from, const void* source, To* destination, index_t count) {
  detail::with_storage_type(
      from, [&](auto tag) { detail::convert_elements<typename decltype(tag)::type, To>(source, destination, count); });
}

/// `count` values of type `From` to elements of type `to` at `destination` (any alignment).
template <class From>
void convert_to(DType to, const From* source, void* destination, index_t count) {
  detail::with_storage_type(
      to, [&](auto tag) { detail::convert_elements<From, typename decltype(tag)::type>(source, destination, count); });
}

}  // namespace lpo::inline LPO_ABI
