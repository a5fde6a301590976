// SPDX-License-Identifier: MIT
// Products of a warpgroup's tiles on Hopper's tensor cores (wgmma): operands in shared memory, float sums in registers.
//
// Operands are tiles of 16-bit numbers as bulk tensor copies with the 128-byte swizzle leave them: rows of 64 numbers,
// groups of eight rows in 1024 bytes. Either the summed index runs along a row (major_k) or the rows are the summed
// index and m or n runs along them (major_mn); then 64 columns and all their rows form a panel, and the panels follow
// each other. Only code for sm_90a holds these instructions.
#pragma once

#include <cstdint>

#include <lpo/backend/cuda/bulk_tensor.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

enum class TileMajor { k, mn };

inline constexpr int tile_row_bytes = 128;

/// Describes a tile to the tensor cores; `panel_bytes` is the distance of panels of an mn-major tile.
template <TileMajor major>
__device__ __forceinline__ std::uint64_t tile_descriptor(const unsigned char* tile, int panel_bytes) {
  const auto field = [](unsigned bytes) { return static_cast<std::uint64_t>((bytes & 0x3ffffu) >> 4); };
  const std::uint64_t panel = major == TileMajor::k ? 1 : field(static_cast<unsigned>(panel_bytes));
  constexpr std::uint64_t swizzle_128 = std::uint64_t{1} << 62;
  return field(shared_address(tile)) | panel << 16 | field(8 * tile_row_bytes) << 32 | swizzle_128;
}

/// How far a descriptor advances for the next 16 of the summed index.
template <TileMajor major>
inline constexpr std::uint64_t tile_advance = (major == TileMajor::k ? 32 : 16 * tile_row_bytes) >> 4;

#define LPO_REGISTERS_64                                                             \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"             \
  ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31" \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
  ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define LPO_REGISTERS_80 \
  LPO_REGISTERS_64       \
  ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define LPO_SUMS_16(d, i)                                                                                     \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), "+f"(d[i + 6]), \
      "+f"(d[i + 7]), "+f"(d[i + 8]), "+f"(d[i + 9]), "+f"(d[i + 10]), "+f"(d[i + 11]), "+f"(d[i + 12]),      \
      "+f"(d[i + 13]), "+f"(d[i + 14]), "+f"(d[i + 15])
#define LPO_SUMS_64(d) LPO_SUMS_16(d, 0), LPO_SUMS_16(d, 16), LPO_SUMS_16(d, 32), LPO_SUMS_16(d, 48)
#define LPO_SUMS_80(d) LPO_SUMS_64(d), LPO_SUMS_16(d, 64)
// One instruction: d += a b. `at_a` and so on are the operands' numbers, which follow the sums.
#define LPO_WARPGROUP_PRODUCT(shape, types, registers, sums, at_a, at_b, at_one, at_a_mn, at_b_mn)       \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" at_one                                           \
               ", 0;\n"                                                                                  \
               "wgmma.mma_async.sync.aligned." shape ".f32." types " {" registers "}, %" at_a ", %" at_b \
               ", add, 1, 1, %" at_a_mn ", %" at_b_mn ";\n}\n"                                           \
               : sums                                                                                    \
               : "l"(a), "l"(b), "r"(1), "n"(a_major == TileMajor::mn), "n"(b_major == TileMajor::mn))

/// sums [64, 2 * Count] += a [64, 16] b [16, 2 * Count], asynchronously. Thread t of the warpgroup holds, for each
/// eight columns 8 j, the elements 4 j .. 4 j + 3: columns 8 j + 2 (t % 4) + {0, 1} of row 16 (t / 32) + t / 4 % 8,
/// then of the row 8 below.
template <class T, TileMajor a_major, TileMajor b_major, int Count>
__device__ __forceinline__ void warpgroup_product(float (&sums)[Count], std::uint64_t a, std::uint64_t b) {
  static_assert(Count == 64 || Count == 80);
  if constexpr (Count == 64 && std::is_same_v<T, bfloat16>) {
    LPO_WARPGROUP_PRODUCT("m64n128k16", "bf16.bf16", LPO_REGISTERS_64, LPO_SUMS_64(sums), "64", "65", "66", "67", "68");
  } else if constexpr (Count == 64) {
    LPO_WARPGROUP_PRODUCT("m64n128k16", "f16.f16", LPO_REGISTERS_64, LPO_SUMS_64(sums), "64", "65", "66", "67", "68");
  } else if constexpr (std::is_same_v<T, bfloat16>) {
    LPO_WARPGROUP_PRODUCT("m64n160k16", "bf16.bf16", LPO_REGISTERS_80, LPO_SUMS_80(sums), "80", "81", "82", "83", "84");
  } else {
    LPO_WARPGROUP_PRODUCT("m64n160k16", "f16.f16", LPO_REGISTERS_80, LPO_SUMS_80(sums), "80", "81", "82", "83", "84");
  }
}

#undef LPO_REGISTERS_64
#undef LPO_REGISTERS_80
#undef LPO_SUMS_16
#undef LPO_SUMS_64
#undef LPO_SUMS_80
#undef LPO_WARPGROUP_PRODUCT

/// Before the first product after the sums were touched.
__device__ __forceinline__ void warpgroup_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// Closes the group of products issued since the last call.
__device__ __forceinline__ void warpgroup_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// Waits until at most Pending groups are under way.
template <int Pending>
__device__ __forceinline__ void warpgroup_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

template <int Registers>
__device__ __forceinline__ void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(Registers));
}
template <int Registers>
__device__ __forceinline__ void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(Registers));
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
