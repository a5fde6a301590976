// SPDX-License-Identifier: MIT
// The leaves of a fused statement in its kernels: their numbers in registers, their gradients, and how many elements move at
// a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <type_traits>
#include <utility>

#include <lpo/backend/cuda/async_copy.cuh>
#include <lpo/backend/cuda/statement_axes.cuh>
#include <lpo/tensor/evaluate.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

/// Leaf values of one element, from registers.
template <int Leaves, int Vector, class Number>
struct RegisterLeaves {
  const Number (&value)[Leaves][Vector];
  int i;

  template <int I, class T, bool Splat, class V>
  __device__ __forceinline__ V load() const {
    return value[I][i];
  }
};

template <int Leaves, int Vector, class Number>
struct RegisterGradients {
  Number (&value)[Leaves][Vector];
  int i;

  template <int I, class T, bool Splat, class V>
  __device__ __forceinline__ void add(V gradient) {
    value[I][i] = gradient;
  }
};

template <int Vector, bool Splat, class T, class Number>
__device__ __forceinline__ void load_leaf(const void* data, int offset, Number (&values)[Vector]) {
  const T* p = static_cast<const T*>(data) + offset;
  if constexpr (Splat && Vector > 1) {
    const Number value = static_cast<Number>(widen(*p));
#pragma unroll
    for (int i = 0; i < Vector; ++i) values[i] = value;
  } else {
    load_numbers<Vector>(p, values);
  }
}

/// Count numbers of one operand in shared memory, for each of 256 threads: pieces of 16 bytes, those of all threads side by side
/// so that a warp reads without bank conflicts. A thread's place is that of its first piece.
template <class T, int Count>
struct StagedNumbers {
  static constexpr int numbers = 16 / static_cast<int>(sizeof(T)), pieces = Count / numbers;  ///< of a piece; 0: cannot be staged
  static constexpr unsigned stride = 256 * 16, bytes = pieces * stride;

  static __device__ __forceinline__ void copy(unsigned char* to, const T* from) {
#pragma unroll
    for (int piece = 0; piece < pieces; ++piece) copy_16_async(to + piece * stride, from + piece * numbers);
  }
  template <class Number>
  static __device__ __forceinline__ void load(const unsigned char* from, Number (&values)[Count]) {
#pragma unroll
    for (int piece = 0; piece < pieces; ++piece) {
      StoredNumbers<T, numbers> stored;
      stored.fetch(reinterpret_cast<const T*>(from + piece * stride));
      Number part[numbers];
      stored.widen_to(part);
#pragma unroll
      for (int i = 0; i < numbers; ++i) values[piece * numbers + i] = part[i];
    }
  }
};

template <class Tree, class Number, int Vector, class Leaves, class Sequence>
struct LeafAccess;

/// What all kernels of a statement do with its leaves, unrolled over their types.
template <class Tree, class Number, int Vector, class... Leaf, int... I>
struct LeafAccess<Tree, Number, Vector, LeafTypes<Leaf...>, std::integer_sequence<int, I...>> {
  static constexpr int slots = Tree::leaves > 0 ? Tree::leaves : 1;

  static __device__ __forceinline__ void load(const void* const* data, const int* offset,
                                              [[maybe_unused]] Number (&values)[slots][Vector]) {
    (load_leaf<Vector, Leaf::splat, typename Leaf::type>(data[I], offset[I + 1], values[I]), ...);
  }
  /// The leaves that `skip` does not name; those keep their values.
  static __device__ __forceinline__ void load_others(const bool* skip, const void* const* data, const int* offset,
                                                     [[maybe_unused]] Number (&values)[slots][Vector]) {
    ((skip[I] ? void() : load_leaf<Vector, Leaf::splat, typename Leaf::type>(data[I], offset[I + 1], values[I])), ...);
  }
  // The staged kernel's: leaves of `Kept`, a bit per leaf, are not staged but loaded once, as are those of one number for all elements.
  template <unsigned Kept>
  static __device__ __forceinline__ void load_kept(const void* const* data, const int* offset,
                                                   [[maybe_unused]] Number (&values)[slots][Vector]) {
    (load_one<Leaf, stays<Leaf, Kept, I>>(data[I], offset[I + 1], values[I]), ...);
  }
  /// Starts to copy the leaves that are `fixed`, or those that are not, to this thread's part of a stage (StagedNumbers).
  template <unsigned Kept, class Arguments>
  static __device__ __forceinline__ void stage(const Arguments& a, bool fixed, const int* offset, unsigned char* stage) {
    (stage_one<Leaf, stays<Leaf, Kept, I>>(a.data[I], a.fixed[I] == fixed, offset[I + 1], stage + a.place[I + 1]), ...);
  }
  template <unsigned Kept, class Arguments>
  static __device__ __forceinline__ void unstage(const Arguments& a, const unsigned char* fixed, const unsigned char* moving,
                                                 [[maybe_unused]] Number (&values)[slots][Vector]) {
    (unstage_one<Leaf, stays<Leaf, Kept, I>>((a.fixed[I] ? fixed : moving) + a.place[I + 1], values[I]), ...);
  }

  /// Stores or adds the gradients of leaves that are not summed, in leaf order: a leaf that occurs twice adds to itself. Those of
  /// Summed are known to be.
  template <unsigned Summed>
  static __device__ __forceinline__ void store(void* const* gradients, const bool* accumulate, const int* offset,
                                               const Number (&values)[slots][Vector]) {
    ((Summed >> I & 1u ? void() : store_one<typename Leaf::type>(gradients[I], accumulate[I], offset[I + 1], values[I])), ...);
  }

 private:
  template <class L, unsigned Kept, int K>
  static constexpr bool stays = L::splat || (Kept >> K & 1u) != 0;
  template <class L, bool Stays>
  static __device__ __forceinline__ void load_one(const void* data, int offset, Number (&values)[Vector]) {
    if constexpr (Stays) load_leaf<Vector, L::splat, typename L::type>(data, offset, values);
  }
  template <class L, bool Stays>
  static __device__ __forceinline__ void stage_one(const void* data, bool wanted, int offset, unsigned char* to) {
    if constexpr (!Stays)
      if (wanted) StagedNumbers<typename L::type, Vector>::copy(to, static_cast<const typename L::type*>(data) + offset);
  }
  template <class L, bool Stays>
  static __device__ __forceinline__ void unstage_one(const unsigned char* from, Number (&values)[Vector]) {
    if constexpr (!Stays) StagedNumbers<typename L::type, Vector>::load(from, values);
  }
  template <class T>
  static __device__ __forceinline__ void store_one(void* gradient, bool accumulate, int offset, const Number (&values)[Vector]) {
    if (gradient == nullptr) return;
    T* p = static_cast<T*>(gradient) + offset;
    if (!accumulate) return store_numbers<Vector>(p, values);  // apart: a choice for every number would cost an instruction each
    Number total[Vector];
    load_numbers<Vector>(p, total);
#pragma unroll
    for (int i = 0; i < Vector; ++i) total[i] += values[i];
    store_numbers<Vector>(p, total);
  }
};

template <class Tree, class Number, int Vector>
using LeafAccessOf = LeafAccess<Tree, Number, Vector, typename LeavesOf<Tree>::type,
                                std::make_integer_sequence<int, Tree::leaves>>;

/// Elements per thread: 16 bytes of the narrowest operand, fewer where many leaves would need too many registers.
template <class Tree, class T>
constexpr int statement_vector() {
  std::size_t bytes = sizeof(T);
  for_each_leaf<Tree>([&]<class L, bool Splat>(int) { bytes = std::min(bytes, sizeof(L)); });
  const int wide = static_cast<int>(16 / bytes);
  return Tree::leaves > 6 ? std::min(wide, 4) : wide;
}

/// Whether every operand can move `vector` elements at a time.
template <class Tree, class T>
bool moves_in_vectors(const IterationSpace& space, int vector, const void* out, const void* const* data,
                      void* const* gradients) {
  if (!space.unit_inner || space.inner() % vector != 0) return false;
  bool fits = true;
  const auto check = [&](const void* address, std::size_t size, int operand) {
    const std::size_t access = std::min<std::size_t>(16, size * static_cast<std::size_t>(vector));
    fits = fits && reinterpret_cast<std::uintptr_t>(address) % access == 0;
    for (int axis = 0; axis + 1 < space.rank; ++axis)
      fits = fits && static_cast<std::size_t>(std::abs(space.stride[operand][axis])) * size % access == 0;
  };
  check(out, sizeof(T), 0);
  for_each_leaf<Tree>([&]<class L, bool Splat>(int k) {
    if constexpr (Splat) return;
    check(data[k], sizeof(L), k + 1);
    if (gradients != nullptr) check(gradients[k], sizeof(L), k + 1);
  });
  return fits;
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
