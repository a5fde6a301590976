// SPDX-License-Identifier: MIT
// Gradient of attention of 16-bit heads on Hopper GPUs in one walk: dq, dk and dv from the same probabilities.
#pragma once

#include <lpo/backend/cuda/attention_joint_schedule.cuh>
#include <lpo/backend/cuda/attention_warpgroup_gradient.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

/// As attention_gradient_warpgroup_kernel by keys, which computes scores and slopes once for dk and dv; here dq comes
/// from them too: five products of queries and keys instead of seven. A block owns 64 * groups keys of a head, and its
/// share of dq, ds k, is added in float to those of the blocks before it, in the order of AttentionJointSchedule, so
/// that the sums have the same bits in every run: `progress` counts the tiles that a block has added to, and the next
/// block waits for it.
///
/// Launch: as many blocks as there are tiles of keys. A block = a warpgroup that copies, `groups` of 64 keys each, and
/// one that multiplies dq from the ds that those leave in shared memory, and adds it. Numerics: as there, but that the
/// float sums of dq are joined once for each block of keys. Limits: as there, all three gradients wanted. Heads of up
/// to 64 fit, but wider ones than 40 gain nothing, and no registers are left for 80.
template <class T>
struct AttentionJointArguments {
  int queries, keys, width, heads;
  AttentionJointSchedule schedule;
  float scale;
  const QueryTerms<float>* terms;
  index_t terms_stride;
  HeadRows<T> dq, dk, dv;
  bool accumulate_q, accumulate_k, accumulate_v;
  float* sums;         ///< [place][tile of queries][Width / 8][thread][4]: in the order of the registers
  unsigned* progress;  ///< [pair][block of keys], zero at the start
  unsigned* ticket;    ///< the number of the next block to begin, zero at the start
};

/// The fastest of those tried on an H100.
struct AttentionJointPlan : AttentionWarpgroupPlan<2, 64, 1, true, true, true> {
  static constexpr int change_slots = 2;  ///< tiles of ds that are under way to the warpgroup of dq
};

template <int Width, class Plan>
struct AttentionJointLayout : AttentionWarpgroupLayout<Width, Plan, 2> {
  using Base = AttentionWarpgroupLayout<Width, Plan, 2>;
  static constexpr int threads = 128 * (Plan::groups + 2);
  static constexpr int change_tile_bytes = 64 * tile_row_bytes, change_bytes = Plan::groups * change_tile_bytes;
  static constexpr int sum_floats = 64 * Width;
  static constexpr int slots =
      std::min((Base::room - Plan::change_slots * change_bytes) / (Base::slot_bytes + Base::term_bytes), 8);
  static constexpr int bytes = Plan::groups * Base::row_bytes + Plan::change_slots * change_bytes +
                               slots * (Base::slot_bytes + Base::term_bytes) + Base::slack;
  static_assert(slots >= 2 && Plan::column_tile == 64 && Plan::overlap && Plan::keep_rows && Plan::turns);
  static constexpr int copy_registers = 24, sum_registers = 72;
  static constexpr int registers = std::min((512 - copy_registers - sum_registers) / Plan::groups / 8 * 8, 240);
};

/// What the writer's warpgroup did before it met and wrote `progress` comes before what the reader does next.
__device__ __forceinline__ unsigned read_progress(const unsigned* progress) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(progress) : "memory");
  return value;
}
/// Waits until `progress` is at least `wanted`; returns what it is. With LPO_DEVICE_WAIT_LIMIT, nanoseconds, a wait
/// that lasts longer ends the kernel with a trap, which the next call that synchronizes reports.
__device__ __forceinline__ unsigned wait_for_progress(const unsigned* progress, unsigned wanted) {
#if defined(LPO_DEVICE_WAIT_LIMIT)
  const auto now = [] {
    unsigned long long time;
    asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time));
    return time;
  };
  const unsigned long long start = now();
#endif
  for (;;) {
    if (const unsigned known = read_progress(progress); known >= wanted) return known;
#if defined(LPO_DEVICE_WAIT_LIMIT)
    if (now() - start > static_cast<unsigned long long>(LPO_DEVICE_WAIT_LIMIT)) __trap();
#endif
  }
}
__device__ __forceinline__ void write_progress(unsigned* progress, unsigned value) {
  asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(progress), "r"(value) : "memory");
}
__device__ __forceinline__ void add_four(float* to, const float* sums) {
  asm volatile("red.relaxed.gpu.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(sums[0]), "f"(sums[1]),
               "f"(sums[2]), "f"(sums[3])
               : "memory");
}

template <class T, int Width, class Plan>
__global__ void __launch_bounds__(AttentionJointLayout<Width, Plan>::threads, 1)
    attention_joint_gradient_kernel(const __grid_constant__ CUtensorMap k_map,
                                    const __grid_constant__ CUtensorMap v_map,
                                    const __grid_constant__ CUtensorMap q_map,
                                    const __grid_constant__ CUtensorMap slope_map,
                                    const __grid_constant__ CUtensorMap dk_map,
                                    const __grid_constant__ CUtensorMap dv_map,
                                    const __grid_constant__ AttentionJointArguments<T> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Layout = AttentionJointLayout<Width, Plan>;
  using Warpgroup = AttentionGradientWarpgroup<T, Width, GradientPart::keys_and_values, Plan>;
  constexpr int Tile = Plan::column_tile, groups = Plan::groups;
  __shared__ std::uint64_t full[Layout::slots], empty[Layout::slots], rows_there;
  __shared__ std::uint64_t changes_there[Plan::change_slots], changes_read[Plan::change_slots];
  __shared__ int taken;
  extern __shared__ unsigned char attention_memory[];
  unsigned char* const rows = attention_memory + (1024 - shared_address(attention_memory) % 1024) % 1024;
  unsigned char* const changes = rows + groups * Layout::row_bytes;
  unsigned char* const ring = changes + Plan::change_slots * Layout::change_bytes;
  auto* const ring_terms = reinterpret_cast<QueryTerms<float>*>(ring + Layout::slots * Layout::slot_bytes);
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < Layout::slots; ++slot) {
      barrier_init(&full[slot], 1);
      barrier_init(&empty[slot], 4 * groups);  // warps
    }
    for (int slot = 0; slot < Plan::change_slots; ++slot) {
      barrier_init(&changes_there[slot], 4 * groups);
      barrier_init(&changes_read[slot], 4);
    }
    barrier_init(&rows_there, 1);
    barrier_init_fence();
    taken = static_cast<int>(atomicAdd(p.ticket, 1u));
  }
  __syncthreads();
  const auto [pair, block, sums_place, pair_before] = p.schedule.item(taken);
  const int blocks = p.schedule.blocks, tiles = (p.queries + Tile - 1) / Tile;
  const int first = block * 64 * groups, head = pair % p.heads, batch = pair / p.heads;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool is_first = block == 0, is_last = block == blocks - 1;
  unsigned* const progress = p.progress + pair * blocks + block;
  float* sums = p.sums + static_cast<index_t>(sums_place) * tiles * Layout::sum_floats;
  if (threadIdx.x < 128) {
    give_registers<Layout::copy_registers>();
    if (threadIdx.x != 0) return;
    const QueryTerms<float>* const terms = p.terms + pair * p.terms_stride;
    RingPlace<Layout::slots> place;
    barrier_expect(&rows_there, groups * Layout::row_bytes);
#pragma unroll
    for (int i = 0; i < groups * 2 * Layout::panels; ++i) {
      const int panel = i % Layout::panels, group = i / Layout::panels / 2;
      copy_box(rows + i * Layout::row_panel_bytes, i / Layout::panels % 2 == 0 ? k_map : v_map, &rows_there, panel * 64,
               head, first + group * 64, batch);
    }
    for (int tile = 0; tile < tiles; ++tile) {
      unsigned char* const slot = ring + place.slot * Layout::slot_bytes;
      barrier_wait(&empty[place.slot], place.parity ^ 1);
      barrier_expect(&full[place.slot], Layout::slot_bytes + Layout::term_bytes);
#pragma unroll
      for (int i = 0; i < 2 * Layout::panels; ++i)
        copy_box(slot + i * Layout::column_panel_bytes, i < Layout::panels ? q_map : slope_map, &full[place.slot],
                 i % Layout::panels * 64, head, tile * Tile, batch);
      copy_bytes(ring_terms + place.slot * Tile, terms + tile * Tile, Layout::term_bytes, &full[place.slot]);
      place.advance();
    }
  } else if (threadIdx.x >= 128 * (groups + 1)) {
    give_registers<Layout::sum_registers>();
    const int thread = static_cast<int>(threadIdx.x) % 128;
    const std::uint64_t change_tile = tile_descriptor<TileMajor::mn>(changes, Layout::change_tile_bytes);
    const std::uint64_t key_tile = tile_descriptor<TileMajor::mn>(rows, Layout::row_panel_bytes);
    RingPlace<Plan::change_slots> place;
    sums += thread * 4;
    float sum[Width / 2];
    unsigned known = 0;
    if (is_first && !is_last && pair_before >= 0)
      wait_for_progress(p.progress + pair_before * blocks + blocks - 1, static_cast<unsigned>(tiles));
    barrier_wait(&rows_there, 0);
    for (int tile = 0; tile < tiles; ++tile, sums += Layout::sum_floats) {
      const int slot = place.slot;
      barrier_wait(&changes_there[slot], place.parity);
      place.advance();
      warpgroup_fence();
#pragma unroll
      for (int i = 0; i < groups * 4; ++i) {
        const int group = i / 4, step = i % 4 * static_cast<int>(tile_advance<TileMajor::mn>);
        warpgroup_product<T, TileMajor::mn, TileMajor::mn>(
            sum, change_tile + ((slot * Layout::change_bytes + group * Layout::change_tile_bytes) >> 4) + step,
            key_tile + (group * Layout::row_bytes >> 4) + step, i > 0);
      }
      warpgroup_commit();
      if (!is_first && known <= static_cast<unsigned>(tile))
        known = wait_for_progress(progress - 1, static_cast<unsigned>(tile + 1));
      __syncwarp();
      warpgroup_wait<0>();
      if (lane == 0) barrier_arrive(&changes_read[slot]);
      if (is_last) {
        const int row = tile * Tile + thread / 32 * 16 + lane / 4;
        T* const to = p.dq.head(batch, head, p.width) + row * p.dq.row_stride + lane % 4 * 2;
#pragma unroll
        for (int n = 0; n < Width / 8; ++n) {
          float4 others{0.0f, 0.0f, 0.0f, 0.0f};
          if (!is_first) others = __ldcg(reinterpret_cast<const float4*>(sums + n * 512));
          const float2 both[2] = {{(others.x + sum[4 * n]) * p.scale, (others.y + sum[4 * n + 1]) * p.scale},
                                  {(others.z + sum[4 * n + 2]) * p.scale, (others.w + sum[4 * n + 3]) * p.scale}};
#pragma unroll
          for (int side = 0; side < 2; ++side) {
            if (row + 8 * side >= p.queries || 8 * n + lane % 4 * 2 >= p.width) continue;
            auto* const there = reinterpret_cast<unsigned*>(to + 8 * side * p.dq.row_stride + 8 * n);
            float2 old{0.0f, 0.0f};
            if (p.accumulate_q) old = unpack_pair<T>(*there);
            *there = pack_pair<T>(old.x + both[side].x, old.y + both[side].y);
          }
        }
      } else {
#pragma unroll
        for (int n = 0; n < Width / 8; ++n) {
          if (is_first)
            __stcg(reinterpret_cast<float4*>(sums + n * 512),
                   float4{sum[4 * n], sum[4 * n + 1], sum[4 * n + 2], sum[4 * n + 3]});
          else
            add_four(sums + n * 512, sum + 4 * n);
        }
        if (tile % 2 == 1 || tile == tiles - 1) {
          meet(own_barrier + groups, 128);  // the warpgroup's sums come before the number
          if (thread == 0) write_progress(progress, static_cast<unsigned>(tile + 1));
        }
      }
    }
    if (is_last) {
      meet(own_barrier + groups, 128);  // all have read the sums
      if (thread == 0) write_progress(progress, static_cast<unsigned>(tiles));
    }
  } else {
    take_registers<Layout::registers>();
    const int group = static_cast<int>(threadIdx.x) / 128 - 1;
    const int own_row = first + group * 64 + static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane / 4;
    unsigned char* const own = rows + group * Layout::row_bytes;
    const std::uint64_t row_tile = tile_descriptor<TileMajor::k>(own, Layout::row_panel_bytes);
    const std::uint64_t across = tile_descriptor<TileMajor::k>(ring, Layout::column_panel_bytes);
    const std::uint64_t down = tile_descriptor<TileMajor::mn>(ring, Layout::column_panel_bytes);
    const int change_row = static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane / 4;
    unsigned char* const own_changes =
        changes + group * Layout::change_tile_bytes + change_row * tile_row_bytes + lane % 4 * 4;
    const float scale = p.scale * 1.44269504f;
    RingPlace<Layout::slots> place;
    RingPlace<Plan::change_slots> change_place;
    Warpgroup warpgroup;
    const auto start_products = [&] {
      const int slot = place.slot;
      barrier_wait(&full[slot], place.parity);
      place.advance();
      warpgroup.multiply(row_tile, across + (slot * Layout::slot_bytes >> 4));
      return slot;
    };
    const auto start_sums = [&](int slot, bool add) { warpgroup.add_up(down + (slot * Layout::slot_bytes >> 4), add); };
    // ds of keys that are there, to the warpgroup that sums dq.
    const auto hand_over = [&] {
      const int slot = change_place.slot;
      barrier_wait(&changes_read[slot], change_place.parity ^ 1);
      change_place.advance();
      unsigned char* const to = own_changes + slot * Layout::change_bytes;
#pragma unroll
      for (int side = 0; side < 2; ++side)
#pragma unroll
        for (int n = 0; n < Tile / 8; ++n)
          *reinterpret_cast<unsigned*>(to + side * 8 * tile_row_bytes + (n ^ lane / 4) * 16) =
              own_row + 8 * side < p.keys ? warpgroup.change[n / 2][n % 2 * 2 + side] : 0u;
      copy_source_fence();
      __syncwarp();
      if (lane == 0) barrier_arrive(&changes_there[slot]);
    };
    if (group == groups - 1) announce(turn_barrier, turn_threads);

    barrier_wait(&rows_there, 0);
    load_rows<Width>(warpgroup.row, own);
    if constexpr (Plan::keep_rows) load_rows<Width>(warpgroup.row_slope, own + Layout::row_tile_bytes);
    int slot = start_products();
    warpgroup_wait<0>();
    warpgroup.differentiate(scale, p.queries, ring_terms + slot * Tile);
    warpgroup.pack();
    for (int tile = 1; tile < tiles; ++tile) {
      meet(turn_barrier + group, turn_threads);
      const int next = start_products();
      hand_over();
      start_sums(slot, tile > 1);
      announce(turn_barrier + (group + 1) % groups, turn_threads);
      warpgroup_wait<1>();
      warpgroup.differentiate(scale, p.queries - tile * Tile, ring_terms + next * Tile);
      warpgroup_wait<0>();
      __syncwarp();  // all lanes have read the terms
      if (lane == 0) barrier_arrive(&empty[slot]);
      warpgroup.pack();
      slot = next;
    }
    const auto last_changes = change_place;
    hand_over();
    start_sums(slot, tiles > 1);
    warpgroup_wait<0>();
    barrier_wait(&changes_read[last_changes.slot], last_changes.parity);  // both products with these rows are done
    meet(own_barrier + group, 128);
    const auto write = [&](float(&sums)[Width / 2], float factor, const HeadRows<T>& target, bool accumulate,
                           unsigned char* tile) {
      if (accumulate)
        add_rows<T, Width>(sums, factor, target.head(batch, head, p.width) + own_row * target.row_stride,
                           target.row_stride, p.keys - own_row, p.width);
      write_rows<T, Width>(sums, {factor, factor}, tile);
    };
    write(warpgroup.sum, p.scale, p.dk, p.accumulate_k, own);
    write(warpgroup.value_sum, 1.0f, p.dv, p.accumulate_v, own + Layout::row_tile_bytes);
    copy_source_fence();
    meet(own_barrier + group, 128);
    if (threadIdx.x % 128 != 0) return;
#pragma unroll
    for (int i = 0; i < 2 * Layout::panels; ++i)
      copy_box_back(i < Layout::panels ? dk_map : dv_map, own + i * Layout::row_panel_bytes, i % Layout::panels * 64,
                    head, first + group * 64, batch);
    wait_for_copied_source();
  }
#endif
}

/// All three gradients by blocks of 128 keys, `most_together` heads at a time; `terms` as in
/// attention_backward_warpgroups.
template <int Width, class Plan, class T>
void launch_attention_joint_gradient(Context<Cuda>& context, const kernel::AttentionShape& shape, const T* q,
                                     const T* k, const T* v, const QueryTerms<float>* terms, const T* dout, T* dq,
                                     bool accumulate_q, T* dk, bool accumulate_k, T* dv, bool accumulate_v,
                                     index_t most_together) {
  using Layout = AttentionJointLayout<Width, Plan>;
  const index_t tiles = blocks_for(shape.queries, Plan::column_tile);
  const AttentionJointSchedule schedule(shape.batch * shape.heads, blocks_for(shape.keys, 64 * Plan::groups),
                                        most_together, context.multiprocessors());
  const index_t items = index_t{schedule.pairs} * schedule.blocks;
  Scratch<Cuda> scratch(context);
  auto* const sums = scratch.allocate<float>(index_t{schedule.kept} * schedule.together * tiles * Layout::sum_floats);
  auto* const progress = scratch.allocate<unsigned>(items + 1);
  context.fill_zero(progress, static_cast<std::size_t>(items + 1) * sizeof(unsigned));
  const HeadRows<const T> queries{q, shape.q_row, shape.queries}, keys{k, shape.k_row, shape.keys};
  const HeadRows<const T> values{v, shape.v_row, shape.keys}, slopes{dout, shape.out_row, shape.queries};
  const HeadRows<T> dq_rows{dq, shape.q_row, shape.queries}, dk_rows{dk, shape.k_row, shape.keys},
      dv_rows{dv, shape.v_row, shape.keys};
  const AttentionJointArguments<T> arguments{static_cast<int>(shape.queries),
                                             static_cast<int>(shape.keys),
                                             static_cast<int>(shape.width),
                                             static_cast<int>(shape.heads),
                                             schedule,
                                             shape.scale,
                                             terms,
                                             gradient_terms_stride(shape),
                                             dq_rows,
                                             dk_rows,
                                             dv_rows,
                                             accumulate_q,
                                             accumulate_k,
                                             accumulate_v,
                                             sums,
                                             progress,
                                             progress + items};
  context.launch("attention_joint_gradient_kernel", {static_cast<unsigned>(items), Layout::threads, Layout::bytes},
                 attention_joint_gradient_kernel<T, Width, Plan>, head_map(keys, shape, 64),
                 head_map(values, shape, 64), head_map(queries, shape, 64), head_map(slopes, shape, 64),
                 head_map(dk_rows, shape, 64), head_map(dv_rows, shape, 64), arguments);
}

/// Whether attention_backward_joint can run a shape that prefers_gradient_warpgroups, and wins there. At the start the
/// blocks of a head run side by side and wait for each other: a constant time, against a gain by each tile of queries
/// of each block. On an H100, heads of 40: 248 tiles a multiprocessor (2 x 8 heads, 4096 x 4096) lose 8 %, 496 (4 x 8)
/// gain 5 %, 2482 (20 x 8) 16 to 19 %; 621 gain 4 % with 2048 keys and lose 10 % with 1024.
inline bool prefers_joint_gradient(const kernel::AttentionShape& shape, int multiprocessors) {
  const index_t tiles = shape.batch * shape.heads * ((shape.keys + 127) / 128) * ((shape.queries + 63) / 64);
  return shape.width <= 40 && shape.keys >= 2048 && tiles >= index_t{450} * multiprocessors;
}

template <class T>
void attention_backward_joint(Context<Cuda>& context, const kernel::AttentionShape& shape, const T* q, const T* k,
                              const T* v, const QueryTerms<float>* terms, const T* dout, T* dq, bool accumulate_q,
                              T* dk, bool accumulate_k, T* dv, bool accumulate_v) {
  constexpr index_t most_together =
      12;  // 24 or 40 at 20 x 8 heads: 4 and 17 % slower, their sums leave the second-level cache
  launch_attention_joint_gradient<40, AttentionJointPlan>(context, shape, q, k, v, terms, dout, dq, accumulate_q, dk,
                                                          accumulate_k, dv, accumulate_v, most_together);
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
