// SPDX-License-Identifier: MIT
// The gradients of a fused statement on CUDA devices: one kernel, and one per set of axes that some leaf is broadcast along.
#pragma once

#include <algorithm>

#include <lpo/backend/cuda/statement_leaves.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

// Formula: leaf gradient i = sum over the axes that leaf i is broadcast along of out_gradient * d tree / d leaf_i.
// Launch: a thread owns Vector elements side by side (16 bytes of the narrowest operand) at one position of the kept axes and
//   walks positions of the reduced axes, adding in registers; blocks leave partial sums as [chunk, kept], and a second kernel
//   adds the chunks in a fixed order, in double. No atomics: two runs give the same bits.
// Numerics: float (double if an operand is), rounded once on storing.
// Limits: operands whose elements lie further apart than 2^31 - 1.

template <class Tree, class T, class Number>
struct BackwardArguments {
  static constexpr int operands = Tree::leaves + 1;
  Tree tree;
  const T* out_gradient;
  const void* data[operands];
  void* gradients[operands];   ///< leaves that are not summed in this pass; null: none
  bool accumulate[operands];
  bool fixed[operands];        ///< leaves that do not move along the reduced axes
  Number* partial[operands];   ///< leaves that are summed: [chunk, kept]; null: not in this pass
  AxisList<operands> kept, reduced;
  unsigned kept_count;         ///< elements of the kept axes
  unsigned reduced_count, chunk;
};

/// Gradients of every leaf at Vector elements from `offset` on, where the leaves are `leaves` and the output's gradient `out`.
template <int Vector, class Number, class Tree, class T>
__device__ __forceinline__ void statement_gradients(const BackwardArguments<Tree, T, Number>& a, const int* offset,
                                                    const Number (&leaves)[LeafAccessOf<Tree, Number, Vector>::slots][Vector],
                                                    const Number (&out)[Vector],
                                                    Number (&gradients)[LeafAccessOf<Tree, Number, Vector>::slots][Vector]) {
  using Access = LeafAccessOf<Tree, Number, Vector>;
#pragma unroll
  for (int i = 0; i < Vector; ++i) {
    typename Tree::template State<Number> state;
    a.tree.template forward<0, Number>(RegisterLeaves<Access::slots, Vector, Number>{leaves, i}, state);
    RegisterGradients<Access::slots, Vector, Number> into{gradients, i};
    a.tree.template backward<0, Number>(state, out[i], into);
  }
  Access::store(a.gradients, a.accumulate, offset, gradients);
}

/// The innermost axis is kept. A block covers `columns` groups of Vector elements of the kept axes (blockIdx.x) and a chunk of
/// the reduced ones (blockIdx.y), whose positions its 256 / columns rows of threads share and add up in shared memory. A thread
/// asks for Ahead positions before it works on the first: stores that might alias keep the compiler from doing so.
template <int Vector, unsigned Ahead, class Number, class Tree, class T>
__global__ void __launch_bounds__(256, Ahead)
    statement_backward_columns_kernel(const __grid_constant__ BackwardArguments<Tree, T, Number> a, unsigned columns) {
  using Access = LeafAccessOf<Tree, Number, Vector>;
  __shared__ Number shared[256 * Vector];
  const unsigned column = threadIdx.x & (columns - 1), row = threadIdx.x / columns, rows = 256u / columns;
  const unsigned first = (blockIdx.x * columns + column) * Vector;
  Number sum[Access::slots][Vector] = {};
  if (first < a.kept_count) {
    int base[a.operands] = {};
    a.kept.locate(first, base);
    typename Access::Stored leaves[Ahead];
    StoredLeaf<0, T, Vector> out[Ahead];
#pragma unroll
    for (unsigned j = 0; j < Ahead; ++j) Access::fetch(nullptr, a.data, base, leaves[j]);
    const unsigned end = min(a.reduced_count, (blockIdx.y + 1) * a.chunk);
    for (unsigned position = blockIdx.y * a.chunk + row; position < end; position += Ahead * rows) {
      int offset[Ahead][a.operands];
#pragma unroll
      for (unsigned j = 0; j < Ahead; ++j) {
        if (position + j * rows >= end) break;
#pragma unroll
        for (int k = 0; k < a.operands; ++k) offset[j][k] = base[k];
        a.reduced.locate(position + j * rows, offset[j]);
        Access::fetch(a.fixed, a.data, offset[j], leaves[j]);
        out[j].fetch(a.out_gradient, offset[j][0]);
      }
#pragma unroll
      for (unsigned j = 0; j < Ahead; ++j) {
        if (position + j * rows >= end) break;
        Number values[Access::slots][Vector], out_gradient[Vector], gradients[Access::slots][Vector];
        Access::widen_all(leaves[j], values);
        out[j].widen_to(out_gradient);
        statement_gradients<Vector, Number>(a, offset[j], values, out_gradient, gradients);
#pragma unroll
        for (int k = 0; k < Tree::leaves; ++k)
#pragma unroll
          for (int i = 0; i < Vector; ++i) sum[k][i] += gradients[k][i];
      }
    }
  }
#pragma unroll
  for (int k = 0; k < Tree::leaves; ++k) {
    if (a.partial[k] == nullptr) continue;  // the same for all threads
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Vector; ++i) shared[(row * columns + column) * Vector + i] = sum[k][i];
    __syncthreads();
    for (unsigned at = threadIdx.x; at < columns * Vector; at += 256u) {
      const unsigned element = blockIdx.x * columns * Vector + at;
      if (element >= a.kept_count) continue;
      Number total{};
      for (unsigned other = 0; other < rows; ++other) total += shared[other * columns * Vector + at];
      a.partial[k][static_cast<std::size_t>(blockIdx.y) * a.kept_count + element] = total;
    }
  }
}

/// The innermost axis is reduced: a warp owns one element of the kept axes, its lanes share a chunk of the reduced ones.
template <class Number, class Tree, class T>
__global__ void __launch_bounds__(256)
    statement_backward_rows_kernel(const __grid_constant__ BackwardArguments<Tree, T, Number> a) {
  const unsigned element = blockIdx.x * 8u + threadIdx.x / 32u, lane = threadIdx.x % 32u;
  if (element >= a.kept_count) return;
  using Access = LeafAccessOf<Tree, Number, 1>;
  int base[a.operands] = {};
  a.kept.locate(element, base);
  Number sum[Access::slots] = {};
  const unsigned begin = blockIdx.y * a.chunk, end = min(a.reduced_count, begin + a.chunk);
  for (unsigned position = begin + lane; position < end; position += 32u) {
    int offset[a.operands];
#pragma unroll
    for (int k = 0; k < a.operands; ++k) offset[k] = base[k];
    a.reduced.locate(position, offset);
    Number leaves[Access::slots][1], out[1], gradients[Access::slots][1];
    Access::load(a.data, offset, leaves);
    load_numbers<1>(a.out_gradient + offset[0], out);
    statement_gradients<1, Number>(a, offset, leaves, out, gradients);
#pragma unroll
    for (int k = 0; k < Tree::leaves; ++k) sum[k] += gradients[k][0];
  }
#pragma unroll
  for (int k = 0; k < Tree::leaves; ++k) {
    if (a.partial[k] == nullptr) continue;
    const Number total = warp_sum(sum[k]);
    if (lane == 0) a.partial[k][static_cast<std::size_t>(blockIdx.y) * a.kept_count + element] = total;
  }
}

/// gradient (+)= sum of the chunks' partial sums in a fixed order: eight rows of threads share the chunks of 32 elements. Knows
/// no statement.
template <class T, class Number>
__global__ void __launch_bounds__(256)
    statement_sum_kernel(const Number* partial, unsigned chunks, unsigned count, AxisList<1> axes, T* gradient, bool accumulate) {
  __shared__ double shared[8][32];
  const unsigned lane = threadIdx.x % 32u, row = threadIdx.x / 32u, element = blockIdx.x * 32u + lane;
  double total = 0;
  if (element < count)
    for (unsigned chunk = row; chunk < chunks; chunk += 8u)
      total += static_cast<double>(partial[static_cast<std::size_t>(chunk) * count + element]);
  shared[row][lane] = total;
  __syncthreads();
  if (row != 0 || element >= count) return;
#pragma unroll
  for (int other = 1; other < 8; ++other) total += shared[other][lane];
  int offset[1] = {};
  axes.locate(element, offset);
  if (accumulate) total += static_cast<double>(widen(gradient[offset[0]]));
  gradient[offset[0]] = narrow<T>(static_cast<compute_t<T>>(total));
}

/// The leaves whose gradients one pass computes: those without a broadcast, and those that keep the axes `kept`.
struct BackwardPass {
  unsigned kept = ~0u;
  unsigned direct = 0, summed = 0;  ///< bit per leaf
};

inline unsigned kept_axes(const IterationSpace& space, int operand) {
  unsigned kept = 0;
  for (int axis = 0; axis < space.rank; ++axis)
    if (space.extent[axis] == 1 || space.stride[operand][axis] != 0) kept |= 1u << axis;
  return kept;
}

template <class Number, class Tree, class T>
class StatementBackward {
 public:
  StatementBackward(Context<Cuda>& context, const IterationSpace& space, const Tree& tree, const T* out_gradient,
                    const void* const* data, void* const* gradients, const bool* accumulate)
      : context_(context), scratch_(context), space_(space), tree_(tree), out_gradient_(out_gradient), data_(data),
        gradients_(gradients), accumulate_(accumulate) {}

  void run() {
    unsigned done = 0;
    if (leaves_depend()) {  // rare: gradients that overlap at other positions are written leaf by leaf
      for (int k = 0; k < Tree::leaves; ++k) {
        if (gradients_[k] == nullptr) continue;
        const bool summed = space_.reduced(k + 1);
        pass({summed ? kept_axes(space_, k + 1) : ~0u, summed ? 0u : 1u << k, summed ? 1u << k : 0u});
        if (summed) finish(k);
      }
      return;
    }
    unsigned direct = 0;
    for (int k = 0; k < Tree::leaves; ++k)
      if (gradients_[k] != nullptr && !space_.reduced(k + 1)) direct |= 1u << k;
    for (int k = 0; k < Tree::leaves; ++k) {
      if (gradients_[k] == nullptr || !space_.reduced(k + 1) || (done >> k & 1u)) continue;
      BackwardPass group{kept_axes(space_, k + 1), direct, 0};
      for (int j = k; j < Tree::leaves; ++j)
        if (gradients_[j] != nullptr && space_.reduced(j + 1) && kept_axes(space_, j + 1) == group.kept) group.summed |= 1u << j;
      pass(group);
      done |= group.summed;
      direct = 0;  // the first pass wrote them
    }
    if (direct != 0) pass({~0u, direct, 0});
    for (int k = 0; k < Tree::leaves; ++k)
      if (done >> k & 1u) finish(k);
  }

 private:
  static constexpr int vector = statement_vector<Tree, T>();

  /// True when two gradients share memory in a way that depends on the order of writing.
  bool leaves_depend() const {
    index_t bytes[Tree::leaves] = {};
    for_each_leaf<Tree>([&]<class L, bool Splat>(int k) { bytes[k] = static_cast<index_t>(sizeof(L)); });
    for (int a = 0; a < Tree::leaves; ++a)
      for (int b = a + 1; b < Tree::leaves; ++b) {
        if (gradients_[a] == nullptr || gradients_[b] == nullptr) continue;
        const bool both_summed = space_.reduced(a + 1) && space_.reduced(b + 1);
        if (both_summed) continue;  // finished in leaf order
        if (gradients_cross(space_, a, gradients_[a], bytes[a], b, gradients_[b], bytes[b])) return true;
      }
    return false;
  }

  void pass(const BackwardPass& p) {
    BackwardArguments<Tree, T, Number> a{tree_, out_gradient_, {}, {}, {}, {}, {}, {}, {}, 0, 1, 1};
    a.kept = AxisList<Tree::leaves + 1>(space_, p.kept);
    a.reduced = AxisList<Tree::leaves + 1>(space_, ~p.kept);
    a.kept_count = static_cast<unsigned>(a.kept.count());
    a.reduced_count = static_cast<unsigned>(a.reduced.count());
    if (a.kept_count == 0) return;  // nothing to write; where only reduced axes are empty, sums are zero
    const bool keeps_inner = (p.kept >> (space_.rank - 1) & 1u) != 0;
    const bool vectors =
        keeps_inner && vector > 1 && moves_in_vectors<Tree, T>(space_, vector, out_gradient_, data_, gradients_);
    const unsigned groups = a.kept_count / (vectors ? vector : 1);
    // Columns of a block: all 256 threads where nothing is summed; otherwise a power of two that wastes few threads.
    unsigned columns = 256;
    if (p.summed != 0)
      for (columns = 32; columns > 4 && groups % columns != 0 && groups < 8 * columns;) columns /= 2;
    const unsigned across = keeps_inner ? blocks_for(groups, columns) : blocks_for(a.kept_count, 8);
    // Chunks: enough blocks to fill the device, and so long that the second stage is short beside the first.
    const index_t shortest = keeps_inner ? 4 * 256 / columns : 512;
    const index_t most = std::max<index_t>(1, (a.reduced_count + shortest - 1) / shortest);
    const index_t chunks = p.summed == 0 ? 1 : std::clamp<index_t>(4 * context_.multiprocessors() / across, 1, std::min<index_t>(most, 65535));
    a.chunk = std::max(1u, static_cast<unsigned>((a.reduced_count + chunks - 1) / chunks));
    const unsigned parts = std::max(1u, (a.reduced_count + a.chunk - 1) / a.chunk);
    for (int k = 0; k < Tree::leaves; ++k) {
      a.data[k] = data_[k];
      a.gradients[k] = (p.direct >> k & 1u) != 0 ? gradients_[k] : nullptr;
      a.accumulate[k] = accumulate_[k];
      a.fixed[k] = a.reduced.stands_still(k + 1);
      if ((p.summed >> k & 1u) != 0) {
        a.partial[k] = partial_[k] = scratch_.template allocate<Number>(static_cast<index_t>(parts) * a.kept_count);
        parts_[k] = parts;
        count_[k] = a.kept_count;
      }
    }
    const dim3 grid(across, parts);
    if (!keeps_inner) {
      context_.launch("statement_backward_rows_kernel", {grid, 256}, statement_backward_rows_kernel<Number, Tree, T>, a);
      return;
    }
    constexpr unsigned ahead = Tree::leaves <= 4 ? 2 : 1;  // what registers allow
    const auto kernel = !vectors         ? statement_backward_columns_kernel<1, 1, Number, Tree, T>
                        : p.summed == 0 ? statement_backward_columns_kernel<vector, 1, Number, Tree, T>
                                        : statement_backward_columns_kernel<vector, ahead, Number, Tree, T>;
    context_.launch("statement_backward_columns_kernel", {grid, 256}, kernel, a, columns);
  }

  void finish(int leaf) {
    for_each_leaf<Tree>([&]<class L, bool Splat>(int k) {
      if (k != leaf || count_[k] == 0) return;
      context_.launch("statement_sum_kernel", {blocks_for(count_[k], 32), 256}, statement_sum_kernel<L, Number>, partial_[k],
                      parts_[k], count_[k], AxisList<1>(space_, kept_axes(space_, k + 1), k + 1),
                      static_cast<L*>(gradients_[k]), accumulate_[k]);
    });
  }

  Context<Cuda>& context_;
  Scratch<Cuda> scratch_;
  const IterationSpace& space_;
  const Tree& tree_;
  const T* out_gradient_;
  const void* const* data_;
  void* const* gradients_;
  const bool* accumulate_;
  Number* partial_[Tree::leaves] = {};
  unsigned parts_[Tree::leaves] = {}, count_[Tree::leaves] = {};
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
