// SPDX-License-Identifier: MIT
// The leaves of a fused statement in its kernels: their numbers in registers, their gradients, and how many elements move at
// a time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <type_traits>
#include <utility>

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

/// Leaf I of a statement in registers as it is stored: Count numbers, or one for all.
template <int I, class T, int Count>
struct StoredLeaf : StoredNumbers<T, Count> {
  __device__ __forceinline__ void fetch(const void* data, int offset) {
    StoredNumbers<T, Count>::fetch(static_cast<const T*>(data) + offset);
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
  /// The leaves as they are stored: half the registers of their numbers.
  template <int K, class L>
  using StoredAs = StoredLeaf<K, typename L::type, L::splat ? 1 : Vector>;
  struct Stored : StoredAs<I, Leaf>... {};

  /// The leaves that `skip` (null: none) does not name; those keep their values.
  static __device__ __forceinline__ void fetch(const bool* skip, const void* const* data, const int* offset,
                                               [[maybe_unused]] Stored& stored) {
    ((skip != nullptr && skip[I] ? void() : static_cast<StoredAs<I, Leaf>&>(stored).fetch(data[I], offset[I + 1])), ...);
  }
  static __device__ __forceinline__ void widen_all([[maybe_unused]] const Stored& stored,
                                                   [[maybe_unused]] Number (&values)[slots][Vector]) {
    (static_cast<const StoredAs<I, Leaf>&>(stored).widen_to(values[I]), ...);
  }

  /// Stores or adds the gradients of leaves that are not summed, in leaf order: a leaf that occurs twice adds to itself.
  static __device__ __forceinline__ void store(void* const* gradients, const bool* accumulate, const int* offset,
                                               const Number (&values)[slots][Vector]) {
    (store_one<typename Leaf::type>(gradients[I], accumulate[I], offset[I + 1], values[I]), ...);
  }

 private:
  template <class T>
  static __device__ __forceinline__ void store_one(void* gradient, bool accumulate, int offset, const Number (&values)[Vector]) {
    if (gradient == nullptr) return;
    T* p = static_cast<T*>(gradient) + offset;
    Number total[Vector];
    if (accumulate) load_numbers<Vector>(p, total);
#pragma unroll
    for (int i = 0; i < Vector; ++i) total[i] = accumulate ? total[i] + values[i] : values[i];
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
