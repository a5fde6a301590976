// SPDX-License-Identifier: MIT
// The register tile behind the CPU's matrix products and convolutions, for every instruction set that may run it.
//
//   c[r][j] = (start[j] or c[r][j] or 0) + sum_l a(r, l) b(l)[j],   r < 6, j < up to 2 or 4 registers, l < k
//
// What was in c is added last: parts of a long sum are summed separately, which rounds less than one number after another.
// The tile keeps 12 (24 with 512 bits) accumulators. Its loop reads operands at constant distances and is unrolled, so
// that little but loads and multiply-adds is left: where a core is shared with another thread, instructions count.
// It is compiled for every instruction set that beats the one of the translation unit and chosen when the program runs
// (TileKernel): no -march is needed for it.
#pragma once

#include <algorithm>
#include <cstring>
#include <type_traits>

#include <lpo/backend/cpu/isa.hpp>
#include <lpo/base/device.hpp>
#include <lpo/base/extents.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

inline constexpr int tile_rows = 6;
inline constexpr index_t tile_columns_max = 64;  // of float, in 512-bit registers

/// What one tile does.
template <class S>
struct TileWork {
  index_t k = 0;
  const S* const* lines = nullptr;  ///< A in place: element l of row r is lines[r][at + l]
  index_t at = 0;
  const S* packed = nullptr;  ///< A in a block: element l of row r is packed[l * tile_rows + r]
  const S* b = nullptr;       ///< lines kernel.columns() apart
  S* const* c = nullptr;      ///< a pointer per row, and those of the next tile, which are fetched ahead
  index_t column = 0;         ///< of c
  const S* start = nullptr;   ///< what every row starts from, if anything
  bool add = false;           ///< whether to add to what is there
};

/// The register tile for one instruction set: tiles are up to `packs` registers of `lanes` numbers wide.
template <class S>
struct TileKernel {
  using Run = void (*)(const TileWork<S>&);
  int lanes, packs;
  Run in_place[4], packed[4];  ///< [registers used - 1]

  index_t columns() const { return lanes * packs; }
  /// Steps of k after which a tile stops, so that its part of a panel of B stays in the first-level cache for all rows
  /// of a job, and the rows of A in the second: measured 0.98 of the FMA peak instead of 0.55 with 256-bit registers.
  index_t depth() const {
    const index_t bytes = packs == 4 ? 32768 : 20480;
    return std::min<index_t>(320, bytes / (columns() * static_cast<index_t>(sizeof(S))));
  }
};

/// The kernel for this machine; tile_kernels() below lists all that run on it.
template <class S>
const TileKernel<S>& tile_kernel();

/// The body of a tile in registers of `bytes`. It is inlined into one function per instruction set: what it is compiled
/// to is decided by the target of that function.
template <class S, int bytes, int tile_packs, int packs, bool packed>
LPO_ALWAYS_INLINE void product_tile(const TileWork<S>& work) {
  typedef S V __attribute__((vector_size(bytes)));
  constexpr int lanes = bytes / static_cast<int>(sizeof(S)), columns = lanes * tile_packs, unrolled = 4;
  V sum[tile_rows][packs];
  const S* row[tile_rows];
LPO_UNROLL(6)
  for (int r = 0; r < tile_rows; ++r) {
    row[r] = packed ? work.packed : work.lines[r] + work.at;
    __builtin_prefetch(work.c[r + tile_rows] + work.column, 1);
LPO_UNROLL(4)
    for (int p = 0; p < packs; ++p) {
      sum[r][p] = V{};
      if (work.start != nullptr) std::memcpy(&sum[r][p], work.start + p * lanes, sizeof(V));
    }
  }
  const S* left = work.packed;
  const S* right = work.b;
  auto step = [&](index_t l, int u) __attribute__((always_inline)) {
    V line[packs];
LPO_UNROLL(4)
    for (int p = 0; p < packs; ++p) std::memcpy(&line[p], right + u * columns + p * lanes, sizeof(V));
LPO_UNROLL(6)
    for (int r = 0; r < tile_rows; ++r) {
      const V value = (packed ? left[u * tile_rows + r] : row[r][l]) - V{};  // x - 0 is x: a broadcast, no addition
LPO_UNROLL(4)
      for (int p = 0; p < packs; ++p) sum[r][p] += value * line[p];
    }
  };
  index_t l = 0;
  for (; l + unrolled <= work.k; l += unrolled) {
LPO_UNROLL(4)
    for (int u = 0; u < unrolled; ++u) step(l + u, u);
    right += unrolled * columns;
    if constexpr (packed) left += unrolled * tile_rows;
  }
  for (; l < work.k; ++l) {
    step(l, 0);
    right += columns;
    if constexpr (packed) left += tile_rows;
  }
LPO_UNROLL(6)
  for (int r = 0; r < tile_rows; ++r) {
LPO_UNROLL(4)
    for (int p = 0; p < packs; ++p) {
      S* const to = work.c[r] + work.column + p * lanes;
      if (work.add) {
        V before;
        std::memcpy(&before, to, sizeof(V));
        sum[r][p] += before;
      }
      std::memcpy(to, &sum[r][p], sizeof(V));
    }
  }
}

/// Defines the kernel `Name` whose tiles have the function attribute `target`.
#define LPO_TILE_KERNEL(Name, bytes, tile_packs, target)                                      \
  template <class S>                                                                          \
  struct Name {                                                                               \
    template <int packs, bool packed>                                                         \
    target static __attribute__((noinline)) void run(const TileWork<S>& work) {               \
      product_tile<S, bytes, tile_packs, packs, packed>(work);                                \
      if constexpr (bytes > LPO_SIMD_BYTES) LPO_LEAVE_WIDE_REGISTERS();                       \
    }                                                                                         \
    static constexpr int third = tile_packs == 4 ? 3 : 2;                                     \
    static constexpr TileKernel<S> kernel{                                                    \
        bytes / static_cast<int>(sizeof(S)),                                                  \
        tile_packs,                                                                           \
        {&run<1, false>, &run<2, false>, &run<third, false>, &run<tile_packs, false>},        \
        {&run<1, true>, &run<2, true>, &run<third, true>, &run<tile_packs, true>}};           \
  };
LPO_TILE_KERNEL(NativeTile, LPO_SIMD_BYTES, (LPO_SIMD_BYTES == 64 ? 4 : 2), )
#if defined(LPO_TARGET_256)
LPO_TILE_KERNEL(Tile256, 32, 2, LPO_TARGET_256)
#endif
#if defined(LPO_TARGET_512)
LPO_TILE_KERNEL(Tile512, 64, 4, LPO_TARGET_512)
#endif
#undef LPO_TILE_KERNEL

/// The kernels that run on this machine, the widest first.
template <class S>
struct TileKernels {
  const TileKernel<S>* kernel[3] = {};
  int count = 0;

  TileKernels() {
    [[maybe_unused]] const int bytes = machine_simd_bytes();
#if defined(LPO_TARGET_512)
    if (bytes >= 64) kernel[count++] = &Tile512<S>::kernel;
#endif
#if defined(LPO_TARGET_256)
    if (bytes >= 32) kernel[count++] = &Tile256<S>::kernel;
#endif
    kernel[count++] = &NativeTile<S>::kernel;
  }
};

template <class S>
const TileKernels<S>& tile_kernels() {
  static const TileKernels<S> kernels;
  return kernels;
}

template <class S>
const TileKernel<S>& tile_kernel() {
  return *tile_kernels<S>().kernel[0];
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
