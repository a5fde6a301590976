// SPDX-License-Identifier: MIT
// CudnnPlans: cuDNN's handle, what it offers for each shape of convolution, and what was chosen of that. Needs cuDNN 9.
//
// A convolution is described as a graph of one operation. Of the engines that cuDNN's heuristics name for it, those
// stay that keep lpo's promises: the same bits in every run, sums in float of products of the operands as they are
// stored (no Winograd or Fourier transforms; no rounding to tf32 that nobody asked for), code that does not have to be
// compiled first.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <tuple>
#include <utility>
#include <vector>

#include <cudnn_graph.h>

#include <lpo/backend/cuda/context.cuh>
#include <lpo/kernel/conv2d.hpp>

namespace lpo::inline LPO_ABI {
namespace detail {

inline void cudnn_check(cudnnStatus_t status, const char* operation) {
  if (status != CUDNN_STATUS_SUCCESS)
    throw DeviceError(message("[", operation, "] cuDNN: ", cudnnGetErrorString(status)));
}

/// An owned descriptor of cuDNN's: made, given attributes, made final.
class CudnnDescriptor {
 public:
  explicit CudnnDescriptor(cudnnBackendDescriptorType_t type) {
    cudnn_check(cudnnBackendCreateDescriptor(type, &descriptor_), "conv2d");
  }
  CudnnDescriptor(CudnnDescriptor&& other) noexcept : descriptor_(std::exchange(other.descriptor_, nullptr)) {}
  CudnnDescriptor& operator=(CudnnDescriptor&& other) noexcept {
    std::swap(descriptor_, other.descriptor_);
    return *this;
  }
  ~CudnnDescriptor() {
    if (descriptor_ != nullptr) cudnnBackendDestroyDescriptor(descriptor_);
  }

  cudnnBackendDescriptor_t get() const { return descriptor_; }

  template <std::size_t Count, class Value>
  CudnnDescriptor& set(cudnnBackendAttributeName_t name, const std::array<Value, Count>& values) {
    cudnn_check(cudnnBackendSetAttribute(descriptor_, name, type_of(Value{}), Count, values.data()), "conv2d");
    return *this;
  }
  template <class Value>
  CudnnDescriptor& set(cudnnBackendAttributeName_t name, Value value) {
    return set(name, std::array{value});
  }
  CudnnDescriptor& set(cudnnBackendAttributeName_t name, const CudnnDescriptor& value) {
    cudnn_check(cudnnBackendSetAttribute(descriptor_, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value.descriptor_),
                "conv2d");
    return *this;
  }

  cudnnStatus_t try_finalize() { return cudnnBackendFinalize(descriptor_); }
  CudnnDescriptor& finalize() {
    cudnn_check(try_finalize(), "conv2d");
    return *this;
  }

  /// One number; `fallback` where the attribute has none.
  template <class Value>
  Value number(cudnnBackendAttributeName_t name, Value fallback) const {
    std::int64_t found = 0;
    Value value = fallback;
    cudnn_check(cudnnBackendGetAttribute(descriptor_, name, type_of(Value{}), 1, &found, &value), "conv2d");
    return found > 0 ? value : fallback;
  }
  /// Up to Most of the values of a list.
  template <std::size_t Most, class Value>
  std::vector<Value> list(cudnnBackendAttributeName_t name) const {
    std::array<Value, Most> values{};
    std::int64_t found = 0;
    cudnn_check(cudnnBackendGetAttribute(descriptor_, name, type_of(Value{}), Most, &found, values.data()), "conv2d");
    return {values.begin(), values.begin() + std::min<std::int64_t>(found, Most)};
  }

 private:
  static constexpr cudnnBackendAttributeType_t type_of(std::int64_t) { return CUDNN_TYPE_INT64; }
  static constexpr cudnnBackendAttributeType_t type_of(float) { return CUDNN_TYPE_FLOAT; }
  static constexpr cudnnBackendAttributeType_t type_of(void*) { return CUDNN_TYPE_VOID_PTR; }
  static constexpr cudnnBackendAttributeType_t type_of(cudnnHandle_t) { return CUDNN_TYPE_HANDLE; }
  static constexpr cudnnBackendAttributeType_t type_of(cudnnDataType_t) { return CUDNN_TYPE_DATA_TYPE; }
  static constexpr cudnnBackendAttributeType_t type_of(cudnnConvolutionMode_t) { return CUDNN_TYPE_CONVOLUTION_MODE; }
  static constexpr cudnnBackendAttributeType_t type_of(cudnnBackendHeurMode_t) { return CUDNN_TYPE_HEUR_MODE; }
  static constexpr cudnnBackendAttributeType_t type_of(cudnnBackendNumericalNote_t) {
    return CUDNN_TYPE_NUMERICAL_NOTE;
  }
  static constexpr cudnnBackendAttributeType_t type_of(cudnnBackendBehaviorNote_t) { return CUDNN_TYPE_BEHAVIOR_NOTE; }

  cudnnBackendDescriptor_t descriptor_ = nullptr;
};

/// All that cuDNN's offers depend on. `alignment` is the largest power of two, at most 16, that divides every address.
struct CudnnConvolutionKey {
  cudnnBackendDescriptorType_t pass = CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR;
  cudnnDataType_t scalar = CUDNN_DATA_FLOAT;
  bool tf32 = false, accumulate = false;
  int alignment = 16;
  kernel::Conv2dShape shape;

  auto tie() const {
    return std::tie(pass, scalar, tf32, accumulate, alignment, shape.n, shape.h, shape.w, shape.c, shape.o,
                    shape.kernel_h, shape.kernel_w, shape.stride, shape.pad_top, shape.pad_bottom, shape.pad_left,
                    shape.pad_right);
  }
  friend bool operator<(const CudnnConvolutionKey& a, const CudnnConvolutionKey& b) { return a.tie() < b.tie(); }
};

/// A way to compute a convolution, ready to run.
struct CudnnPlan {
  CudnnDescriptor config, plan;
  std::size_t workspace_bytes = 0;
};

/// The names of the images, weights and output images in a graph, whichever of them is the result.
enum CudnnTensor : std::int64_t { cudnn_x = 1, cudnn_weight = 2, cudnn_y = 3 };

inline CudnnDescriptor cudnn_tensor(const CudnnConvolutionKey& key, CudnnTensor id, index_t outer, index_t h, index_t w,
                                    index_t c) {
  using Extents =
      std::array<std::int64_t, 4>;  // in cuDNN's order, the channels second; the strides say that they are last
  CudnnDescriptor tensor(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
  tensor.set(CUDNN_ATTR_TENSOR_UNIQUE_ID, static_cast<std::int64_t>(id))
      .set(CUDNN_ATTR_TENSOR_DATA_TYPE, key.scalar)
      .set(CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, static_cast<std::int64_t>(key.alignment))
      .set(CUDNN_ATTR_TENSOR_DIMENSIONS, Extents{outer, c, h, w})
      .set(CUDNN_ATTR_TENSOR_STRIDES, Extents{h * w * c, 1, w * c, c})
      .finalize();
  return tensor;
}

/// result = the convolution or its gradient (+ result, where the key says so).
inline CudnnDescriptor cudnn_operation(const CudnnConvolutionKey& key) {
  using Pair = std::array<std::int64_t, 2>;
  const kernel::Conv2dShape& s = key.shape;
  const CudnnDescriptor x = cudnn_tensor(key, cudnn_x, s.n, s.h, s.w, s.c);
  const CudnnDescriptor weight = cudnn_tensor(key, cudnn_weight, s.o, s.kernel_h, s.kernel_w, s.c);
  const CudnnDescriptor y = cudnn_tensor(key, cudnn_y, s.n, s.out_h(), s.out_w(), s.o);
  CudnnDescriptor convolution(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
  convolution.set(CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_DATA_FLOAT)
      .set(CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_CROSS_CORRELATION)
      .set(CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, std::int64_t{2})
      .set(CUDNN_ATTR_CONVOLUTION_DILATIONS, Pair{1, 1})
      .set(CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, Pair{s.stride, s.stride})
      .set(CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, Pair{s.pad_top, s.pad_left})
      .set(CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, Pair{s.pad_bottom, s.pad_right})
      .finalize();
  CudnnDescriptor operation(key.pass);
  const float alpha = 1.0f, beta = key.accumulate ? 1.0f : 0.0f;
  if (key.pass == CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR)
    operation.set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, convolution)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, weight)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, y)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, alpha)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, beta);
  else if (key.pass == CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR)
    operation.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, convolution)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, x)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, weight)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, y)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, alpha)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA, beta);
  else
    operation.set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, convolution)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X, x)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, weight)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY, y)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA, alpha)
        .set(CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA, beta);
  operation.finalize();
  return operation;
}

/// Whether an engine keeps the promises that the head of this file lists.
inline bool cudnn_engine_is_allowed(const CudnnConvolutionKey& key, const CudnnDescriptor& engine) {
  constexpr auto most_notes = CUDNN_NUMERICAL_NOTE_TYPE_COUNT;
  constexpr auto most_behaviors = CUDNN_BEHAVIOR_NOTE_TYPE_COUNT;
  const bool is_float = key.scalar == CUDNN_DATA_FLOAT;
  for (const auto note : engine.list<most_notes, cudnnBackendNumericalNote_t>(CUDNN_ATTR_ENGINE_NUMERICAL_NOTE)) {
    const bool is_allowed = note == CUDNN_NUMERICAL_NOTE_STRICT_NAN_PROP ||
                            (note == CUDNN_NUMERICAL_NOTE_TENSOR_CORE && (!is_float || key.tf32)) ||
                            (note == CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS && is_float && key.tf32);
    if (!is_allowed) return false;
  }
  for (const auto note : engine.list<most_behaviors, cudnnBackendBehaviorNote_t>(CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE))
    if (note == CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION) return false;
  return true;
}

/// What the heuristics of `mode` name for a graph and lpo allows, the expected fastest first, at most `most`.
inline std::vector<CudnnPlan> cudnn_offers(cudnnHandle_t handle, const CudnnConvolutionKey& key,
                                           const CudnnDescriptor& graph, cudnnBackendHeurMode_t mode,
                                           std::size_t most) {
  std::vector<CudnnPlan> offers;
  CudnnDescriptor heuristics(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
  heuristics.set(CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph).set(CUDNN_ATTR_ENGINEHEUR_MODE, mode);
  if (heuristics.try_finalize() != CUDNN_STATUS_SUCCESS) return offers;  // nothing for this graph
  std::vector<CudnnDescriptor> configs;
  std::array<cudnnBackendDescriptor_t, 16> to_fill{};
  for (cudnnBackendDescriptor_t& config : to_fill)
    config = configs.emplace_back(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR).get();
  std::int64_t found = 0;
  cudnn_check(cudnnBackendGetAttribute(heuristics.get(), CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                       to_fill.size(), &found, to_fill.data()),
              "conv2d");
  const std::size_t count = std::min(configs.size(), static_cast<std::size_t>(found));
  for (std::size_t i = 0; i < count && offers.size() < most; ++i) {
    const CudnnDescriptor engine(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    cudnnBackendDescriptor_t engine_to_fill = engine.get();
    std::int64_t engines = 0;
    cudnn_check(cudnnBackendGetAttribute(configs[i].get(), CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                         1, &engines, &engine_to_fill),
                "conv2d");
    if (!cudnn_engine_is_allowed(key, engine)) continue;
    CudnnDescriptor plan(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    plan.set(CUDNN_ATTR_EXECUTION_PLAN_HANDLE, handle).set(CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, configs[i]);
    if (plan.try_finalize() != CUDNN_STATUS_SUCCESS) continue;  // the heuristics may name what then does not fit
    const auto workspace = plan.number(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE, std::int64_t{0});
    if (workspace > std::int64_t{256} << 20) continue;
    offers.push_back({std::move(configs[i]), std::move(plan), static_cast<std::size_t>(workspace)});
  }
  return offers;
}

/// What is known about a convolution: cuDNN's offers until one of them or lpo's own kernel was chosen, then the chosen
/// one.
struct CudnnChoice {
  CudnnDescriptor graph;
  std::vector<CudnnPlan> plans;  ///< none: lpo's own kernel
  bool is_made = false;

  /// Way 0 is lpo's own kernel, way i the plan before it.
  void make(int way) {
    std::vector<CudnnPlan> offers = std::exchange(plans, {});
    if (way > 0) plans.push_back(std::move(offers[static_cast<std::size_t>(way) - 1]));
    is_made = true;
  }
};

class CudnnPlans {
 public:
  explicit CudnnPlans(cudaStream_t stream) : stream_(stream) {}
  CudnnPlans(const CudnnPlans&) = delete;
  CudnnPlans& operator=(const CudnnPlans&) = delete;
  ~CudnnPlans() {
    choices_.clear();
    if (handle_ != nullptr) cudnnDestroy(handle_);
  }

  std::size_t size() const { return choices_.size(); }

  /// Null where nothing was chosen yet.
  CudnnChoice* made(const CudnnConvolutionKey& key) {
    const auto at = choices_.find(key);
    return at == choices_.end() || !at->second.is_made ? nullptr : &at->second;
  }

  /// The offers for a convolution, asked for on first use.
  CudnnChoice& offers(const CudnnConvolutionKey& key) {
    const auto known = choices_.find(key);
    if (known != choices_.end()) return known->second;
    CudnnDescriptor graph(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    graph.set(CUDNN_ATTR_OPERATIONGRAPH_OPS, cudnn_operation(key))
        .set(CUDNN_ATTR_OPERATIONGRAPH_HANDLE, handle())
        .finalize();
    std::vector<CudnnPlan> plans = cudnn_offers(handle_, key, graph, CUDNN_HEUR_MODE_A, 5);
    // Float without tf32 needs engines without tensor cores, which only the second list has.
    if (plans.empty()) plans = cudnn_offers(handle_, key, graph, CUDNN_HEUR_MODE_FALLBACK, 2);
    return choices_.emplace(key, CudnnChoice{std::move(graph), std::move(plans)}).first->second;
  }

  /// Starts a plan on the device addresses of the images, the weights and the output images, one of them the result.
  cudnnStatus_t run(const CudnnPlan& plan, const void* x, const void* weight, const void* y, void* workspace) {
    CudnnDescriptor pack(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    pack.set(CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, std::array<std::int64_t, 3>{cudnn_x, cudnn_weight, cudnn_y})
        .set(CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS,
             std::array{const_cast<void*>(x), const_cast<void*>(weight), const_cast<void*>(y)})
        .set(CUDNN_ATTR_VARIANT_PACK_WORKSPACE, workspace)
        .finalize();
    return cudnnBackendExecute(handle_, plan.plan.get(), pack.get());
  }

 private:
  cudnnHandle_t handle() {
    if (handle_ == nullptr) {
      cudnn_check(cudnnCreate(&handle_), "conv2d");
      cudnn_check(cudnnSetStream(handle_, stream_), "conv2d");
    }
    return handle_;
  }

  cudaStream_t stream_;
  cudnnHandle_t handle_ = nullptr;
  std::map<CudnnConvolutionKey, CudnnChoice> choices_;
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
