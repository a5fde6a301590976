// SPDX-License-Identifier: MIT
// Products of a warpgroup's tiles on Hopper's tensor cores (wgmma): operands in shared memory, the left one also in
// registers; float sums in registers.
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

// Operands by their numbers in the instruction: the sums come first, the others count on from there.
#define LPO_REGISTERS_20 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19"
#define LPO_REGISTERS_32 LPO_REGISTERS_20 ", %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define LPO_REGISTERS_40 LPO_REGISTERS_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define LPO_REGISTERS_48 LPO_REGISTERS_40 ", %40, %41, %42, %43, %44, %45, %46, %47"
#define LPO_REGISTERS_64 \
  LPO_REGISTERS_48 ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define LPO_REGISTERS_80 \
  LPO_REGISTERS_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define LPO_NUMBERS_20 "20", "21", "22", "23", "24", "25", "26"
#define LPO_NUMBERS_32 "32", "33", "34", "35", "36", "37", "38"
#define LPO_NUMBERS_40 "40", "41", "42", "43", "44", "45", "46"
#define LPO_NUMBERS_48 "48", "49", "50", "51", "52", "53", "54"
#define LPO_NUMBERS_64 "64", "65", "66", "67", "68", "69", "70"
#define LPO_NUMBERS_80 "80", "81", "82", "83", "84", "85", "86"
#define LPO_SUMS_4(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define LPO_SUMS_16(i) LPO_SUMS_4(i), LPO_SUMS_4(i + 4), LPO_SUMS_4(i + 8), LPO_SUMS_4(i + 12)
#define LPO_SUMS_20 LPO_SUMS_16(0), LPO_SUMS_4(16)
#define LPO_SUMS_32 LPO_SUMS_16(0), LPO_SUMS_16(16)
#define LPO_SUMS_40 LPO_SUMS_32, LPO_SUMS_4(32), LPO_SUMS_4(36)
#define LPO_SUMS_48 LPO_SUMS_32, LPO_SUMS_16(32)
#define LPO_SUMS_64 LPO_SUMS_48, LPO_SUMS_16(48)
#define LPO_SUMS_80 LPO_SUMS_64, LPO_SUMS_16(64)
// One instruction, sums = a b + (add ? sums : 0): with `a` in shared memory, and with `a` in registers.
#define LPO_PRODUCT_OF_TILES(shape, registers, n0, n1, n2, n3, n4, n5, n6, ...)                                       \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" n2 ", 0;\nwgmma.mma_async.sync.aligned." shape " {" registers \
               "}, %" n0 ", %" n1 ", add, 1, 1, %" n3 ", %" n4 ";\n}\n"                                               \
               : __VA_ARGS__                                                                                          \
               : "l"(a), "l"(b), "r"(add ? 1 : 0), "n"(a_major == TileMajor::mn), "n"(b_major == TileMajor::mn))
#define LPO_PRODUCT_OF_REGISTERS(shape, registers, n0, n1, n2, n3, n4, n5, n6, ...)                                   \
  asm volatile("{\n.reg .pred add;\nsetp.ne.b32 add, %" n5 ", 0;\nwgmma.mma_async.sync.aligned." shape " {" registers \
               "}, {%" n0 ", %" n1 ", %" n2 ", %" n3 "}, %" n4 ", add, 1, 1, %" n6 ";\n}\n"                           \
               : __VA_ARGS__                                                                                          \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(add ? 1 : 0), "n"(b_major == TileMajor::mn))
#define LPO_EXPANDED(form, ...) form(__VA_ARGS__)
#define LPO_PRODUCT(form, count, columns)                                                              \
  if constexpr (Count == count && std::is_same_v<T, bfloat16>)                                         \
    LPO_EXPANDED(form, "m64n" columns "k16.f32.bf16.bf16", LPO_REGISTERS_##count, LPO_NUMBERS_##count, \
                 LPO_SUMS_##count);                                                                    \
  else if constexpr (Count == count)                                                                   \
    LPO_EXPANDED(form, "m64n" columns "k16.f32.f16.f16", LPO_REGISTERS_##count, LPO_NUMBERS_##count, LPO_SUMS_##count);

template <int Count>
inline constexpr bool has_product =
    Count == 20 || Count == 32 || Count == 40 || Count == 48 || Count == 64 || Count == 80;

/// sums [64, 2 * Count] (+)= a [64, 16] b [16, 2 * Count], asynchronously. Thread t of the warpgroup holds, for each
/// eight columns 8 j, the elements 4 j .. 4 j + 3: columns 8 j + 2 (t % 4) + {0, 1} of row 16 (t / 32) + t / 4 % 8,
/// then of the row 8 below.
template <class T, TileMajor a_major, TileMajor b_major, int Count>
__device__ __forceinline__ void warpgroup_product(float (&sums)[Count], std::uint64_t a, std::uint64_t b,
                                                  bool add = true) {
  static_assert(has_product<Count>);
  LPO_PRODUCT(LPO_PRODUCT_OF_TILES, 20, "40")
  LPO_PRODUCT(LPO_PRODUCT_OF_TILES, 32, "64")
  LPO_PRODUCT(LPO_PRODUCT_OF_TILES, 40, "80")
  LPO_PRODUCT(LPO_PRODUCT_OF_TILES, 48, "96")
  LPO_PRODUCT(LPO_PRODUCT_OF_TILES, 64, "128")
  LPO_PRODUCT(LPO_PRODUCT_OF_TILES, 80, "160")
}

/// The same with `a` in registers, as pairs of T in the order of sums: columns 2 (t % 4) + {0, 1} of the thread's row,
/// of the row 8 below, then columns 8 further of both. They stay untouched until the product is done.
template <class T, TileMajor b_major, int Count>
__device__ __forceinline__ void warpgroup_product(float (&sums)[Count], const unsigned (&a)[4], std::uint64_t b,
                                                  bool add = true) {
  static_assert(has_product<Count>);
  LPO_PRODUCT(LPO_PRODUCT_OF_REGISTERS, 20, "40")
  LPO_PRODUCT(LPO_PRODUCT_OF_REGISTERS, 32, "64")
  LPO_PRODUCT(LPO_PRODUCT_OF_REGISTERS, 40, "80")
  LPO_PRODUCT(LPO_PRODUCT_OF_REGISTERS, 48, "96")
  LPO_PRODUCT(LPO_PRODUCT_OF_REGISTERS, 64, "128")
  LPO_PRODUCT(LPO_PRODUCT_OF_REGISTERS, 80, "160")
}

#undef LPO_REGISTERS_20
#undef LPO_REGISTERS_32
#undef LPO_REGISTERS_40
#undef LPO_REGISTERS_48
#undef LPO_REGISTERS_64
#undef LPO_REGISTERS_80
#undef LPO_NUMBERS_20
#undef LPO_NUMBERS_32
#undef LPO_NUMBERS_40
#undef LPO_NUMBERS_48
#undef LPO_NUMBERS_64
#undef LPO_NUMBERS_80
#undef LPO_SUMS_4
#undef LPO_SUMS_16
#undef LPO_SUMS_20
#undef LPO_SUMS_32
#undef LPO_SUMS_40
#undef LPO_SUMS_48
#undef LPO_SUMS_64
#undef LPO_SUMS_80
#undef LPO_PRODUCT_OF_TILES
#undef LPO_PRODUCT_OF_REGISTERS
#undef LPO_EXPANDED
#undef LPO_PRODUCT

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
