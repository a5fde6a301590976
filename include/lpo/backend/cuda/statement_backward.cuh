// SPDX-License-Identifier: MIT
// The gradients of a fused statement on CUDA devices: one kernel for each set of axes that some leaf is broadcast along, or one,
// and one for their sums.
#pragma once

#include <algorithm>
#include <cstddef>

#include <lpo/backend/cuda/statement_leaves.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

// Formula: leaf gradient i = sum over the axes that leaf i is broadcast along of out_gradient * d tree / d leaf_i.
// Launch: a thread owns Vector elements side by side (16 bytes of the narrowest operand) at one position of the kept axes and
//   walks positions of the reduced axes, adding in registers; blocks leave partial sums as [chunk, kept], and a second kernel, which
//   starts early, adds the chunks of all leaves in a fixed order, in double. No atomics: two runs give the same bits.
// Numerics: float (double if an operand is), rounded once on storing.
// Limits: operands whose elements lie further apart than 2^31 - 1.

template <class Tree, class T, class Number>
struct BackwardArguments {
  static constexpr int operands = Tree::leaves + 1;
  Tree tree;
  const T* out_gradient;
  const void* data[operands] = {};
  void* gradients[operands] = {};  ///< of leaves that are not summed in this pass; null: none
  bool accumulate[operands] = {};
  bool fixed[operands] = {};       ///< leaves that do not move along the reduced axes
  Number* partial[operands] = {};  ///< leaves that are summed: [chunk, kept]; null: not in this pass
  AxisList<operands> kept = {}, reduced = {};
  unsigned kept_count = 0;         ///< elements of the kept axes
  unsigned reduced_count = 1, chunk = 1;
  unsigned place[operands] = {};   ///< where an operand stands in a stage; fixed leaves: after the stages
  unsigned stage_bytes = 0;
};

/// Gradients of every leaf at Vector elements from `offset` on, where the leaves are `leaves` and the output's gradient `out`.
/// Those of leaves that are not summed are stored, the others added to `sum`. Summed, a bit per leaf, tells which; where it is 0,
/// `a.gradients` does, and all are added.
template <unsigned Summed, int Vector, class Number, class Tree, class T>
__device__ __forceinline__ void statement_gradients(const BackwardArguments<Tree, T, Number>& a, const int* offset,
                                                    const Number (&leaves)[LeafAccessOf<Tree, Number, Vector>::slots][Vector],
                                                    const Number (&out)[Vector],
                                                    Number (&sum)[LeafAccessOf<Tree, Number, Vector>::slots][Vector]) {
  using Access = LeafAccessOf<Tree, Number, Vector>;
  Number gradients[Access::slots][Vector];
#pragma unroll
  for (int i = 0; i < Vector; ++i) {
    typename Tree::template State<Number> state;
    a.tree.template forward<0, Number>(RegisterLeaves<Access::slots, Vector, Number>{leaves, i}, state);
    RegisterGradients<Access::slots, Vector, Number> into{gradients, i};
    a.tree.template backward<0, Number>(state, out[i], into);
  }
#pragma unroll
  for (int k = 0; k < Tree::leaves; ++k)
    if (Summed == 0 || (Summed >> k & 1u) != 0)
#pragma unroll
      for (int i = 0; i < Vector; ++i) sum[k][i] += gradients[k][i];  // before the stores, which have branches: products are fused
  Access::template store<Summed>(a.gradients, a.accumulate, offset, gradients);
}

/// Adds what a block's rows of threads have summed, and leaves it as the chunk's partial sums.
template <unsigned Summed, int Vector, class Number, class Tree, class T>
__device__ __forceinline__ void join_rows(const BackwardArguments<Tree, T, Number>& a, unsigned columns, unsigned rows,
                                          unsigned column, unsigned row, Number* shared,
                                          const Number (&sum)[LeafAccessOf<Tree, Number, Vector>::slots][Vector]) {
  const unsigned width = columns * Vector;
#pragma unroll
  for (int k = 0; k < Tree::leaves; ++k) {
    if (Summed != 0 ? (Summed >> k & 1u) == 0 : a.partial[k] == nullptr) continue;  // the same for all threads
    __syncthreads();
    if (row < rows) store_numbers<Vector>(shared + (row * columns + column) * Vector, sum[k]);
    __syncthreads();
    for (unsigned at = threadIdx.x; at < width; at += 256u) {
      const unsigned element = blockIdx.x * width + at;
      if (element >= a.kept_count) continue;
      Number total = shared[at];
#pragma unroll 8
      for (unsigned other = 1; other < rows; ++other) total += shared[other * width + at];
      a.partial[k][static_cast<std::size_t>(blockIdx.y) * a.kept_count + element] = total;
    }
  }
}

/// The innermost axis is kept. A block covers `columns` groups of Vector elements of the kept axes (blockIdx.x) and a chunk of
/// the reduced ones (blockIdx.y), whose positions its 256 / columns rows of threads share.
template <int Vector, class Number, class Tree, class T>
__global__ void __launch_bounds__(256)
    statement_backward_columns_kernel(const __grid_constant__ BackwardArguments<Tree, T, Number> a, unsigned columns) {
  using Access = LeafAccessOf<Tree, Number, Vector>;
  let_next_kernel_start();
  const unsigned row = threadIdx.x / columns, column = threadIdx.x - row * columns, rows = 256u / columns;
  const unsigned first = (blockIdx.x * columns + column) * Vector;
  Number sum[Access::slots][Vector] = {};
  if (row < rows && first < a.kept_count) {
    int base[a.operands] = {};
    a.kept.locate(first, base);
    Number values[Access::slots][Vector];
    Access::load(a.data, base, values);
    const unsigned end = min(a.reduced_count, (blockIdx.y + 1) * a.chunk);
    for (unsigned position = blockIdx.y * a.chunk + row; position < end; position += rows) {
      int offset[a.operands];
#pragma unroll
      for (int k = 0; k < a.operands; ++k) offset[k] = base[k];
      a.reduced.locate(position, offset);
      Number out[Vector];
      Access::load_others(a.fixed, a.data, offset, values);
      load_numbers<Vector>(a.out_gradient + offset[0], out);
      statement_gradients<0, Vector, Number>(a, offset, values, out, sum);
    }
  }
  join_rows<0, Vector, Number>(a, columns, rows, column, row, reinterpret_cast<Number*>(launched_shared_memory()), sum);
}

/// How many positions of the reduced axes a thread of the staged kernel works on or has asked for.
inline constexpr unsigned backward_stages = 4;

/// Blocks of the staged kernel that a multiprocessor's registers hold: leaves and sums take half of a thread's.
template <int Vector, class Number, class Tree>
constexpr unsigned staged_blocks = Tree::leaves * Vector * sizeof(Number) <= 96 ? 3 : 2;

/// The same where operands move in vectors and some leaf is summed (those of Summed, where it is not 0: unknown). Operands pass
/// through shared memory, where each thread has the positions ahead on their way without a register for them. A thread reads only
/// what it has copied itself: no barriers.
template <unsigned Summed, int Vector, class Number, class Tree, class T>
__global__ void __launch_bounds__(256, staged_blocks<Vector, Number, Tree>)
    statement_backward_staged_kernel(const __grid_constant__ BackwardArguments<Tree, T, Number> a, unsigned columns) {
  using Access = LeafAccessOf<Tree, Number, Vector>;
  let_next_kernel_start();
  unsigned char* const shared = launched_shared_memory();
  const unsigned row = threadIdx.x / columns, column = threadIdx.x - row * columns, rows = 256u / columns;
  const unsigned first = (blockIdx.x * columns + column) * Vector;
  Number sum[Access::slots][Vector] = {};
  if (row < rows && first < a.kept_count) {
    int base[a.operands] = {};
    a.kept.locate(first, base);
    unsigned char *const begin = shared + threadIdx.x * 16, *const last_stage = begin + (backward_stages - 1) * a.stage_bytes;
    const unsigned end = min(a.reduced_count, (blockIdx.y + 1) * a.chunk);
    unsigned position = blockIdx.y * a.chunk + row, next = position;
    const bool one_axis = a.reduced.rank == 1;  // mostly
    const auto locate = [&](unsigned at, int* offset) {
#pragma unroll
      for (int k = 0; k < a.operands; ++k) offset[k] = base[k] + static_cast<int>(at) * (one_axis ? a.reduced.stride[k][0] : 0);
      if (!one_axis) a.reduced.locate(at, offset);
    };
    const auto ask = [&](unsigned char* stage) {
      if (next < end) {
        int offset[a.operands];
        locate(next, offset);
        Access::template stage<Summed>(a, false, offset, stage);
        StagedNumbers<T, Vector>::copy(stage + a.place[0], a.out_gradient + offset[0]);
        next += rows;
      }
      close_copy_group();  // an empty one counts, too
    };
    Number values[Access::slots][Vector];
    Access::template load_kept<Summed>(a.data, base, values);
    Access::template stage<Summed>(a, true, base, begin);
#pragma unroll
    for (unsigned stage = 0; stage + 1 < backward_stages; ++stage) ask(begin + stage * a.stage_bytes);
    unsigned char *now = begin, *free = last_stage;
    for (; position < end; position += rows) {
      wait_for_groups<static_cast<int>(backward_stages) - 2>();
      Number out[Vector];
      Access::template unstage<Summed>(a, begin, now, values);
      StagedNumbers<T, Vector>::load(now + a.place[0], out);
      ask(free);
      free = now;
      now = now == last_stage ? begin : now + a.stage_bytes;
      int offset[a.operands];
      locate(position, offset);
      statement_gradients<Summed, Vector, Number>(a, offset, values, out, sum);
    }
  }
  wait_for_groups<0>();
  join_rows<Summed, Vector, Number>(a, columns, rows, column, row, reinterpret_cast<Number*>(shared), sum);
}

/// The innermost axis is reduced: a warp owns one element of the kept axes, its lanes share a chunk of the reduced ones.
template <class Number, class Tree, class T>
__global__ void __launch_bounds__(256)
    statement_backward_rows_kernel(const __grid_constant__ BackwardArguments<Tree, T, Number> a) {
  let_next_kernel_start();
  const unsigned element = blockIdx.x * 8u + threadIdx.x / 32u, lane = threadIdx.x % 32u;
  if (element >= a.kept_count) return;
  using Access = LeafAccessOf<Tree, Number, 1>;
  int base[a.operands] = {};
  a.kept.locate(element, base);
  Number sum[Access::slots][1] = {};
  const unsigned begin = blockIdx.y * a.chunk, end = min(a.reduced_count, begin + a.chunk);
  for (unsigned position = begin + lane; position < end; position += 32u) {
    int offset[a.operands];
#pragma unroll
    for (int k = 0; k < a.operands; ++k) offset[k] = base[k];
    a.reduced.locate(position, offset);
    Number leaves[Access::slots][1], out[1];
    Access::load(a.data, offset, leaves);
    load_numbers<1>(a.out_gradient + offset[0], out);
    statement_gradients<0, 1, Number>(a, offset, leaves, out, sum);
  }
#pragma unroll
  for (int k = 0; k < Tree::leaves; ++k) {
    if (a.partial[k] == nullptr) continue;
    const Number total = warp_sum(sum[k][0]);
    if (lane == 0) a.partial[k][static_cast<std::size_t>(blockIdx.y) * a.kept_count + element] = total;
  }
}

/// gradient (+)= sum of the chunks' partial sums, of some leaves whose gradients share nothing. Knows no statement.
template <class Number>
struct PartialSums {
  static constexpr unsigned most = 4;
  struct Leaf {
    const Number* partial;  ///< [chunks, count]
    void* gradient;
    unsigned chunks, count, bytes;  ///< bytes of a number
    bool is_half, accumulate;
    AxisList<1> axes;
  };
  Leaf leaf[most];
};

/// One leaf per blockIdx.y. A block's 32 rows of threads share the chunks of eight elements: all loads are on their way at once.
template <class Number>
__global__ void __launch_bounds__(256) statement_sums_kernel(const __grid_constant__ PartialSums<Number> sums) {
  __shared__ double shared[32][9];
  const typename PartialSums<Number>::Leaf& leaf = sums.leaf[blockIdx.y];
  const unsigned lane = threadIdx.x % 8u, row = threadIdx.x / 8u, element = blockIdx.x * 8u + lane;
  wait_for_kernels_before();
  double total = 0;
  if (element < leaf.count) {
#pragma unroll 4
    for (unsigned chunk = row; chunk < leaf.chunks; chunk += 32u)
      total += static_cast<double>(leaf.partial[static_cast<std::size_t>(chunk) * leaf.count + element]);
  }
  shared[row][lane] = total;
  __syncthreads();
  if (row != 0 || element >= leaf.count) return;
#pragma unroll
  for (int other = 1; other < 32; ++other) total += shared[other][lane];
  int offset[1] = {};
  leaf.axes.locate(element, offset);
  const auto put = [&]<class T>(T* gradient) {
    if (leaf.accumulate) total += static_cast<double>(widen(gradient[offset[0]]));
    gradient[offset[0]] = narrow<T>(static_cast<compute_t<T>>(total));
  };
  if (leaf.bytes == 8)
    put(static_cast<double*>(leaf.gradient));
  else if (leaf.bytes == 4)
    put(static_cast<float*>(leaf.gradient));
  else if (leaf.is_half)
    put(static_cast<half*>(leaf.gradient));
  else
    put(static_cast<bfloat16*>(leaf.gradient));
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

/// Columns of a block that sums `groups` vectors of the kept axes at `positions`: `most` or eight (a cache line of 16-byte vectors),
/// whichever keeps more threads at work; all where there are fewer.
inline unsigned summing_columns(unsigned groups, unsigned positions, unsigned most) {
  if (groups <= most) return groups;
  const auto at_work = [&](unsigned columns) {
    return static_cast<double>(groups) * std::min(positions, 256 / columns) / blocks_for(groups, columns);
  };
  return at_work(most) >= at_work(8) ? most : 8;
}

template <class Number, class Tree, class T>
class StatementBackward {
 public:
  StatementBackward(Context<Cuda>& context, const IterationSpace& space, const Tree& tree, const T* out_gradient,
                    const void* const* data, void* const* gradients, const bool* accumulate)
      : context_(context), scratch_(context), space_(space), tree_(tree), out_gradient_(out_gradient), data_(data),
        gradients_(gradients), accumulate_(accumulate) {}

  void run() {
    if (leaves_depend()) {  // rare: gradients that overlap at other positions are written leaf by leaf
      for (int k = 0; k < Tree::leaves; ++k) {
        if (gradients_[k] == nullptr) continue;
        const bool summed = space_.reduced(k + 1);
        pass({summed ? kept_axes(space_, k + 1) : ~0u, summed ? 0u : 1u << k, summed ? 1u << k : 0u});
        if (summed) finish(1u << k);
      }
      return;
    }
    unsigned direct = 0, done = 0;
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
    if (done != 0) finish(done);
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
        if (gradients_cross(space_, a, gradients_[a], bytes[a], b, gradients_[b], bytes[b])) return true;
      }
    return false;
  }

  using Arguments = BackwardArguments<Tree, T, Number>;

  void pass(const BackwardPass& p) {
    Arguments a{tree_, out_gradient_};
    a.kept = AxisList<Tree::leaves + 1>(space_, p.kept);
    a.reduced = AxisList<Tree::leaves + 1>(space_, ~p.kept);
    a.kept_count = static_cast<unsigned>(a.kept.count());
    a.reduced_count = static_cast<unsigned>(a.reduced.count());
    if (a.kept_count == 0) return;  // nothing to write; where only reduced axes are empty, sums are zero
    for (int k = 0; k < Tree::leaves; ++k) {
      a.data[k] = data_[k];
      a.gradients[k] = (p.direct >> k & 1u) != 0 ? gradients_[k] : nullptr;
      a.accumulate[k] = accumulate_[k];
      a.fixed[k] = a.reduced.stands_still(k + 1);
    }
    if ((p.kept >> (space_.rank - 1) & 1u) == 0) {
      const dim3 grid = share(a, p.summed, blocks_for(a.kept_count, 8), 4, 512);
      context_.launch("statement_backward_rows_kernel", {grid, 256}, statement_backward_rows_kernel<Number, Tree, T>, a);
    } else if (vector > 1 && moves_in_vectors<Tree, T>(space_, vector, out_gradient_, data_, gradients_)) {
      if (!staged(a, p.summed)) in_columns<vector>(a, p.summed);
    } else {
      in_columns<1>(a, p.summed);
    }
  }

  template <int Vector>
  void in_columns(Arguments& a, unsigned summed) {
    const unsigned groups = a.kept_count / Vector;
    const unsigned columns = summed == 0 ? 256 : summing_columns(groups, a.reduced_count, Vector == 1 ? 32 : 16);
    const dim3 grid = share(a, summed, blocks_for(groups, columns), 4, 4 * 256 / columns);
    context_.launch("statement_backward_columns_kernel", {grid, 256, summed == 0 ? 0 : 256 * Vector * sizeof(Number)},
                    statement_backward_columns_kernel<Vector, Number, Tree, T>, a, columns);
  }

  /// Whether it was done: not where nothing is summed, where leaves are too many for the registers, or too wide for shared memory.
  bool staged(Arguments& a, unsigned summed) {
    if constexpr (vector > 1 && Tree::leaves <= 4) {
      if (summed == 0) return false;
      std::size_t bytes = 0;
      const auto place = [&]<class L>(int operand) {
        a.place[operand] = static_cast<unsigned>(bytes);
        bytes += StagedNumbers<L, vector>::bytes;
      };
      place.template operator()<T>(0);
      for_each_leaf<Tree>([&]<class L, bool Splat>(int k) {
        if (!Splat && !a.fixed[k]) place.template operator()<L>(k + 1);
      });
      a.stage_bytes = static_cast<unsigned>(bytes);
      bytes *= backward_stages;
      // The usual statement, one whole operand and others that are broadcast, has a kernel of its own: those others stay in registers.
      constexpr unsigned others = (1u << Tree::leaves) - 2;
      const bool usual = others != 0 && summed == others && !a.fixed[0];
      if (!usual)
        for_each_leaf<Tree>([&]<class L, bool Splat>(int k) {
          if (!Splat && a.fixed[k]) place.template operator()<L>(k + 1);
        });
      bytes = std::max(bytes, 256 * vector * sizeof(Number));
      const auto shared = static_cast<std::size_t>(context_.shared_memory()), of_system = std::size_t{1024};
      if (bytes > shared) return false;
      const std::size_t resident = std::min<std::size_t>(staged_blocks<vector, Number, Tree>, (shared + of_system) / (bytes + of_system));
      const unsigned columns = summing_columns(a.kept_count / vector, a.reduced_count, 16);
      const dim3 grid = share(a, summed, blocks_for(a.kept_count / vector, columns), static_cast<unsigned>(resident), 2 * (256 / columns));
      context_.launch("statement_backward_staged_kernel", {grid, 256, bytes},
                      usual ? statement_backward_staged_kernel<others, vector, Number, Tree, T>
                            : statement_backward_staged_kernel<0, vector, Number, Tree, T>,
                      a, columns);
      return true;
    }
    return false;
  }

  /// Shares the reduced axes out: `across` columns of blocks get as many blocks as make `resident` of them on each multiprocessor
  /// (more would wait for a second round), of `shortest` positions at least.
  dim3 share(Arguments& a, unsigned summed, unsigned across, unsigned resident, unsigned shortest) {
    const unsigned all = resident * static_cast<unsigned>(context_.multiprocessors());
    const unsigned most = std::clamp(blocks_for(a.reduced_count, shortest), 1u, 65535u);
    const unsigned chunks = summed == 0 ? 1 : std::clamp(all / across, 1u, most);
    a.chunk = std::max(1u, blocks_for(a.reduced_count, chunks));
    const unsigned parts = std::max(1u, blocks_for(a.reduced_count, a.chunk));
    for (int k = 0; k < Tree::leaves; ++k) {
      if ((summed >> k & 1u) == 0) continue;
      a.partial[k] = partial_[k] = scratch_.template allocate<Number>(static_cast<index_t>(parts) * a.kept_count);
      parts_[k] = parts;
      count_[k] = a.kept_count;
    }
    return dim3(across, parts);
  }

  /// Adds the partial sums of `leaves`, in their order where two have one gradient.
  void finish(unsigned leaves) {
    PartialSums<Number> sums;
    unsigned count = 0, longest = 0;
    const auto launch = [&] {
      if (count == 0) return;
      LaunchShape shape{dim3(blocks_for(longest, 8), count), 256};
      shape.early = true;
      context_.launch("statement_sums_kernel", shape, statement_sums_kernel<Number>, sums);
      count = longest = 0;
    };
    for_each_leaf<Tree>([&]<class L, bool Splat>(int k) {
      if ((leaves >> k & 1u) == 0 || count_[k] == 0) return;
      bool separate = count < sums.most;
      for (unsigned j = 0; j < count; ++j) separate = separate && sums.leaf[j].gradient != gradients_[k];
      if (!separate) launch();
      sums.leaf[count++] = {partial_[k], gradients_[k], parts_[k], count_[k], sizeof(L), std::is_same_v<L, half>, accumulate_[k],
                            AxisList<1>(space_, kept_axes(space_, k + 1), k + 1)};
      longest = std::max(longest, count_[k]);
    });
    launch();
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
