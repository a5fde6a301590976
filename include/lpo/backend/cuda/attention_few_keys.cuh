// SPDX-License-Identifier: MIT
// Forward attention of 16-bit heads to few keys on Hopper GPUs: queries stream past keys and values that stay on chip.
#pragma once

#include <lpo/backend/cuda/attention_warpgroup_forward.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

/// The formula is that of attention_warpgroup_kernel, with all keys in one tile. There most of the time goes to bytes of
/// queries and results: here a block keeps the keys and values of a head, and while one tile of 64 queries is computed,
/// the next ones arrive and the results of the one before leave.
///
/// Launch: block (x, head, batch) = a warpgroup that copies and one that computes `tiles_each` tiles of queries; all
/// blocks fit the device at once. Memory: keys, values and a ring of tiles of queries in shared memory; results leave
/// through the place of their queries. Numerics and limits: as there, at most Plan::column_tile keys.
struct AttentionFewKeysArguments {
  int queries, keys, tiles_each;
  float scale;
  float* log_sum_exp;  ///< null: not wanted
};

template <int Width, class Plan>
struct AttentionFewKeysLayout : AttentionWarpgroupLayout<Width, Plan, 1> {
  using Base = AttentionWarpgroupLayout<Width, Plan, 1>;
  static constexpr int room = (226 << 10) / Plan::blocks - 1024 - 2 * Base::column_tile_bytes - Base::slack;
  static constexpr int slots = std::min(room / Base::row_tile_bytes, 4);
  static constexpr int bytes = 2 * Base::column_tile_bytes + slots * Base::row_tile_bytes + Base::slack;
  static_assert(slots >= 2 && Plan::groups == 1 && Base::column_panel_bytes % 1024 == 0);
};

template <class T, int Width, class Plan>
__global__ void __launch_bounds__(AttentionFewKeysLayout<Width, Plan>::threads, Plan::blocks)
    attention_few_keys_kernel(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
                              const __grid_constant__ CUtensorMap v_map, const __grid_constant__ CUtensorMap out_map,
                              AttentionFewKeysArguments p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Layout = AttentionFewKeysLayout<Width, Plan>;
  __shared__ std::uint64_t full[Layout::slots], empty[Layout::slots], keys_there;
  extern __shared__ unsigned char attention_memory[];
  unsigned char* const keys = attention_memory + (1024 - shared_address(attention_memory) % 1024) % 1024;
  unsigned char* const values = keys + Layout::column_tile_bytes;
  unsigned char* const ring = values + Layout::column_tile_bytes;
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < Layout::slots; ++slot) {
      barrier_init(&full[slot], 1);
      barrier_init(&empty[slot], 1);
    }
    barrier_init(&keys_there, 1);
    barrier_init_fence();
  }
  __syncthreads();
  const int head = static_cast<int>(blockIdx.y), batch = static_cast<int>(blockIdx.z);
  const int first = static_cast<int>(blockIdx.x) * p.tiles_each;
  const int end = min(first + p.tiles_each, (p.queries + 63) / 64);
  RingPlace<Layout::slots> place;
  if (threadIdx.x < 128) {
    give_registers<Layout::copy_registers>();
    if (threadIdx.x != 0) return;
    const auto fetch = [&](const CUtensorMap& map, unsigned char* to, std::uint64_t* there, int panel_bytes, int row) {
#pragma unroll
      for (int panel = 0; panel < Layout::panels; ++panel)
        copy_box(to + panel * panel_bytes, map, there, panel * 64, head, row, batch);
    };
    barrier_expect(&keys_there, 2 * Layout::column_tile_bytes);
    fetch(k_map, keys, &keys_there, Layout::column_panel_bytes, 0);
    for (int tile = first; tile < end; ++tile) {
      barrier_wait(&empty[place.slot], place.parity ^ 1);
      barrier_expect(&full[place.slot], Layout::row_tile_bytes);
      fetch(q_map, ring + place.slot * Layout::row_tile_bytes, &full[place.slot], Layout::row_panel_bytes, tile * 64);
      if (tile == first) fetch(v_map, values, &keys_there, Layout::column_panel_bytes, 0);
      place.advance();
    }
  } else {
    take_registers<Layout::registers>();
    const int thread = static_cast<int>(threadIdx.x) % 128, lane = thread % 32;
    const std::uint64_t q_ring = tile_descriptor<TileMajor::k>(ring, Layout::row_panel_bytes);
    const std::uint64_t k_tile = tile_descriptor<TileMajor::k>(keys, Layout::column_panel_bytes);
    const std::uint64_t v_tile = tile_descriptor<TileMajor::mn>(values, Layout::column_panel_bytes);
    const float scale = p.scale * 1.44269504f;
    barrier_wait(&keys_there, 0);
    for (int tile = first; tile < end; ++tile) {
      const int slot = place.slot;
      unsigned char* const own = ring + slot * Layout::row_tile_bytes;
      AttentionWarpgroup<T, Width, Plan> warpgroup;
      barrier_wait(&full[slot], place.parity);
      warpgroup.multiply_keys(q_ring + (slot * Layout::row_tile_bytes >> 4), k_tile);
      warpgroup_wait<0>();
      warpgroup.template weigh<true>(scale, p.keys, [] {});
      warpgroup.multiply_values(v_tile, false);
      float inverse[2];
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        float sum = warpgroup.sum[side];
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        inverse[side] = 1.0f / sum;
        const int query = tile * 64 + thread / 32 * 16 + 8 * side + lane / 4;
        if (p.log_sum_exp != nullptr && lane % 4 == 0 && query < p.queries)
          p.log_sum_exp[(static_cast<index_t>(batch) * gridDim.y + head) * p.queries + query] =
              warpgroup.level[side] * 0.693147181f + logf(sum);
      }
      warpgroup_wait<0>();
      meet(own_barrier, 128);  // all are done with the queries
      write_rows<T, Width>(warpgroup.total, inverse, own);
      copy_source_fence();
      meet(own_barrier, 128);
      if (thread == 0) {
#pragma unroll
        for (int panel = 0; panel < Layout::panels; ++panel)
          copy_box_back(out_map, own + panel * Layout::row_panel_bytes, panel * 64, head, tile * 64, batch);
        wait_for_copied_source<1>();
        if (tile > first) barrier_arrive(&empty[(slot + Layout::slots - 1) % Layout::slots]);
      }
      __syncwarp();
      place.advance();
    }
    if (thread == 0) wait_for_copied_source();
  }
#endif
}

/// Whether attention_forward_few_keys can run a shape that prefers_warpgroups, and wins there: wider heads have as much to
/// compute as to copy, and gain nothing.
inline bool prefers_few_keys(const kernel::AttentionShape& shape) {
  return shape.keys <= short_keys && shape.width > 40 && shape.width <= 64;
}

template <class T>
void attention_forward_few_keys(Context<Cuda>& context, const kernel::AttentionShape& shape, const HeadRows<const T>& q,
                                const HeadRows<const T>& k, const HeadRows<const T>& v, const HeadRows<T>& out,
                                float* log_sum_exp) {
  constexpr int Width = 64;
  using Plan = AttentionWarpgroupPlan<1, short_keys, 3, false, false, false>;
  using Layout = AttentionFewKeysLayout<Width, Plan>;
  const index_t tiles = (shape.queries + 63) / 64, pairs = shape.batch * shape.heads;
  const index_t shares = std::clamp<index_t>(Plan::blocks * context.multiprocessors() / pairs, 1, tiles);
  const index_t tiles_each = (tiles + shares - 1) / shares;
  const dim3 grid(blocks_for(tiles, tiles_each), static_cast<unsigned>(shape.heads), static_cast<unsigned>(shape.batch));
  context.launch("attention_few_keys_kernel", {grid, Layout::threads, Layout::bytes}, attention_few_keys_kernel<T, Width, Plan>,
                 head_map(q, shape, 64), head_map(k, shape, Plan::column_tile), head_map(v, shape, Plan::column_tile),
                 head_map(out, shape, 64),
                 AttentionFewKeysArguments{static_cast<int>(shape.queries), static_cast<int>(shape.keys), static_cast<int>(tiles_each),
                                           shape.scale, log_sum_exp});
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
