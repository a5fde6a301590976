// SPDX-License-Identifier: MIT
// Pieces of the tensor-core attention kernels: 16-bit tiles in shared memory, matrix fragments, and their products.
#pragma once

#include <lpo/backend/cuda/async_copy.cuh>
#include <lpo/backend/cuda/attention_plain.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

/// Warps of a block; each owns 16 or 32 rows of the block's tile.
inline constexpr int attention_warps = 4;
inline constexpr int attention_threads = 32 * attention_warps;

/// Elements between two rows of a tile: an odd number of 16-byte units, so that eight rows never meet in a bank.
template <int Width>
inline constexpr int tile_pitch = (Width / 8 | 1) * 8;
/// Fragments of 16 columns. Where Width is an odd number of eights, the second half of the last one is not used.
template <int Width>
inline constexpr int tile_steps = (Width + 15) / 16;
template <int Rows, int Width>
inline constexpr int tile_elements = Rows * tile_pitch<Width>;

/// Copies tiles of Rows rows of `width` elements, one below the other, by Threads threads, of which this is number
/// `thread`. Neighbouring threads take neighbouring 16 bytes of a row, so that memory is asked for whole lines; a
/// thread stays in its columns. What does not change from tile to tile is kept, so that a copy is a few instructions.
template <int Rows, int Width, int Threads, class T>
class RowCopier {
 public:
  __device__ __forceinline__ RowCopier(const T* rows, index_t row_stride, int width, int thread)
      : row_stride_(row_stride), row_(thread / units), inside_(thread % units * 8 < width) {
    const int column = thread % units * 8;
    from_ = rows + row_ * row_stride + column;
    to_ = static_cast<unsigned>((row_ * tile_pitch<Width> + column) * 2);
  }

  /// Starts the copy of a tile; rows from `count` on and columns from `width` to Width become zeros.
  __device__ __forceinline__ void start(unsigned tile, int count) const {
    if (row_ >= rows_at_once) return;
#pragma unroll
    for (int i = 0; i < Rows; i += rows_at_once)
      if (i + rows_at_once <= Rows || row_ + i < Rows)
        copy_async<16>(tile + to_ + i * tile_pitch<Width> * 2, from_ + i * row_stride_, inside_ && row_ + i < count);
  }
  __device__ __forceinline__ void advance() { from_ += Rows * row_stride_; }

 private:
  static constexpr int units = Width / 8, rows_at_once = Threads / units;

  index_t row_stride_;
  const T* from_;
  unsigned to_;
  int row_;
  bool inside_;
};

/// Four 8 x 8 matrices; lane l gives the address of row l % 8 of matrix l / 8.
__device__ __forceinline__ void load_matrices(unsigned (&fragment)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address));
}
__device__ __forceinline__ void load_matrices_transposed(unsigned (&fragment)[4], unsigned address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(fragment[0]), "=r"(fragment[1]), "=r"(fragment[2]), "=r"(fragment[3])
               : "r"(address));
}

/// Bytes from a tile's start to an element.
template <int Width>
__device__ __forceinline__ unsigned tile_offset(int row, int column) {
  return static_cast<unsigned>((row * tile_pitch<Width> + column) * 2);
}

/// A lane's byte offset for load_matrices in a tile of rows. Left operands (rows x depth) and, transposed, right
/// operands that lie as depth x columns: matrices go down the rows first.
template <int Width>
__device__ __forceinline__ unsigned rows_first_offset() {
  const int lane = threadIdx.x % 32;
  return tile_offset<Width>(lane % 16, lane / 16 * 8);
}
/// Right operands that lie as columns x depth: matrices go along the depth first.
template <int Width>
__device__ __forceinline__ unsigned depth_first_offset() {
  const int lane = threadIdx.x % 32;
  return tile_offset<Width>(lane / 16 * 8 + lane % 8, lane / 8 % 2 * 8);
}

/// What is added to the addresses of such lanes for the fragment `step` of the rows from `row` on. Lanes whose half of a last
/// fragment is not used read the half that is: past the row's end lie rows that may be on their way.
template <int Width>
__device__ __forceinline__ unsigned rows_first_step(int row, int step) {
  const unsigned half = 16 * step + 16 <= Width ? 0 : threadIdx.x % 32 / 16 * 16;
  return tile_offset<Width>(row, 16 * step) - half;
}
template <int Width>
__device__ __forceinline__ unsigned depth_first_step(int row, int step) {
  const unsigned half = 16 * step + 16 <= Width ? 0 : threadIdx.x % 32 / 8 % 2 * 16;
  return tile_offset<Width>(row, 16 * step) - half;
}

/// sum[16 x 8] += a[16 x Depth] b[Depth x 8]; Depth 8 takes the first halves of both fragments. Lane l holds columns
/// 2 (l % 4) and one more of rows l / 4 (sum[0], sum[1]) and l / 4 + 8 (sum[2], sum[3]).
template <class T, int Depth>
__device__ __forceinline__ void multiply_fragments(float (&sum)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  constexpr bool brain = std::is_same_v<T, bfloat16>;
  if constexpr (brain && Depth == 16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else if constexpr (brain)
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
  else if constexpr (Depth == 16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
        : "r"(a[0]), "r"(a[1]), "r"(b0));
}

/// Products over the width, of step `step` of tile_steps: two neighbouring fragments of 8 columns from four
/// matrices of b.
template <class T, int Width>
__device__ __forceinline__ void multiply_step(float (&first)[4], float (&second)[4], const unsigned (&a)[4],
                                              const unsigned (&b)[4], int step) {
  if (16 * step + 16 <= Width) {
    multiply_fragments<T, 16>(first, a, b[0], b[1]);
    multiply_fragments<T, 16>(second, a, b[2], b[3]);
  } else {
    multiply_fragments<T, 8>(first, a, b[0], b[1]);
    multiply_fragments<T, 8>(second, a, b[2], b[3]);
  }
}

/// Products that run along the width: columns 16 step … of sums, the second eight only where they exist.
template <class T, int Width>
__device__ __forceinline__ void multiply_columns(float (&sum)[Width / 8][4], const unsigned (&a)[4],
                                                 const unsigned (&b)[4], int step) {
  multiply_fragments<T, 16>(sum[2 * step], a, b[0], b[1]);
  if (16 * step + 16 <= Width) multiply_fragments<T, 16>(sum[2 * step + 1], a, b[2], b[3]);
}

/// Two numbers as stored, the first in the lower half.
template <class T>
__device__ __forceinline__ unsigned pack_pair(float low, float high) {
  unsigned packed;
  if constexpr (std::is_same_v<T, bfloat16>)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}
template <class T>
__device__ __forceinline__ float2 unpack_pair(unsigned packed) {
  T low, high;
  low.bits = static_cast<std::uint16_t>(packed & 0xffffu);
  high.bits = static_cast<std::uint16_t>(packed >> 16);
  return {widen(low), widen(high)};
}

/// The left operand of the next product: 16 columns of sums, that is two neighbouring fragments, rounded to T.
template <class T>
__device__ __forceinline__ void pack_left(unsigned (&a)[4], const float (&first)[4], const float (&second)[4]) {
  a[0] = pack_pair<T>(first[0], first[1]);
  a[1] = pack_pair<T>(first[2], first[3]);
  a[2] = pack_pair<T>(second[0], second[1]);
  a[3] = pack_pair<T>(second[2], second[3]);
}

/// Stores a warp's 16 * Tiles x Width sums, times factor[tile][row half], as rows of T: through `staging`, the warp's
/// own 16 * Tiles rows of a tile, so that global memory sees 16-byte accesses. With `accumulate`, adds what is there,
/// in float.
template <int Width, int Tiles, class T>
__device__ __forceinline__ void store_rows(float (&sum)[Tiles][Width / 8][4], const float (&factor)[Tiles][2],
                                           T* staging, T* target, index_t row_stride, int count, int width,
                                           bool accumulate) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int t = 0; t < Tiles; ++t)
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      const int row = 16 * t + 8 * side + lane / 4;
#pragma unroll
      for (int n = 0; n < Width / 8; ++n) {
        const int column = 8 * n + lane % 4 * 2;
        float2 value{sum[t][n][2 * side] * factor[t][side], sum[t][n][2 * side + 1] * factor[t][side]};
        if (accumulate && row < count && column < width) {
          const float2 before = unpack_pair<T>(*reinterpret_cast<const unsigned*>(target + row * row_stride + column));
          value.x += before.x;
          value.y += before.y;
        }
        *reinterpret_cast<unsigned*>(staging + row * tile_pitch<Width> + column) = pack_pair<T>(value.x, value.y);
      }
    }
  __syncwarp();
  constexpr int chunks = Width / 8;
  for (int i = lane; i < 16 * Tiles * chunks; i += 32) {
    const int row = i / chunks, column = i % chunks * 8;
    if (row < count && column < width)
      *reinterpret_cast<uint4*>(target + row * row_stride + column) =
          *reinterpret_cast<const uint4*>(staging + row * tile_pitch<Width> + column);
  }
  __syncwarp();
}

/// Every bit that is set in one of the addresses.
template <class... Pointers>
std::uintptr_t address_bits(Pointers... addresses) {
  return (std::uintptr_t{0} | ... | reinterpret_cast<std::uintptr_t>(addresses));
}

/// What the tensor-core kernels ask of a shape beyond 16-bit storage: 16-byte rows, heads of at most 160, a positive
/// scale (the maximum of the scores is then scale times the maximum of the products).
inline bool fits_matrix_units(const kernel::AttentionShape& shape, std::uintptr_t addresses) {
  const index_t strides = shape.q_row | shape.k_row | shape.v_row | shape.out_row | shape.width;
  const index_t grid_limit = 65535, length_limit = index_t{1} << 30;
  return addresses % 16 == 0 && strides % 8 == 0 && shape.width <= 160 && shape.scale > 0.0f &&
         shape.batch <= grid_limit && shape.heads <= grid_limit && shape.queries < length_limit &&
         shape.keys < length_limit;
}

/// Calls body(integral_constant<int, Width>) with the smallest tile width that holds `width`.
template <class Body>
void with_tile_width(index_t width, Body&& body) {
  if (width <= 40) return body(std::integral_constant<int, 40>{});
  if (width <= 64) return body(std::integral_constant<int, 64>{});
  if (width <= 80) return body(std::integral_constant<int, 80>{});
  if (width <= 128) return body(std::integral_constant<int, 128>{});
  body(std::integral_constant<int, 160>{});
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
