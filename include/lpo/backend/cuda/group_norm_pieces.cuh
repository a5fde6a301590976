// SPDX-License-Identifier: MIT
// What the group norm kernels on chip are made of: their shared memory, a thread's pieces of it, and sums that blocks exchange.
#pragma once

#include <lpo/backend/cuda/async_copy.cuh>
#include <lpo/backend/cuda/cluster.cuh>
#include <lpo/backend/cuda/group_norm_tiles.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

/// The most threads of a block, for whose registers there is room in two blocks.
template <int Inputs>
inline constexpr int resident_threads = Inputs == 1 ? 480 : 320;

/// Sums of a thread's channels by group: a vector has channels of two groups at most.
template <class Number>
struct alignas(16) GroupSums {
  Number at[2][2];  ///< [group, which sum]
};

/// This block's shared memory, in this order, each part aligned to 16 bytes.
template <int Inputs, class T>
struct ResidentLayout {
  T* staged[Inputs];               ///< [pixel of the chunk, tile]
  double* exchanged;               ///< [block of the cluster, group of the tile, 2]
  std::uint64_t* inbox;            ///< of exchanged
  GroupSums<compute_t<T>>* sums;   ///< [row of threads, column]
  compute_t<T>* group_numbers;     ///< [group of the tile, 3]
  compute_t<T>* channel_sums;      ///< [2, row of threads, tile], where they are wanted

  __device__ __forceinline__ explicit ResidentLayout(const GroupNormLaunch& g) {
    unsigned char* at = launched_shared_memory();
    for (int k = 0; k < Inputs; ++k, at += g.chunk * g.tile * static_cast<index_t>(sizeof(T))) staged[k] = reinterpret_cast<T*>(at);
    exchanged = reinterpret_cast<double*>(at);
    at += g.chunks * g.tile_groups * 16;
    inbox = reinterpret_cast<std::uint64_t*>(at);
    at += 16;
    sums = reinterpret_cast<GroupSums<compute_t<T>>*>(at);
    const int threads = static_cast<int>(blockDim.x * blockDim.y);
    channel_sums = reinterpret_cast<compute_t<T>*>(sums + threads);
    group_numbers = channel_sums + (g.channel_sums ? threads * (32 / static_cast<int>(sizeof(T))) : 0);
  }
};
template <class T>
index_t resident_bytes(const GroupNormLaunch& g, int inputs, index_t threads) {
  const index_t number = sizeof(compute_t<T>), row_sums = 4 + (g.channel_sums ? 32 / static_cast<index_t>(sizeof(T)) : 0);
  return inputs * g.chunk * g.tile * static_cast<index_t>(sizeof(T)) + g.chunks * g.tile_groups * 16 + 16 +
         (threads * row_sums + g.tile_groups * 3) * number;
}

/// This thread's pieces of the chunk: 16 bytes of a pixel, in every blockDim.y-th one.
template <int Vector, int Inputs, class T>
class ResidentPieces {
 public:
  using Number = compute_t<T>;

  __device__ __forceinline__ ResidentPieces(const GroupNormLaunch& g, const ResidentLayout<Inputs, T>& layout,
                                            const T* const (&inputs)[Inputs]) {
    const int pixels = static_cast<int>(g.pixels_of(blockIdx.x)), row = static_cast<int>(threadIdx.y);
    const int step = static_cast<int>(blockDim.y);
    const bool inside = first_channel<Vector>(g) < g.c;
    count_ = inside && row < pixels ? (pixels - row + step - 1) / step : 0;
    offset_ = (blockIdx.z * g.spatial + blockIdx.x * g.chunk + row) * g.c + first_channel<Vector>(g);
    step_ = static_cast<int>(step * g.c);
    staged_step_ = step * g.tile;
#pragma unroll
    for (int k = 0; k < Inputs; ++k) {
      staged_[k] = layout.staged[k] + row * g.tile + static_cast<int>(threadIdx.x) * Vector;
      inputs_[k] = inputs[k] + offset_;
    }
#pragma unroll
    for (int i = 0; i < ahead; ++i) fetch(i);
  }

  /// Calls `body(values)` for the pieces as they arrive.
  template <class Body>
  __device__ __forceinline__ void walk_arriving(Body&& body) {
#pragma unroll 1
    for (int i = 0; i < count_; ++i) {
      wait_for_groups<ahead - 1>();
      Number values[Inputs][Vector];
      load(i, values);
      body(values);
      fetch(i + ahead);
    }
  }

  /// Calls `body(global offset, values)` for the pieces.
  template <class Body>
  __device__ __forceinline__ void walk(Body&& body) const {
#pragma unroll 2
    for (int i = 0; i < count_; ++i) {
      Number values[Inputs][Vector];
      load(i, values);
      body(offset_ + static_cast<index_t>(i) * step_, values);
    }
  }

 private:
  static constexpr int ahead = 8 / Inputs;  ///< pieces on their way at a time

  /// Starts the copies of piece i, as a group that may be empty.
  __device__ __forceinline__ void fetch(int i) {
    if (i < count_) {
#pragma unroll
      for (int k = 0; k < Inputs; ++k) copy_16_async(staged_[k] + i * staged_step_, inputs_[k]);
    }
#pragma unroll
    for (int k = 0; k < Inputs; ++k) inputs_[k] += step_;
    close_copy_group();
  }
  __device__ __forceinline__ void load(int i, Number (&values)[Inputs][Vector]) const {
#pragma unroll
    for (int k = 0; k < Inputs; ++k) {
      StoredNumbers<T, Vector> piece;
      piece.fetch(staged_[k] + i * staged_step_);
      piece.widen_to(values[k]);
    }
  }

  T* staged_[Inputs];
  const T* inputs_[Inputs];  ///< at the next piece to fetch
  int count_, step_, staged_step_;
  index_t offset_;
};

/// Adds each thread's sums of its channels over the block by group, calls `also()` before the barrier between, and sends each
/// group's two sums to all blocks of the cluster.
template <int Vector, int Inputs, class T, class Also>
__device__ __forceinline__ void send_group_sums(const GroupNormLaunch& g, const ResidentLayout<Inputs, T>& layout,
                                                const compute_t<T> (&first)[Vector], const compute_t<T> (&second)[Vector],
                                                Also&& also) {
  using Number = compute_t<T>;
  const int columns = static_cast<int>(blockDim.x), rows = static_cast<int>(blockDim.y);
  const int in_tile = static_cast<int>(threadIdx.x) * Vector, thread = static_cast<int>(threadIdx.y) * columns + static_cast<int>(threadIdx.x);
  const int border = (g.group_of(in_tile) + 1) * g.width - in_tile;
  GroupSums<Number> own{};
#pragma unroll
  for (int i = 0; i < Vector; ++i) {
    own.at[0][0] += i < border ? first[i] : Number{};
    own.at[0][1] += i < border ? second[i] : Number{};
    own.at[1][0] += i < border ? Number{} : first[i];
    own.at[1][1] += i < border ? Number{} : second[i];
  }
  layout.sums[thread] = own;
  also();
  __syncthreads();
  if (g.chunks > 1) cluster_wait();  // the other blocks have begun
  for_groups_of_tile(g, [&](int, int local, int lane) {
    const int from = local * g.width / Vector, to = (local * g.width + g.width - 1) / Vector;
    Number sums[2] = {};
    for (int row = lane; row < rows; row += group_lanes)
#pragma unroll 2
      for (int column = from; column <= to; ++column) {
        const int part = g.group_of(column * Vector) == local ? 0 : 1;
        const Number(&of)[2] = layout.sums[row * columns + column].at[part];
        sums[0] += of[0];
        sums[1] += of[1];
      }
    const Number a = sum_of_lanes(sums[0]), b = sum_of_lanes(sums[1]);
    double* place = layout.exchanged + (static_cast<int>(blockIdx.x) * g.tile_groups + local) * 2;
    if (lane < g.chunks) send_pair(place, layout.inbox, g.chunks, lane, static_cast<double>(a), static_cast<double>(b));
  });
}

/// The sums that all blocks of the cluster sent for a group (number `local` of the tile), by its lanes.
template <int Inputs, class T>
__device__ __forceinline__ void join_group_sums(const GroupNormLaunch& g, const ResidentLayout<Inputs, T>& layout, int local, int lane,
                                                double (&sums)[2]) {
  const double* sent = layout.exchanged + (lane * g.tile_groups + local) * 2;
  const bool there = lane < g.chunks;
  sums[0] = sum_of_lanes(there ? sent[0] : 0.0);
  sums[1] = sum_of_lanes(there ? sent[1] : 0.0);
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
