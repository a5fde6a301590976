// SPDX-License-Identifier: MIT
// The convolution and its gradients by cuDNN, and the choice between cuDNN and lpo's own kernels for each shape.
//
// Numerics: sums in float. A bias is written to y first, and the convolution adds to it before it rounds, so that y is
// rounded once, as by lpo's kernels; where cuDNN pads channels (no multiples of 8), it may round before it adds.
// What cuDNN offers is compared with lpo's kernel before it is used: cuDNN 9.19 has an engine for float that computes a
// wrong gradient of weights of 5 x 5 with stride 3.
// Not handled: double, empty tensors, 16-bit gradients of weights that are added to, which cuDNN's engines would round
// before they add; captured graphs at a shape's first use.
#pragma once

#include <cmath>
#include <cstddef>
#include <limits>

#include <lpo/backend/cuda/cudnn_plans.cuh>
#include <lpo/backend/cuda/fastest_way.cuh>
#include <lpo/backend/cuda/numbers.cuh>
#include <lpo/backend/cuda/random.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

template <class T>
inline constexpr cudnnDataType_t cudnn_type = CUDNN_DATA_FLOAT;
template <>
inline constexpr cudnnDataType_t cudnn_type<bfloat16> = CUDNN_DATA_BFLOAT16;
template <>
inline constexpr cudnnDataType_t cudnn_type<half> = CUDNN_DATA_HALF;

/// Every row of `to` = row; `count` vectors of Count numbers in all.
template <int Count, class T>
__global__ void __launch_bounds__(256) repeat_row_kernel(const T* row, FastDivisor width, unsigned count, T* to) {
  const unsigned at = blockIdx.x * 256u + threadIdx.x;
  if (at >= count) return;
  const unsigned column = at - width.quotient(at) * width.divisor;
  reinterpret_cast<NumberVector<T, Count>*>(to)[at] = reinterpret_cast<const NumberVector<T, Count>*>(row)[column];
}

template <class T>
void repeat_row(Context<Cuda>& context, const T* row, index_t rows, index_t width, T* to) {
  constexpr int wide = 16 / sizeof(T);
  const bool vectors = width % wide == 0 && common_alignment(row, to) == 16;
  const index_t groups = vectors ? width / wide : width;
  const auto kernel = vectors ? repeat_row_kernel<wide, T> : repeat_row_kernel<1, T>;
  context.launch("repeat_row_kernel", {blocks_for(rows * groups, 256), 256}, kernel, row,
                 FastDivisor(static_cast<unsigned>(groups)), static_cast<unsigned>(rows * groups), to);
}

/// One pass of a convolution as the choice sees it: `first` and `second` are its operands in the order x, weights, y
/// without the result.
template <class T>
struct CudnnPass {
  CudnnConvolutionKey key;
  const T *first, *second, *bias;
  T* result;
  index_t first_count, second_count, result_count;

  index_t products() const {
    const kernel::Conv2dShape& s = key.shape;
    return s.n * s.out_h() * s.out_w() * s.o * s.kernel_h * s.kernel_w * s.c;
  }
};

/// Starts a plan with the pass's operands at `first` and `second` and its result at `to`.
template <class T>
cudnnStatus_t start_cudnn(Context<Cuda>& context, const CudnnPass<T>& pass, const CudnnPlan& plan, const T* first,
                          const T* second, T* to) {
  Scratch<Cuda> scratch(context);
  std::byte* workspace = nullptr;
  if (plan.workspace_bytes > 0)
    workspace = scratch.template allocate<std::byte>(static_cast<index_t>(plan.workspace_bytes));
  const kernel::Conv2dShape& s = pass.key.shape;
  if (pass.bias != nullptr) repeat_row(context, pass.bias, pass.result_count / s.o, s.o, to);
  auto& plans = context.library<CudnnPlans>();
  switch (pass.key.pass) {
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR:
      return plans.run(plan, first, second, to, workspace);
    case CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR:
      return plans.run(plan, to, first, second, workspace);
    default:
      return plans.run(plan, first, to, second, workspace);
  }
}

/// The offer to take, 0 being lpo's own kernel, which `own(first, second, to)` starts and whose bits, or numbers but for
/// rounding, an offer must give. On random operands of its own: data of the caller that happen to be zero would make all
/// bits equal.
template <class T, class Own>
int fastest_convolution(Context<Cuda>& context, const CudnnPass<T>& pass, const std::vector<CudnnPlan>& plans,
                        const Own& own) {
  if (plans.empty()) return 0;
  try {
    const DeviceBlock first_block(static_cast<std::size_t>(pass.first_count) * sizeof(T));
    const DeviceBlock second_block(static_cast<std::size_t>(pass.second_count) * sizeof(T));
    T* const first = reinterpret_cast<T*>(first_block.data());
    T* const second = reinterpret_cast<T*>(second_block.data());
    kernel::RandomNormal<Cuda>::fill(context, pass.first_count, first, 0.0f, 1.0f, 1, 0, 0, 0);
    kernel::RandomNormal<Cuda>::fill(context, pass.second_count, second, 0.0f, 1.0f, 2, 0, 0, 0);
    // Sums of products of normal numbers: their deviation is known, and rounding is far below a tenth of it.
    const auto terms = static_cast<float>(pass.products()) / static_cast<float>(pass.result_count);
    const Likeness likeness = context.options().cudnn == CudnnUse::same_bits ? same_bits()
                                                                              : close_numbers<T>(0.1f * std::sqrt(terms));
    return fastest_way(context.stream(), static_cast<std::size_t>(pass.result_count) * sizeof(T),
                       static_cast<int>(plans.size()) + 1, likeness, [&](int way, void* bytes) {
                         T* const to = static_cast<T*>(bytes);
                         if (way == 0) own(first, second, to);
                         return way == 0 || start_cudnn(context, pass, plans[static_cast<std::size_t>(way) - 1], first,
                                                        second, to) == CUDNN_STATUS_SUCCESS;
                       },
                       context.options().cudnn == CudnnUse::wherever_possible ? std::numeric_limits<float>::infinity()
                                                                              : 0.98f);
  } catch (const DeviceMemoryError&) {
    return 0;
  }
}

/// Computes the pass with cuDNN, unless lpo's own kernel is to do it: returns whether it did.
template <class T, class Own>
bool run_cudnn(Context<Cuda>& context, const CudnnPass<T>& pass, const Own& own) {
  const CudnnUse use = context.options().cudnn;
  if (use == CudnnUse::never || pass.first_count <= 0 || pass.second_count <= 0 || pass.result_count <= 0) return false;
  // The number of products; below some microseconds of them a choice is not worth its while. repeat_row counts in 31
  // bits.
  const kernel::Conv2dShape& s = pass.key.shape;
  if (use != CudnnUse::wherever_possible && pass.products() < index_t{1} << 26) return false;
  if (pass.bias != nullptr && pass.result_count >= index_t{1} << 31) return false;
  auto& plans = context.library<CudnnPlans>();
  CudnnChoice* choice = plans.made(pass.key);
  if (choice == nullptr) {
    if (context.capturing()) return false;
    choice = &plans.offers(pass.key);
    choice->make(fastest_convolution(context, pass, choice->plans, own));
  }
  if (choice->plans.empty()) return false;
  cudnn_check(start_cudnn(context, pass, choice->plans[0], pass.first, pass.second, pass.result), "conv2d");
  context.check_launch("cudnnBackendExecute", [&] {
    const bool is_forward = pass.key.pass == CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR;
    const bool is_data = pass.key.pass == CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR;
    return message("cudnnBackendExecute conv2d ",
                   is_forward ? "forward"
                   : is_data  ? "data"
                              : "weights",
                   " [", s.n, ", ", s.h, ", ", s.w, ", ", s.c, "] to ", s.o, " stride ", s.stride);
  });
  return true;
}

template <class T, class Own>
bool cudnn_conv2d_forward(Context<Cuda>& context, const kernel::Conv2dShape& s, const T* x, const T* weight,
                          const T* bias, T* y, const Own& own) {
  const CudnnConvolutionKey key{CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
                                cudnn_type<T>,
                                context.options().tf32,
                                bias != nullptr,
                                common_alignment(x, weight, y),
                                s};
  return run_cudnn<T>(context,
                      {key, x, weight, bias, y, s.n * s.h * s.w * s.c, s.o * s.kernel_h * s.kernel_w * s.c,
                       s.n * s.out_h() * s.out_w() * s.o},
                      own);
}

template <class T, class Own>
bool cudnn_conv2d_backward_data(Context<Cuda>& context, const kernel::Conv2dShape& s, const T* dy, const T* weight,
                                T* dx, bool accumulate, const Own& own) {
  const CudnnConvolutionKey key{CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
                                cudnn_type<T>,
                                context.options().tf32,
                                accumulate,
                                common_alignment(dy, weight, dx),
                                s};
  return run_cudnn<T>(context,
                      {key, weight, dy, nullptr, dx, s.o * s.kernel_h * s.kernel_w * s.c,
                       s.n * s.out_h() * s.out_w() * s.o, s.n * s.h * s.w * s.c},
                      own);
}

template <class T, class Own>
bool cudnn_conv2d_backward_weights(Context<Cuda>& context, const kernel::Conv2dShape& s, const T* x, const T* dy,
                                   T* dweight, bool accumulate, const Own& own) {
  if (accumulate && sizeof(T) == 2) return false;
  const CudnnConvolutionKey key{CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
                                cudnn_type<T>,
                                context.options().tf32,
                                accumulate,
                                common_alignment(x, dy, dweight),
                                s};
  return run_cudnn<T>(context,
                      {key, x, dy, nullptr, dweight, s.n * s.h * s.w * s.c, s.n * s.out_h() * s.out_w() * s.o,
                       s.o * s.kernel_h * s.kernel_w * s.c},
                      own);
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
