// SPDX-License-Identifier: MIT
// Tiles of products of bfloat16 with float sums, for machines that multiply pairs: AMX and AVX512_BF16.
//
// Both read the same blocks of 16 x 32 elements:
//   left   [16 rows][32 of k], packed or where they are       right  [16 pairs of k][16 columns][2], packed, 1 KiB
// so that one packing serves both, and a plain loop that stands for the instructions tests everything around them.
// The products of two bfloat16 are exact in float, so nothing is rounded but the sums; subnormal operands and sums
// count as zero.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include <lpo/backend/cpu/isa.hpp>
#include <lpo/backend/cpu/lanes.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {
namespace detail {

inline constexpr index_t pair_lanes = 16;  ///< rows or columns of a block
inline constexpr index_t pair_depth = 32;  ///< elements of k in a block
inline constexpr index_t pair_block = pair_lanes * pair_depth;

/// Sixteen lines of an operand that is stored along k: element l of line i is line[i][l / run * run_step + l % run].
struct PairLines {
  const bfloat16* line[pair_lanes];
  index_t run, run_step;
};

/// 16 rows of the left operand: pair i of row r, of block b, begins at data[step[b] + r * row + i * pair].
struct PairGroup {
  const bfloat16* data;
  index_t row;
  const index_t* step;
  index_t pair;  ///< 2; or 2 * pair_lanes, with row = 2, in blocks that are packed as right ones (PairTiles::broadcasts)
};

inline constexpr index_t pair_together = 2;  ///< groups, and panels, whose sums tiles keep side by side
inline constexpr index_t pair_columns = pair_together * pair_lanes;

/// What a tile computes: sums (+)= left right over `blocks` blocks of k, of up to pair_together groups and panels.
struct PairWork {
  index_t groups, panels, blocks;
  index_t rows;           ///< of the groups; what is behind them may be computed or not
  index_t last_pairs;     ///< of the last block; in both operands what is behind them is zero
  const PairGroup* left;  ///< the groups, and behind them as many that are needed next and fetched meanwhile
  const bfloat16* right;  ///< [blocks][panels] blocks
  float* sums;            ///< [groups][pair_lanes][pair_columns]
  bool begun;             ///< whether `sums` holds something to add to
  bfloat16* to;           ///< if not null, rows of two panels are finished: sums plus `bias`, rounded, go to to[offset[r]]
  const index_t* offset;  ///< [rows]
  const float* bias;      ///< [pair_columns]
};

/// The tiles of one instruction set and the packing for them. k counts from `first_block` blocks on and ends, for the
/// packing, at element `k`: what lies behind it is zero in both operands. Packed blocks begin `step` elements apart.
struct PairTiles {
  index_t cycles;                  ///< that the product of two blocks takes, about
  index_t packing;                 ///< that packing a left block takes beyond reading it, as jobs are cut
  index_t depth;                   ///< blocks of k after which tiles stop, so that parts of two panels stay near
  index_t job_groups, job_panels;  ///< of a job, at most
  bool broadcasts;                 ///< whether left pairs are read one by one: those of operands stored across are packed as right ones
  /// Left or right blocks from lines along k.
  void (*pack_lines[2])(const PairLines& lines, index_t k, index_t first_block, index_t blocks, bfloat16* to,
                        index_t step);
  /// Left or right blocks from an operand stored the other way: element l of line i < valid is from[offset[l] + i].
  /// Up to 32 lines: blocks of the second 16 begin `beside` elements behind those of the first.
  void (*pack_across[2])(const bfloat16* from, const index_t* offset, index_t valid, index_t k, index_t first_block,
                         index_t blocks, bfloat16* to, index_t step, index_t beside);
  void (*begin)();  ///< before a thread runs tiles, and
  void (*end)();    ///< after them
  void (*run)(const PairWork& work);
};

typedef std::uint32_t PairVector __attribute__((vector_size(64)));
typedef float PairSums __attribute__((vector_size(64)));
using PairRow = WidePack<64>;  ///< 16 pairs in the place of 16 floats, which are moved and never computed with

/// Elements [l, l + 32) of a line with runs of any length, zeros from k on.
inline void gather_line(const PairLines& lines, index_t i, index_t l, index_t k, bfloat16* to) {
  std::memset(static_cast<void*>(to), 0, pair_depth * sizeof(bfloat16));
  const index_t end = std::min(k, l + pair_depth);
  for (index_t at = l; at < end;) {
    const index_t within = at % lines.run, count = std::min(end - at, lines.run - within);
    std::memcpy(static_cast<void*>(to + at - l), lines.line[i] + at / lines.run * lines.run_step + within,
                static_cast<std::size_t>(count) * sizeof(bfloat16));
    at += count;
  }
}

template <bool right>
LPO_ALWAYS_INLINE void pack_pair_lines(const PairLines& lines, index_t k, index_t first_block, index_t blocks,
                                       bfloat16* to, index_t step) {
  const bool whole = lines.run % pair_depth == 0;
  for (index_t block = 0; block < blocks; ++block, to += step) {
    const index_t l = (first_block + block) * pair_depth;
    PairRow rows[16];
    if (whole) {  // k is a multiple of the runs
      const index_t at = lines.run == k ? l : l / lines.run * lines.run_step + l % lines.run;
LPO_UNROLL(16)
      for (int i = 0; i < 16; ++i) std::memcpy(&rows[i].v, lines.line[i] + at, sizeof(PairVector));
    } else {
      alignas(64) bfloat16 gathered[pair_block];
      for (index_t i = 0; i < pair_lanes; ++i) gather_line(lines, i, l, k, gathered + i * pair_depth);
LPO_UNROLL(16)
      for (int i = 0; i < 16; ++i) std::memcpy(&rows[i].v, gathered + i * pair_depth, sizeof(PairVector));
    }
    if constexpr (right) transpose_lanes(rows);
LPO_UNROLL(16)
    for (int i = 0; i < 16; ++i) std::memcpy(static_cast<void*>(to + i * pair_depth), &rows[i].v, sizeof(PairVector));
  }
}

typedef std::uint16_t PairLine __attribute__((vector_size(64)));  ///< element l of 32 lines

/// Pairs of the lines from `First` on, of 16: low and high elements in turns.
template <int First, int... I>
LPO_ALWAYS_INLINE void interleave(const PairLine& low, const PairLine& high, std::integer_sequence<int, I...>,
                                  PairRow& pairs) {
#if defined(__clang__)
  const PairLine both = __builtin_shufflevector(low, high, (First + I / 2 + I % 2 * 32)...);
#else
  const PairLine both = __builtin_shuffle(low, high, PairLine{(First + I / 2 + I % 2 * 32)...});
#endif
  std::memcpy(&pairs.v, &both, sizeof(both));
}

LPO_ALWAYS_INLINE void store_block(const PairRow (&rows)[16], bfloat16* to) {
LPO_UNROLL(16)
  for (int i = 0; i < 16; ++i) std::memcpy(static_cast<void*>(to + i * pair_depth), &rows[i].v, sizeof(PairVector));
}

template <bool right>
LPO_ALWAYS_INLINE void pack_pair_across(const bfloat16* from, const index_t* offset, index_t valid, index_t k,
                                        index_t first_block, index_t blocks, bfloat16* to, index_t step,
                                        index_t beside) {
  const auto bytes = static_cast<std::size_t>(valid) * sizeof(bfloat16);
  constexpr auto lanes = std::make_integer_sequence<int, 32>{};
  for (index_t block = 0; block < blocks; ++block, to += step) {
    const index_t l = (first_block + block) * pair_depth;
    const bool whole = valid == 2 * pair_lanes && l + pair_depth <= k;
    PairRow pairs[2][16];
    unroll<16>([&](auto i) __attribute__((always_inline)) {
      const index_t at = l + 2 * i;
      PairLine low = {}, high = {};
      if (whole) {
        std::memcpy(&low, from + offset[at], sizeof(PairLine));
        std::memcpy(&high, from + offset[at + 1], sizeof(PairLine));
      } else {
        if (at < k) std::memcpy(&low, from + offset[at], bytes);
        if (at + 1 < k) std::memcpy(&high, from + offset[at + 1], bytes);
      }
      interleave<0>(low, high, lanes, pairs[0][i]);
      interleave<16>(low, high, lanes, pairs[1][i]);
      if constexpr (right) {  // stored at once: registers would not hold two blocks
        std::memcpy(static_cast<void*>(to + i * pair_depth), &pairs[0][i].v, sizeof(PairVector));
        if (valid > pair_lanes)
          std::memcpy(static_cast<void*>(to + beside + i * pair_depth), &pairs[1][i].v, sizeof(PairVector));
      }
    });
    if constexpr (!right) {
      transpose_lanes(pairs[0]);
      store_block(pairs[0], to);
      if (valid > pair_lanes) {
        transpose_lanes(pairs[1]);
        store_block(pairs[1], to + beside);
      }
    }
  }
}

#if defined(LPO_TARGET_PAIRS)
template <bool right>
LPO_TARGET_PAIRS void pack_lines_512(const PairLines& lines, index_t k, index_t first_block, index_t blocks,
                                     bfloat16* to, index_t step) {
  pack_pair_lines<right>(lines, k, first_block, blocks, to, step);
  LPO_LEAVE_WIDE_REGISTERS();
}
template <bool right>
LPO_TARGET_PAIRS void pack_across_512(const bfloat16* from, const index_t* offset, index_t valid, index_t k,
                                      index_t first_block, index_t blocks, bfloat16* to, index_t step,
                                      index_t beside) {
  pack_pair_across<right>(from, offset, valid, k, first_block, blocks, to, step, beside);
  LPO_LEAVE_WIDE_REGISTERS();
}

/// Rounds 32 sums of a row to 32 numbers in one instruction, which counts subnormal ones as zero.
LPO_TARGET_PAIRS LPO_ALWAYS_INLINE void round_pairs(const PairSums& low, const PairSums& high, bfloat16* to) {
  PairVector rounded;
  asm("vcvtne2ps2bf16 %1, %2, %0" : "=v"(rounded) : "v"(low), "v"(high));
  std::memcpy(static_cast<void*>(to), &rounded, sizeof(rounded));
}

/// The end of finished rows whose sums are in memory.
LPO_TARGET_PAIRS inline void store_pairs_512(const PairWork& work) {
  PairSums add_low, add_high;  // names of their own: arrays would go to memory
  std::memcpy(&add_low, work.bias, sizeof(PairSums));
  std::memcpy(&add_high, work.bias + pair_lanes, sizeof(PairSums));
  const float* sums = work.sums;
  for (index_t r = 0; r < work.rows; ++r, sums += pair_columns) {
    PairSums low, high;
    std::memcpy(&low, sums, sizeof(PairSums));
    std::memcpy(&high, sums + pair_lanes, sizeof(PairSums));
    low += add_low, high += add_high;
    round_pairs(low, high, work.to + work.offset[r]);
  }
  LPO_LEAVE_WIDE_REGISTERS();
}

/// 8 rows of the groups, from row `begin` on, by `panels` panels. `vdpbf16ps` adds a lane's two products to its sum; in
/// assembler, because compilers differ in the built-in's types. A left pair is broadcast once for both panels, and a
/// block's 16 steps are written out: 0.99 of the instruction's peak on a Zen 4 with operands in L1.
template <int panels, bool crossed>
LPO_TARGET_PAIRS LPO_ALWAYS_INLINE void pair_tile(const PairWork& work, index_t begin) {
  typedef std::uint32_t __attribute__((may_alias)) Pair;
  constexpr int rows = 8;
  const PairGroup& group = work.left[begin / pair_lanes];
  float* const to = work.sums + begin * pair_columns;
  const bfloat16* right = work.right;
  PairSums sum[rows][panels];
LPO_UNROLL(8)
  for (int r = 0; r < rows; ++r) {
LPO_UNROLL(2)
    for (int p = 0; p < panels; ++p) {
      sum[r][p] = PairSums{};
      if (work.begun) std::memcpy(&sum[r][p], to + r * pair_columns + p * pair_lanes, sizeof(PairSums));
    }
  }
  constexpr index_t pair = crossed ? 2 * pair_lanes : 2;
  const index_t row = crossed ? 2 : group.row;
  for (index_t block = 0; block < work.blocks; ++block, right += panels * pair_block) {
    const bfloat16* const top = group.data + group.step[block] + begin % pair_lanes * row;
    const bfloat16* left[rows];
LPO_UNROLL(8)
    for (int r = 0; r < rows; ++r) left[r] = top + r * row;
    // With clang a lambda does not inherit the target of the function around it.
    auto step = [&](index_t i) LPO_TARGET_PAIRS __attribute__((always_inline)) {
      PairVector line[panels];
LPO_UNROLL(2)
      for (int p = 0; p < panels; ++p)
        std::memcpy(&line[p], right + p * pair_block + i * 2 * pair_lanes, sizeof(PairVector));
LPO_UNROLL(8)
      for (int r = 0; r < rows; ++r) {
        PairVector both;
        asm("vpbroadcastd %1, %0" : "=v"(both) : "m"(*reinterpret_cast<const Pair*>(left[r] + i * pair)));
LPO_UNROLL(2)
        for (int p = 0; p < panels; ++p) {
          PairSums one = sum[r][p];  // a name of its own keeps the array in registers
          asm("vdpbf16ps %2, %1, %0" : "+v"(one) : "v"(line[p]), "v"(both));
          sum[r][p] = one;
        }
      }
    };
    if (block + 1 == work.blocks && work.last_pairs < pair_lanes) {
      for (index_t i = 0; i < work.last_pairs; ++i) step(i);
    } else {
LPO_UNROLL(16)
      for (int i = 0; i < pair_lanes; ++i) step(i);
    }
  }
  if constexpr (panels == 2) {
    if (work.to != nullptr) {
      PairSums add_low, add_high;
      std::memcpy(&add_low, work.bias, sizeof(PairSums));
      std::memcpy(&add_high, work.bias + pair_lanes, sizeof(PairSums));
LPO_UNROLL(8)
      for (int r = 0; r < rows; ++r) {
        sum[r][0] += add_low, sum[r][1] += add_high;
        if (begin + r < work.rows) round_pairs(sum[r][0], sum[r][1], work.to + work.offset[begin + r]);
      }
      return;
    }
  }
LPO_UNROLL(8)
  for (int r = 0; r < rows; ++r) {
LPO_UNROLL(2)
    for (int p = 0; p < panels; ++p)
      std::memcpy(to + r * pair_columns + p * pair_lanes, &sum[r][p], sizeof(PairSums));
  }
}

LPO_TARGET_PAIRS inline void run_pairs_512(const PairWork& work) {
  for (index_t row = 0; row < work.rows; row += 8) {
    if (work.left[row / pair_lanes].pair == 2)
      work.panels == 2 ? pair_tile<2, false>(work, row) : pair_tile<1, false>(work, row);
    else
      work.panels == 2 ? pair_tile<2, true>(work, row) : pair_tile<1, true>(work, row);
  }
  LPO_LEAVE_WIDE_REGISTERS();
}

inline void without_state() {}

inline constexpr PairTiles pair_tiles_512{256, 60, 20, 40, 32, true, {&pack_lines_512<false>, &pack_lines_512<true>},
                                          {&pack_across_512<false>, &pack_across_512<true>},
                                          &without_state, &without_state, &run_pairs_512};

// One tile register holds one block: sums of 2 x 2 blocks in tmm0 to tmm3, left blocks in tmm4 and tmm5, right in tmm6
// and tmm7. Compilers do not allocate these registers themselves.
#define LPO_TILE_LOAD(tile, from, step) \
  asm volatile("tileloadd (%0,%1,1), %%" tile : : "r"(from), "r"(static_cast<index_t>(step)) : "memory")
#define LPO_TILE_STORE(tile, to, step) \
  asm volatile("tilestored %%" tile ", (%0,%1,1)" : : "r"(to), "r"(static_cast<index_t>(step)) : "memory")
#define LPO_TILE_ZERO(tile) asm volatile("tilezero %%" tile : :)
#define LPO_TILE_DOT(right, left, sum) asm volatile("tdpbf16ps %%" right ", %%" left ", %%" sum : :)

/// Fetches a block of `group`, or of packed ones, into L1.
LPO_ALWAYS_INLINE void fetch_block(const PairGroup& group, index_t block) {
  const bfloat16* row = group.data + group.step[block];
LPO_UNROLL(16)
  for (int r = 0; r < 16; ++r, row += group.row) __builtin_prefetch(row);
}
LPO_ALWAYS_INLINE void fetch_block(const bfloat16* block) {
LPO_UNROLL(16)
  for (int r = 0; r < 16; ++r) __builtin_prefetch(block + r * pair_depth);
}

/// groups x panels blocks of sums, each 1 or 2. Loads and products of tiles took their times one after the other
/// on the Xeon that was measured. Waiting comes on top: so a block is loaded for the next step as soon as it was used for
/// the last time, and fetched one step earlier.
template <int groups, int panels>
inline void amx_tile(const PairWork& work) {
  constexpr index_t step = pair_columns * sizeof(float), most_ahead = 2;
  float *const to = work.sums, *const below = to + pair_lanes * pair_columns;
  if (work.begun) {
    LPO_TILE_LOAD("tmm0", to, step);
    if constexpr (panels > 1) LPO_TILE_LOAD("tmm1", to + pair_lanes, step);
    if constexpr (groups > 1) LPO_TILE_LOAD("tmm2", below, step);
    if constexpr (groups > 1 && panels > 1) LPO_TILE_LOAD("tmm3", below + pair_lanes, step);
  } else {
    LPO_TILE_ZERO("tmm0");
    if constexpr (panels > 1) LPO_TILE_ZERO("tmm1");
    if constexpr (groups > 1) LPO_TILE_ZERO("tmm2");
    if constexpr (groups > 1 && panels > 1) LPO_TILE_ZERO("tmm3");
  }
  const PairGroup upper = work.left[0], lower = work.left[groups - 1];
  const index_t upper_row = upper.row * static_cast<index_t>(sizeof(bfloat16)),
                lower_row = lower.row * static_cast<index_t>(sizeof(bfloat16));
  const bfloat16* right = work.right;
  if (work.blocks > 0) {
    LPO_TILE_LOAD("tmm4", upper.data + upper.step[0], upper_row);
    LPO_TILE_LOAD("tmm6", right, 64);
    if constexpr (panels > 1) LPO_TILE_LOAD("tmm7", right + pair_block, 64);
    if constexpr (groups > 1) LPO_TILE_LOAD("tmm5", lower.data + lower.step[0], lower_row);
  }
  const index_t ahead = std::min(most_ahead, work.blocks), own = work.blocks - ahead;
  for (index_t block = 0; block < work.blocks; ++block) {
    const bool more = block + 1 < work.blocks;
    const PairGroup* const fetched = block < own ? work.left : work.left + groups;
    const index_t at = block < own ? block + ahead : block - own;
    right += panels * pair_block;
    LPO_TILE_DOT("tmm6", "tmm4", "tmm0");
    fetch_block(fetched[0], at);
    fetch_block(right + panels * pair_block);
    if constexpr (panels > 1) LPO_TILE_DOT("tmm7", "tmm4", "tmm1");
    if (more) LPO_TILE_LOAD("tmm4", upper.data + upper.step[block + 1], upper_row);
    if constexpr (groups > 1 && panels > 1) LPO_TILE_DOT("tmm7", "tmm5", "tmm3");
    if constexpr (groups > 1) fetch_block(fetched[1], at);
    if constexpr (panels > 1) fetch_block(right + (panels + 1) * pair_block);
    if constexpr (panels > 1) {
      if (more) LPO_TILE_LOAD("tmm7", right + pair_block, 64);
    }
    if constexpr (groups > 1) LPO_TILE_DOT("tmm6", "tmm5", "tmm2");
    if (more) LPO_TILE_LOAD("tmm6", right, 64);
    if constexpr (groups > 1) {
      if (more) LPO_TILE_LOAD("tmm5", lower.data + lower.step[block + 1], lower_row);
    }
  }
  LPO_TILE_STORE("tmm0", to, step);
  if constexpr (panels > 1) LPO_TILE_STORE("tmm1", to + pair_lanes, step);
  if constexpr (groups > 1) LPO_TILE_STORE("tmm2", below, step);
  if constexpr (groups > 1 && panels > 1) LPO_TILE_STORE("tmm3", below + pair_lanes, step);
}
#undef LPO_TILE_LOAD
#undef LPO_TILE_STORE
#undef LPO_TILE_ZERO
#undef LPO_TILE_DOT

/// All eight tile registers of full size, in the form that `ldtilecfg` reads.
struct alignas(64) TileConfiguration {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

inline void configure_amx() {
  const TileConfiguration configuration;
  asm volatile("ldtilecfg %0" : : "m"(configuration));
}

/// The state of tiles would make every switch of threads slower.
inline void release_amx() { asm volatile("tilerelease" : :); }

inline void run_pairs_amx(const PairWork& work) {
  if (work.groups > 1)
    work.panels > 1 ? amx_tile<2, 2>(work) : amx_tile<2, 1>(work);
  else
    work.panels > 1 ? amx_tile<1, 2>(work) : amx_tile<1, 1>(work);
  if (work.to != nullptr) store_pairs_512(work);
}

inline constexpr PairTiles pair_tiles_amx{16, 0, 20, 16, 16, false, {&pack_lines_512<false>, &pack_lines_512<true>},
                                          {&pack_across_512<false>, &pack_across_512<true>},
                                          &configure_amx, &release_amx, &run_pairs_amx};
#endif

/// The tiles that run on this machine, the fastest first; none where it does not multiply pairs.
struct PairTilesList {
  const PairTiles* tiles[2] = {};
  int count = 0;

  PairTilesList() {
#if defined(LPO_TARGET_PAIRS)
    if (machine_has_amx_bfloat16()) tiles[count++] = &pair_tiles_amx;
    if (machine_has_avx512_bfloat16()) tiles[count++] = &pair_tiles_512;
#endif
  }
};

inline const PairTilesList& pair_tiles() {
  static const PairTilesList list;
  return list;
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
#endif
