// SPDX-License-Identifier: MIT
// with_lanes: runs a loop over packs compiled for the widest registers of this machine.
#pragma once

#include <type_traits>

#include <lpo/backend/cpu/isa.hpp>
#include <lpo/backend/cpu/lanes.hpp>
#include <lpo/tensor/wide_pack.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

// The body is a copy: what it captured by value stays in registers, whatever the loop writes.
template <class V, class Body>
__attribute__((noinline)) void run_native(Body body) {
  body.template operator()<V>();
}
#if defined(LPO_TARGET_256)
template <class Body>
LPO_TARGET_256 __attribute__((noinline)) void run_256(Body body) {
  body.template operator()<WidePack<32>>();
  LPO_LEAVE_WIDE_REGISTERS();
}
#endif
#if defined(LPO_TARGET_512)
template <class Body>
LPO_TARGET_512 __attribute__((noinline)) void run_512(Body body) {
  body.template operator()<WidePack<64>>();
  LPO_LEAVE_WIDE_REGISTERS();
}
#endif

/// Calls `body.template operator()<V>()` with the widest V that this machine computes storage T in: one double, the
/// unit's Pack, or a WidePack inside a function for that instruction set. The body and all that it hands a V to must be
/// always-inlined: what is not is compiled for the unit's own registers, correct and many times slower. It captures by
/// value what its inner loop reads: references would be followed again after every store.
template <class T, class Body>
void with_lanes(Body&& body) {
  using V = lanes_t<T>;
  auto run = &run_native<V, std::remove_reference_t<Body>>;
  if constexpr (!std::is_same_v<V, double>) {
    [[maybe_unused]] const int bytes = machine_simd_bytes();
#if defined(LPO_TARGET_256)
    if (bytes == 32) run = &run_256<std::remove_reference_t<Body>>;
#endif
#if defined(LPO_TARGET_512)
    if (bytes == 64) run = &run_512<std::remove_reference_t<Body>>;
#endif
  }
  run(body);
}

/// Lanes of the V that with_lanes<T> chooses.
template <class T>
int machine_lanes() {
  if constexpr (std::is_same_v<lanes_t<T>, double>)
    return 1;
  else
    return machine_simd_bytes() / static_cast<int>(sizeof(float));
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
