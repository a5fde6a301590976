// SPDX-License-Identifier: MIT
// Forward attention of 16-bit heads on Hopper GPUs: warpgroup products on tiles from the bulk tensor copy engine.
#pragma once

#include <lpo/backend/cuda/attention_warpgroup.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

/// out = softmax(scale q k^T) v, in powers of two. Per tile of keys:
///   s = q k^T,  p = 2^(c s - m) with c = scale log2(e),  l += sum_j p,  o += p v
/// where m is raised as in attention.cuh: only when a thread's sum of p in a tile exceeds 1024.
///
/// Launch: block (x, head, batch) = a warpgroup that copies, and `groups` warpgroups of 64 queries each. A warpgroup
/// starts s of the next tile and p v of this one together, and the others' exponentials fill the time that it waits.
/// Memory: queries, and a ring of tiles in the order k0 k1 v0 k2 v1 ..., in shared memory; scores, weights and sums in
/// registers; the results leave through the place of the queries. Numerics: products of T in float, weights rounded to
/// T for their product, l from unrounded weights. Limits: fits_matrix_units, no mask. Only code for sm_90a has a body.
struct AttentionWarpgroupArguments {
  int queries, keys;
  float scale;
  float* log_sum_exp;  ///< null: not wanted
};

/// What a warpgroup holds of its 64 queries; a thread has parts of two rows, eight apart (see warpgroup_product).
template <class T, int Width, class Plan>
struct AttentionWarpgroup {
  using Layout = AttentionWarpgroupLayout<Width, Plan, 1>;
  static constexpr int KeyTile = Plan::column_tile;
  static constexpr float limit = 1024.0f;

  unsigned query[Plan::keep_rows ? tile_steps<Width> : 1][4], weight[KeyTile / 16][4];
  float score[KeyTile / 2], total[Width / 2];
  float level[2] = {-INFINITY, -INFINITY}, sum[2];  ///< m of a row; this thread's share of l

  /// Starts score = q k^T.
  __device__ __forceinline__ void multiply_keys(std::uint64_t queries, std::uint64_t keys) {
    warpgroup_fence();
    multiply_rows<T, Width, Layout, Plan::keep_rows>(score, query, queries, keys);
    warpgroup_commit();
  }
  /// Starts total (+)= weight v.
  __device__ __forceinline__ void multiply_values(std::uint64_t values, bool add) {
    warpgroup_fence();
    multiply_weights<T>(total, weight, values, add);
    warpgroup_commit();
  }

  /// p = 2^(scale score - level), this thread's sums of them, and keep(n, p) for each eight columns.
  template <class Keep>
  __device__ __forceinline__ void exponentials(float scale, float (&tile_sum)[2], Keep&& keep) const {
    tile_sum[0] = tile_sum[1] = 0.0f;
#pragma unroll
    for (int n = 0; n < KeyTile / 8; ++n) {
      float p[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        p[e] = exp2_approximate(fmaf(score[4 * n + e], scale, -level[e / 2]));
        tile_sum[e / 2] += p[e];
      }
      keep(n, p);
    }
  }

  /// Hides the keys from `count` on.
  __device__ __forceinline__ void hide(int count) {
#pragma unroll
    for (int n = 0; n < KeyTile / 8; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        if (8 * n + static_cast<int>(threadIdx.x) % 4 * 2 + e % 2 >= count) score[4 * n + e] = -INFINITY;
  }

  /// Raises the levels to the maxima of the rows; what was summed before shrinks by these factors.
  __device__ __forceinline__ void raise(float scale, float (&shrink)[2]) {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      float most = score[2 * side];
#pragma unroll
      for (int n = 0; n < KeyTile / 8; ++n)
        most = fmaxf(most, fmaxf(score[4 * n + 2 * side], score[4 * n + 2 * side + 1]));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
      const float raised = fmaxf(level[side], most * scale);  // the first tile has a visible key: finite
      shrink[side] = exp2_approximate(level[side] - raised);
      level[side] = raised;
    }
  }

  /// Takes the weights that waited rounded. `zero` is 0, which the compiler must not know: it would give a plain copy the
  /// registers of `weight` from the start, which a product still reads, and wait for that product before the exponentials.
  __device__ __forceinline__ void take_weights(const unsigned (&rounded)[KeyTile / 16][4], int zero) {
#pragma unroll
    for (int n = 0; n < KeyTile / 4; ++n)
      asm volatile("or.b32 %0, %1, %2;" : "=r"(weight[n / 4][n % 4]) : "r"(rounded[n / 4][n % 4]), "r"(zero));
  }

  /// Scores of `count` > 0 keys to weights, once the scores are there. With overlap the weights before are still being
  /// read: the new ones wait as floats, or with pack_early rounded, which takes half the registers and rounds beside the
  /// product instead of after it (1024 x 1024, 8 x 20 heads of 64 on an H100: 109.8 to 99.6 us; the same bits).
  /// `release` is called when the weights before are not read any more.
  template <bool First, class Release>
  __device__ __forceinline__ void weigh(float scale, int count, Release&& release) {
    float tile_sum[2], shrink[2];
    float power[Plan::overlap && !Plan::pack_early ? KeyTile / 2 : 1];
    unsigned rounded[Plan::pack_early ? KeyTile / 16 : 1][4];
    const auto keep = [&](int n, const float(&p)[4]) {
      if constexpr (Plan::pack_early) {
        pack_columns<T>(rounded, n, p);
      } else if constexpr (Plan::overlap) {
#pragma unroll
        for (int e = 0; e < 4; ++e) power[4 * n + e] = p[e];
      } else {
        pack_columns<T>(weight, n, p);
      }
    };
    if (count < KeyTile) hide(count);
    if constexpr (First) {
      raise(scale, shrink);
      exponentials(scale, sum, keep);
    } else {
      exponentials(scale, tile_sum, keep);
      const bool over = __any_sync(0xffffffffu, !(tile_sum[0] <= limit) || !(tile_sum[1] <= limit));
      // A branch before the wait keeps it behind the exponentials, where the compiler would move it up. The wait itself is the
      // whole warpgroup's, whose warps may differ in whether they raise their levels: it stands outside of the branches.
      if (over) {
        raise(scale, shrink);
        exponentials(scale, tile_sum, keep);
      }
      if constexpr (Plan::pack_early) settle(rounded);  // before the wait
      if constexpr (Plan::overlap) warpgroup_wait<0>();
      if (over) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          sum[side] *= shrink[side];
#pragma unroll
          for (int n = 0; n < Width / 8; ++n) {
            total[4 * n + 2 * side] *= shrink[side];
            total[4 * n + 2 * side + 1] *= shrink[side];
          }
        }
      }
      release();
      sum[0] += tile_sum[0];
      sum[1] += tile_sum[1];
    }
    if constexpr (Plan::pack_early) {
      take_weights(rounded, count >> 31);
    } else if constexpr (Plan::overlap) {
#pragma unroll
      for (int n = 0; n < KeyTile / 8; ++n) pack_columns<T>(weight, n, power + 4 * n);
    }
    settle(weight);
  }
};

template <class T, int Width, class Plan>
__global__ void __launch_bounds__(AttentionWarpgroupLayout<Width, Plan, 1>::threads, Plan::blocks)
    attention_warpgroup_kernel(const __grid_constant__ CUtensorMap q_map, const __grid_constant__ CUtensorMap k_map,
                               const __grid_constant__ CUtensorMap v_map, const __grid_constant__ CUtensorMap out_map,
                               AttentionWarpgroupArguments p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Layout = AttentionWarpgroupLayout<Width, Plan, 1>;
  constexpr int KeyTile = Plan::column_tile;
  __shared__ std::uint64_t full[Layout::slots], empty[Layout::slots], queries_there;
  extern __shared__ unsigned char attention_memory[];
  unsigned char* const queries = attention_memory + (1024 - shared_address(attention_memory) % 1024) % 1024;
  unsigned char* const ring = queries + Plan::groups * Layout::row_bytes;
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < Layout::slots; ++slot) {
      barrier_init(&full[slot], 1);
      barrier_init(&empty[slot], 4 * Plan::groups);  // warps
    }
    barrier_init(&queries_there, 1);
    barrier_init_fence();
  }
  __syncthreads();
  const int first = static_cast<int>(blockIdx.x) * 64 * Plan::groups, head = static_cast<int>(blockIdx.y);
  const int batch = static_cast<int>(blockIdx.z), tiles = (p.keys + KeyTile - 1) / KeyTile;
  RingPlace<Layout::slots> place;
  if (threadIdx.x < 128) {
    give_registers<Layout::copy_registers>();
    if (threadIdx.x != 0) return;
    barrier_expect(&queries_there, Plan::groups * Layout::row_bytes);
#pragma unroll
    for (int i = 0; i < Plan::groups * Layout::panels; ++i)
      copy_box(queries + i * Layout::row_panel_bytes, q_map, &queries_there, i % Layout::panels * 64, head,
               first + i / Layout::panels * 64, batch);
    const auto fetch = [&](const CUtensorMap& map, int tile) {
      barrier_wait(&empty[place.slot], place.parity ^ 1);
      barrier_expect(&full[place.slot], Layout::slot_bytes);
#pragma unroll
      for (int panel = 0; panel < Layout::panels; ++panel)
        copy_box(ring + place.slot * Layout::slot_bytes + panel * Layout::column_panel_bytes, map, &full[place.slot],
                 panel * 64, head, tile * KeyTile, batch);
      place.advance();
    };
    fetch(k_map, 0);
    for (int tile = 0; tile < tiles; ++tile) {
      if (tile + 1 < tiles) fetch(k_map, tile + 1);
      fetch(v_map, tile);
    }
  } else {
    take_registers<Layout::registers>();
    const int group = static_cast<int>(threadIdx.x) / 128 - 1, lane = static_cast<int>(threadIdx.x) % 32;
    unsigned char* const own = queries + group * Layout::row_bytes;
    const std::uint64_t q_tile = tile_descriptor<TileMajor::k>(own, Layout::row_panel_bytes);
    const std::uint64_t k_ring = tile_descriptor<TileMajor::k>(ring, Layout::column_panel_bytes);
    const std::uint64_t v_ring = tile_descriptor<TileMajor::mn>(ring, Layout::column_panel_bytes);
    const float scale = p.scale * 1.44269504f;
    AttentionWarpgroup<T, Width, Plan> warpgroup;
    int k_slot = 0, v_slot = 0;
    const auto next_slot = [&] {
      const int slot = place.slot;
      barrier_wait(&full[slot], place.parity);
      place.advance();
      return slot;
    };
    const auto release = [&](int slot) {
      if (lane == 0) barrier_arrive(&empty[slot]);
    };
    const auto start_keys = [&] {
      k_slot = next_slot();
      warpgroup.multiply_keys(q_tile, k_ring + (k_slot * Layout::slot_bytes >> 4));
    };
    const auto start_values = [&](bool add) {
      v_slot = next_slot();
      warpgroup.multiply_values(v_ring + (v_slot * Layout::slot_bytes >> 4), add);
    };
    if (Plan::turns && group == Plan::groups - 1) announce(turn_barrier, turn_threads);

    barrier_wait(&queries_there, 0);
    if constexpr (Plan::keep_rows) load_rows<Width>(warpgroup.query, own);
    start_keys();
    warpgroup_wait<0>();
    release(k_slot);
    warpgroup.template weigh<true>(scale, p.keys, [] {});
    for (int tile = 1; tile < tiles; ++tile) {
      if constexpr (Plan::turns) meet(turn_barrier + group, turn_threads);
      start_keys();
      start_values(tile > 1);
      if constexpr (Plan::turns) announce(turn_barrier + (group + 1) % Plan::groups, turn_threads);
      warpgroup_wait<Plan::overlap ? 1 : 0>();
      release(k_slot);
      warpgroup.template weigh<false>(scale, p.keys - tile * KeyTile, [&] { release(v_slot); });
    }
    start_values(tiles > 1);
    warpgroup_wait<0>();

    float inverse[2];
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      float sum = warpgroup.sum[side];
      sum += __shfl_xor_sync(0xffffffffu, sum, 1);
      sum += __shfl_xor_sync(0xffffffffu, sum, 2);
      inverse[side] = 1.0f / sum;
      const int query = first + group * 64 + static_cast<int>(threadIdx.x) % 128 / 32 * 16 + 8 * side + lane / 4;
      if (p.log_sum_exp != nullptr && lane % 4 == 0 && query < p.queries)
        p.log_sum_exp[(static_cast<index_t>(batch) * gridDim.y + head) * p.queries + query] =
            warpgroup.level[side] * 0.693147181f + logf(sum);
    }
    meet(own_barrier + group, 128);  // the warpgroup is done with its queries
    write_rows<T, Width>(warpgroup.total, inverse, own);
    copy_source_fence();
    meet(own_barrier + group, 128);
    if (threadIdx.x % 128 != 0) return;
#pragma unroll
    for (int panel = 0; panel < Layout::panels; ++panel)
      copy_box_back(out_map, own + panel * Layout::row_panel_bytes, panel * 64, head, first + group * 64, batch);
    wait_for_copied_source();
  }
#endif
}

template <int Width, class Plan, class T>
void launch_attention_warpgroups(Context<Cuda>& context, const kernel::AttentionShape& shape,
                                 const HeadRows<const T>& q, const HeadRows<const T>& k, const HeadRows<const T>& v,
                                 const HeadRows<T>& out, float* log_sum_exp) {
  using Layout = AttentionWarpgroupLayout<Width, Plan, 1>;
  const dim3 grid(blocks_for(shape.queries, 64 * Plan::groups), static_cast<unsigned>(shape.heads),
                  static_cast<unsigned>(shape.batch));
  context.launch("attention_warpgroup_kernel", {grid, Layout::threads, Layout::bytes}, attention_warpgroup_kernel<T, Width, Plan>,
                 head_map(q, shape, 64), head_map(k, shape, Plan::column_tile), head_map(v, shape, Plan::column_tile),
                 head_map(out, shape, 64),
                 AttentionWarpgroupArguments{static_cast<int>(shape.queries), static_cast<int>(shape.keys), shape.scale, log_sum_exp});
}

/// Up to 80 keys, such as the 77 of a prompt, are one tile; most of the time goes to copies then.
inline constexpr int short_keys = 80;

/// Calls body(integral_constant<int, Width>, plan) with the fastest plan for a shape of those tried on an H100.
template <class Body>
void with_warpgroup_plan(const kernel::AttentionShape& shape, Body&& body) {
  with_tile_width(shape.width, [&](auto width) {
    constexpr int Width = decltype(width)::value;
    if constexpr (Width == 40) {
      body(width, AttentionWarpgroupPlan<3, 128, 1, false, false, true>{});
    } else if constexpr (Width == 64) {
      if (shape.keys >= 2048) return body(width, AttentionWarpgroupPlan<3, 128, 1, false, false, true>{});
      body(width, AttentionWarpgroupPlan<1, 64, 3, true, true, false, true>{});
    } else if constexpr (Width == 80) {
      if (shape.keys <= short_keys) return body(width, AttentionWarpgroupPlan<1, short_keys, 3, false, false, false>{});
      body(width, AttentionWarpgroupPlan<2, 128, 1, true, true, false>{});
    } else if constexpr (Width == 128) {
      if (shape.keys <= short_keys) return body(width, AttentionWarpgroupPlan<1, short_keys, 2, false, false, false>{});
      body(width, AttentionWarpgroupPlan<2, 128, 1, true, false, true>{});
    } else {
      if (shape.keys > 64 && shape.keys <= short_keys)
        return body(width, AttentionWarpgroupPlan<1, short_keys, 2, false, false, false>{});
      body(width, AttentionWarpgroupPlan<1, 64, 2, true, false, false>{});
    }
  });
}

/// Whether attention_forward_warpgroups can run a shape that fits_matrix_units, and wins there: for narrow heads and
/// few keys the smaller blocks of attention.cuh have more copies under way.
template <class T>
bool prefers_warpgroups(const kernel::AttentionShape& shape) {
  return !shape.causal && (shape.width > 40 || shape.keys > 128) && fits_tensor_maps(shape) &&
         has_hopper_body(attention_warpgroup_kernel<T, 160, AttentionWarpgroupPlan<1, 64, 2, true, false, false>>);
}

template <class T>
void attention_forward_warpgroups(Context<Cuda>& context, const kernel::AttentionShape& shape,
                                  const HeadRows<const T>& q, const HeadRows<const T>& k, const HeadRows<const T>& v,
                                  const HeadRows<T>& out, float* log_sum_exp) {
  with_warpgroup_plan(shape, [&](auto width, auto plan) {
    launch_attention_warpgroups<decltype(width)::value, decltype(plan)>(context, shape, q, k, v, out, log_sum_exp);
  });
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
