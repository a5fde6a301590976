// SPDX-License-Identifier: MIT
// Gradient of attention of 16-bit heads on Hopper GPUs: warpgroup products on tiles from the bulk tensor copy engine.
#pragma once

#include <utility>

#include <lpo/backend/cuda/attention_warpgroup.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

/// The formula and the two sides are those of attention_backward.cuh, where a block owns rows and walks tiles of
/// columns:
///   p = 2^(c rows columns^T - level),  dp = row_slopes column_slopes^T,  ds = p (dp - delta)
///   sum += ds columns,  value_sum += p column_slopes
/// What of the sums a launch computes is its GradientPart: registers do not hold dk and dv of wide heads together.
///
/// Launch: block (x, head, batch) = a warpgroup that copies, and `groups` warpgroups of 64 rows each, which start the
/// first products of the next tile and the sums of this one together. Memory: rows, and a ring of tiles of columns,
/// their slopes and, by keys, their terms in shared memory; the rest in registers; the results leave through the place
/// of the rows. Numerics: products of T in float, p and ds rounded to T for their products. No atomics, no shares of
/// columns: the same bits in every run. Limits: fits_matrix_units, no mask. Only code for sm_90a has a body.
template <class T>
struct AttentionGradientWarpgroupArguments {
  int row_length, column_length, width;
  float scale;
  const QueryTerms<float>* terms;
  index_t terms_stride;              ///< of a head: a multiple of the tile, so that whole tiles can be copied
  HeadRows<T> target, value_target;  ///< dq; or dk and dv, of which one may be null
  bool accumulate, accumulate_values;
  bool after_terms;  ///< launched right after the kernel that writes the terms; else that one is done
};

/// What a launch sums: dq, dk, dv, or dk and dv.
enum class GradientPart { queries, keys, values, keys_and_values };

template <class T, int Width, GradientPart part, class Plan>
struct AttentionGradientWarpgroup {
  using Layout = AttentionWarpgroupLayout<Width, Plan, 2>;
  static constexpr int Tile = Plan::column_tile, kept_steps = Plan::keep_rows ? tile_steps<Width> : 1;
  static constexpr int kept_slope_steps = Plan::keep_rows ? tile_steps<Width> : 1;
  static constexpr bool by_keys = part != GradientPart::queries;
  static constexpr bool has_sum = part != GradientPart::values;
  static constexpr bool has_value_sum = part == GradientPart::values || part == GradientPart::keys_and_values;

  unsigned row[kept_steps][4], row_slope[kept_slope_steps][4];
  unsigned change[has_sum ? Tile / 16 : 1][4], weight[has_value_sum ? Tile / 16 : 1][4];  ///< ds and p as operands
  float score[Tile / 2], slope[Tile / 2];
  float sum[Width / 2], value_sum[Width / 2];
  QueryTerms<float> terms[2];  ///< of the rows, where they are queries

  /// Starts score and slope.
  __device__ __forceinline__ void multiply(std::uint64_t rows, std::uint64_t columns) {
    warpgroup_fence();
    multiply_rows<T, Width, Layout, Plan::keep_rows>(score, row, rows, columns);
    if constexpr (has_sum)
      multiply_rows<T, Width, Layout, Plan::keep_rows>(slope, row_slope, rows + (Layout::row_tile_bytes >> 4),
                                                         columns + (Layout::column_tile_bytes >> 4));
    warpgroup_commit();
  }
  /// Starts the sums.
  __device__ __forceinline__ void add_up(std::uint64_t columns, bool add) {
    warpgroup_fence();
    if constexpr (has_sum) multiply_weights<T>(sum, change, columns, add);
    if constexpr (has_value_sum)
      multiply_weights<T>(value_sum, weight, columns + (Layout::column_tile_bytes >> 4), add);
    warpgroup_commit();
  }

  /// From score and slope, once they are there, to p and ds; only the first `count` columns count.
  __device__ __forceinline__ void differentiate(float scale, int count, const QueryTerms<float>* column_terms) {
    const int lane_column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int n = 0; n < Tile / 8; ++n) {
      QueryTerms<float> of_column[2];
      if constexpr (by_keys) {
        const float4 both = *reinterpret_cast<const float4*>(column_terms + 8 * n + lane_column);
        of_column[0] = {both.x, both.y};
        of_column[1] = {both.z, both.w};
      }
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const QueryTerms<float> term = by_keys ? of_column[e % 2] : terms[e / 2];
        const float p = exp2_approximate(fmaf(score[4 * n + e], scale, -term.level));
        score[4 * n + e] = p;
        if constexpr (has_sum) slope[4 * n + e] = p * (slope[4 * n + e] - term.delta);
      }
    }
    if (count < Tile) {  // here, where the branch keeps the wait that follows behind the exponentials
#pragma unroll
      for (int n = 0; n < Tile / 8; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e)
          if (8 * n + lane_column + e % 2 >= count) score[4 * n + e] = slope[4 * n + e] = 0.0f;
    }
  }
  __device__ __forceinline__ void pack() {
#pragma unroll
    for (int n = 0; n < Tile / 8; ++n) {
      if constexpr (has_sum) pack_columns<T>(change, n, slope + 4 * n);
      if constexpr (has_value_sum) pack_columns<T>(weight, n, score + 4 * n);
    }
    if constexpr (has_sum) settle(change);
    if constexpr (has_value_sum) settle(weight);
  }
};

/// sums += what is there / factor, so that a write of factor * sums adds to it. `row` is this thread's first row.
template <class T, int Width>
__device__ __forceinline__ void add_rows(float (&sums)[Width / 2], float factor, const T* row, index_t row_stride,
                                         int count, int width) {
  const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
  for (int side = 0; side < 2; ++side)
#pragma unroll
    for (int n = 0; n < Width / 8; ++n) {
      if (8 * side >= count || 8 * n + column >= width) continue;
      const float2 before =
          unpack_pair<T>(*reinterpret_cast<const unsigned*>(row + 8 * side * row_stride + 8 * n + column));
      sums[4 * n + 2 * side] += before.x / factor;
      sums[4 * n + 2 * side + 1] += before.y / factor;
    }
}

template <class T, int Width, GradientPart part, class Plan>
__global__ void __launch_bounds__(AttentionWarpgroupLayout<Width, Plan, 2>::threads, Plan::blocks)
    attention_gradient_warpgroup_kernel(const __grid_constant__ CUtensorMap row_map,
                                        const __grid_constant__ CUtensorMap row_slope_map,
                                        const __grid_constant__ CUtensorMap column_map,
                                        const __grid_constant__ CUtensorMap column_slope_map,
                                        const __grid_constant__ CUtensorMap target_map,
                                        const __grid_constant__ CUtensorMap value_target_map,
                                        const __grid_constant__ AttentionGradientWarpgroupArguments<T> p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Layout = AttentionWarpgroupLayout<Width, Plan, 2>;
  using Warpgroup = AttentionGradientWarpgroup<T, Width, part, Plan>;
  constexpr int Tile = Plan::column_tile;
  __shared__ std::uint64_t full[Layout::slots], empty[Layout::slots], rows_there;
  extern __shared__ unsigned char attention_memory[];
  unsigned char* const rows = attention_memory + (1024 - shared_address(attention_memory) % 1024) % 1024;
  unsigned char* const ring = rows + Plan::groups * Layout::row_bytes;
  auto* const ring_terms = reinterpret_cast<QueryTerms<float>*>(ring + Layout::slots * Layout::slot_bytes);
  if (threadIdx.x == 0) {
    for (int slot = 0; slot < Layout::slots; ++slot) {
      barrier_init(&full[slot], 1);
      barrier_init(&empty[slot], 4 * Plan::groups);  // warps
    }
    barrier_init(&rows_there, 1);
    barrier_init_fence();
  }
  __syncthreads();
  if (p.after_terms) wait_for_kernels_before();
  let_next_kernel_start();
  const int first = static_cast<int>(blockIdx.x) * 64 * Plan::groups, head = static_cast<int>(blockIdx.y);
  const int batch = static_cast<int>(blockIdx.z), tiles = (p.column_length + Tile - 1) / Tile;
  const QueryTerms<float>* const terms =
      p.terms + (static_cast<index_t>(batch) * gridDim.y + static_cast<index_t>(head)) * p.terms_stride;
  RingPlace<Layout::slots> place;
  if (threadIdx.x < 128) {
    give_registers<Layout::copy_registers>();
    if (threadIdx.x != 0) return;
    barrier_expect(&rows_there, Plan::groups * Layout::row_bytes);
#pragma unroll
    for (int i = 0; i < Plan::groups * 2 * Layout::panels; ++i) {
      const int panel = i % Layout::panels, group = i / Layout::panels / 2;
      copy_box(rows + i * Layout::row_panel_bytes, i / Layout::panels % 2 == 0 ? row_map : row_slope_map, &rows_there,
               panel * 64, head, first + group * 64, batch);
    }
    for (int tile = 0; tile < tiles; ++tile) {
      unsigned char* const slot = ring + place.slot * Layout::slot_bytes;
      barrier_wait(&empty[place.slot], place.parity ^ 1);
      barrier_expect(&full[place.slot], Layout::slot_bytes + (Warpgroup::by_keys ? Layout::term_bytes : 0));
#pragma unroll
      for (int i = 0; i < 2 * Layout::panels; ++i)
        copy_box(slot + i * Layout::column_panel_bytes, i < Layout::panels ? column_map : column_slope_map,
                 &full[place.slot], i % Layout::panels * 64, head, tile * Tile, batch);
      if constexpr (Warpgroup::by_keys)
        copy_bytes(ring_terms + place.slot * Tile, terms + tile * Tile, Layout::term_bytes, &full[place.slot]);
      place.advance();
    }
  } else {
    take_registers<Layout::registers>();
    const int group = static_cast<int>(threadIdx.x) / 128 - 1, lane = static_cast<int>(threadIdx.x) % 32;
    const int own_row = first + group * 64 + static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane / 4;
    unsigned char* const own = rows + group * Layout::row_bytes;
    const std::uint64_t row_tile = tile_descriptor<TileMajor::k>(own, Layout::row_panel_bytes);
    const std::uint64_t across = tile_descriptor<TileMajor::k>(ring, Layout::column_panel_bytes);
    const std::uint64_t down = tile_descriptor<TileMajor::mn>(ring, Layout::column_panel_bytes);
    const float scale = p.scale * 1.44269504f;
    Warpgroup warpgroup;
    const auto start_products = [&] {
      const int slot = place.slot;
      barrier_wait(&full[slot], place.parity);
      place.advance();
      warpgroup.multiply(row_tile, across + (slot * Layout::slot_bytes >> 4));
      return slot;
    };
    const auto start_sums = [&](int slot, bool add) { warpgroup.add_up(down + (slot * Layout::slot_bytes >> 4), add); };
    if (Plan::turns && group == Plan::groups - 1) announce(turn_barrier, turn_threads);

    barrier_wait(&rows_there, 0);
    if constexpr (Plan::keep_rows) load_rows<Width>(warpgroup.row, own);
    if constexpr (Plan::keep_rows) load_rows<Width>(warpgroup.row_slope, own + Layout::row_tile_bytes);
    if constexpr (!Warpgroup::by_keys)
#pragma unroll
      for (int side = 0; side < 2; ++side)
        warpgroup.terms[side] =
            own_row + 8 * side < p.row_length ? terms[own_row + 8 * side] : QueryTerms<float>{0.0f, 0.0f};
    int slot = start_products();
    warpgroup_wait<0>();
    warpgroup.differentiate(scale, p.column_length, ring_terms + slot * Tile);
    warpgroup.pack();
    for (int tile = 1; tile < tiles; ++tile) {
      if constexpr (Plan::turns) meet(turn_barrier + group, turn_threads);
      const int next = start_products();
      start_sums(slot, tile > 1);
      if constexpr (Plan::turns) announce(turn_barrier + (group + 1) % Plan::groups, turn_threads);
      warpgroup_wait<Plan::overlap ? 1 : 0>();
      warpgroup.differentiate(scale, p.column_length - tile * Tile, ring_terms + next * Tile);
      if constexpr (Plan::overlap) warpgroup_wait<0>();
      __syncwarp();  // all lanes have read the terms
      if (lane == 0) barrier_arrive(&empty[slot]);
      warpgroup.pack();
      slot = next;
    }
    start_sums(slot, tiles > 1);
    warpgroup_wait<0>();

    meet(own_barrier + group, 128);  // the warpgroup is done with its rows
    if (!p.after_terms) wait_for_kernels_before();
    const auto write = [&](float(&sums)[Width / 2], float factor, const HeadRows<T>& target, bool accumulate,
                           unsigned char* tile) {
      if (target.data == nullptr) return;
      if (accumulate)
        add_rows<T, Width>(sums, factor, target.head(batch, head, p.width) + own_row * target.row_stride,
                           target.row_stride, p.row_length - own_row, p.width);
      write_rows<T, Width>(sums, {factor, factor}, tile);
    };
    if constexpr (Warpgroup::has_sum) write(warpgroup.sum, p.scale, p.target, p.accumulate, own);
    if constexpr (Warpgroup::has_value_sum)
      write(warpgroup.value_sum, 1.0f, p.value_target, p.accumulate_values, own + Layout::row_tile_bytes);
    copy_source_fence();
    meet(own_barrier + group, 128);
    if (threadIdx.x % 128 != 0) return;
    const auto copy_back = [&](const HeadRows<T>& target, const CUtensorMap& map, const unsigned char* from) {
      if (target.data == nullptr) return;
#pragma unroll
      for (int panel = 0; panel < Layout::panels; ++panel)
        copy_box_back(map, from + panel * Layout::row_panel_bytes, panel * 64, head, first + group * 64, batch);
    };
    if constexpr (Warpgroup::has_sum) copy_back(p.target, target_map, own);
    if constexpr (Warpgroup::has_value_sum) copy_back(p.value_target, value_target_map, own + Layout::row_tile_bytes);
    wait_for_copied_source();
  }
#endif
}

template <int Width, GradientPart part, class Plan, class T>
void launch_attention_gradient_warpgroups(Context<Cuda>& context, const kernel::AttentionShape& shape,
                                          const HeadRows<const T>& rows, const HeadRows<const T>& row_slopes,
                                          const HeadRows<const T>& columns, const HeadRows<const T>& column_slopes,
                                          const QueryTerms<float>* terms, index_t terms_stride,
                                          const HeadRows<T>& target, bool accumulate, const HeadRows<T>& value_target,
                                          bool accumulate_values, bool after_terms) {
  using Layout = AttentionWarpgroupLayout<Width, Plan, 2>;
  const dim3 grid(blocks_for(rows.length, 64 * Plan::groups), static_cast<unsigned>(shape.heads),
                  static_cast<unsigned>(shape.batch));
  const auto map_of = [&](const HeadRows<T>& written) {
    return written.data == nullptr ? CUtensorMap{} : head_map(written, shape, 64);
  };
  context.launch("attention_gradient_warpgroup_kernel", {grid, Layout::threads, Layout::bytes, 1, true},
                 attention_gradient_warpgroup_kernel<T, Width, part, Plan>, head_map(rows, shape, 64), head_map(row_slopes, shape, 64),
                 head_map(columns, shape, Plan::column_tile), head_map(column_slopes, shape, Plan::column_tile), map_of(target),
                 map_of(value_target),
                 AttentionGradientWarpgroupArguments<T>{static_cast<int>(rows.length), static_cast<int>(columns.length),
                                                        static_cast<int>(shape.width), shape.scale, terms, terms_stride, target,
                                                        value_target, accumulate, accumulate_values, after_terms});
}

/// Plans of dq, and of dk and dv: the fastest of those tried on an H100.
template <int Width>
struct AttentionGradientPlans;
template <>
struct AttentionGradientPlans<40> {
  using Queries = AttentionWarpgroupPlan<3, 64, 1, true, true, false>;
  using Keys = AttentionWarpgroupPlan<2, 96, 1, true, false, true>;
};
template <>
struct AttentionGradientPlans<64> {
  using Queries = AttentionWarpgroupPlan<2, 128, 1, true, false, true>;
  using Keys = AttentionWarpgroupPlan<2, 64, 1, true, true, true>;
};
template <>
struct AttentionGradientPlans<80> {
  using Queries = AttentionWarpgroupPlan<2, 64, 1, true, false, false>;
  using Keys = AttentionWarpgroupPlan<2, 64, 1, true, false, true>;
};
template <>
struct AttentionGradientPlans<128> {
  using Queries = AttentionWarpgroupPlan<2, 64, 1, true, false, true>;
  using Keys = Queries;
};
template <>
struct AttentionGradientPlans<160> {
  using Queries = AttentionWarpgroupPlan<1, 64, 1, true, false, false>;
  using Keys = Queries;
};

/// Whether attention_backward_warpgroups can run a shape that fits_matrix_units, and wins there: with few queries or
/// keys most of the time goes to copies.
template <class T>
bool prefers_gradient_warpgroups(const kernel::AttentionShape& shape) {
  const auto kernel =
      attention_gradient_warpgroup_kernel<T, 160, GradientPart::queries, AttentionGradientPlans<160>::Queries>;
  return !shape.causal && (shape.width > 128 ? shape.queries > 64 : shape.queries > 128 && shape.keys > 128) &&
         fits_tensor_maps(shape) && has_hopper_body(kernel);
}

/// Elements between the terms of two heads: whole tiles of 64 or 96 queries, which are copied past the last one.
inline index_t gradient_terms_stride(const kernel::AttentionShape& shape) { return (shape.queries + 191) / 192 * 192; }

/// `terms` in powers of two, gradient_terms_stride apart.
template <class T>
void attention_backward_warpgroups(Context<Cuda>& context, const kernel::AttentionShape& shape, const T* q, const T* k,
                                   const T* v, const QueryTerms<float>* terms, const T* dout, T* dq, bool accumulate_q,
                                   T* dk, bool accumulate_k, T* dv, bool accumulate_v) {
  const HeadRows<const T> queries{q, shape.q_row, shape.queries}, keys{k, shape.k_row, shape.keys};
  const HeadRows<const T> values{v, shape.v_row, shape.keys}, slopes{dout, shape.out_row, shape.queries};
  const index_t stride = gradient_terms_stride(shape);
  const HeadRows<T> no_target{}, dq_rows{dq, shape.q_row, shape.queries}, dk_rows{dk, shape.k_row, shape.keys},
      dv_rows{dv, shape.v_row, shape.keys};
  with_tile_width(shape.width, [&](auto tile_width) {
    constexpr int Width = decltype(tile_width)::value;
    using Plans = AttentionGradientPlans<Width>;
    bool after_terms = true;
    const auto by_keys = [&](auto part, const HeadRows<T>& keys_target, const HeadRows<T>& values_target) {
      launch_attention_gradient_warpgroups<Width, decltype(part)::value, typename Plans::Keys>(
          context, shape, keys, values, queries, slopes, terms, stride, keys_target, accumulate_k, values_target,
          accumulate_v, std::exchange(after_terms, false));
    };
    if (dq != nullptr)
      launch_attention_gradient_warpgroups<Width, GradientPart::queries, typename Plans::Queries>(
          context, shape, queries, slopes, keys, values, terms, stride, dq_rows, accumulate_q, no_target, false,
          std::exchange(after_terms, false));
    if constexpr (Width <= 80) {
      if (dk != nullptr || dv != nullptr)
        by_keys(std::integral_constant<GradientPart, GradientPart::keys_and_values>{}, dk_rows, dv_rows);
    } else {
      if (dk != nullptr) by_keys(std::integral_constant<GradientPart, GradientPart::keys>{}, dk_rows, no_target);
      if (dv != nullptr) by_keys(std::integral_constant<GradientPart, GradientPart::values>{}, no_target, dv_rows);
    }
  });
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
