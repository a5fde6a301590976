// SPDX-License-Identifier: MIT
// The tensors of every storage type, named once: nvcc's host stubs spell a type as it was written first.
//
// A kernel for `View<T, 4, Cuda>` has T in its name. Where T was first written as `typename UNet::value_type`, nvcc
// (13.0) repeats that in the stub that launches the kernel, together with the UNet's config, whose arrays it then
// cannot read back ("wrong number of template arguments"). What is named here is spelled as here.
#pragma once

#include <lpo/backend/cuda/memory.cuh>
#include <lpo/base/scalar.hpp>
#include <lpo/tensor/tensor.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

template <class T, int Rank>
inline constexpr bool named_tensors = sizeof(View<T, Rank, Cuda>) + sizeof(View<const T, Rank, Cuda>) +
                                          sizeof(Tensor<T, Rank, Cuda>) >
                                      0;

template <class T>
inline constexpr bool named_types =
    named_tensors<T, 1>&& named_tensors<T, 2>&& named_tensors<T, 3>&& named_tensors<T, 4>&& named_tensors<T, 5> &&
    sizeof(tree::Argument<T, false>) + sizeof(tree::Argument<T, true>) > 0;

static_assert(named_types<float> && named_types<double> && named_types<bfloat16> && named_types<half>);

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
