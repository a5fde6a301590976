// SPDX-License-Identifier: MIT
// Device tags: where a tensor lives and which backend computes on it.
#pragma once

#include <lpo/base/config.hpp>

namespace lpo::inline LPO_ABI {

/// Host memory, computed by backend/cpu (SIMD packs, threads).
struct Cpu {};
/// Host memory, computed by backend/reference (plain loops, double sums): the oracle.
struct Reference {};
/// Device memory, computed by backend/cuda.
struct Cuda {};

template <class Device>
inline constexpr bool is_host_device = false;
template <>
inline constexpr bool is_host_device<Cpu> = true;
template <>
inline constexpr bool is_host_device<Reference> = true;

namespace detail {
template <class...>
inline constexpr bool always_false = false;
}  // namespace detail

}  // namespace lpo::inline LPO_ABI
