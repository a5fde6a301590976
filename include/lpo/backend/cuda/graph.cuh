// SPDX-License-Identifier: MIT
// CudaGraph: work captured once and replayed with one call, for steps that the host cannot launch fast enough.
#pragma once

#include <lpo/backend/cuda/context.cuh>

namespace lpo::inline LPO_ABI {

/// What `work()` does on the device, as one object that `replay()` runs again: on the same addresses, with the values that they
/// hold then. Numbers that `work` copies from the host (timesteps, for example) are frozen at the capture. The constructor runs
/// `work` twice, once to allocate memory and to choose algorithms. `work` may not wait for the device or read from it.
///
/// The memory that `work` takes from the context's arenas is used again by every replay: what other code keeps there since the
/// capture is overwritten. Copy results out before.
class CudaGraph {
 public:
  template <class Work>
  CudaGraph(Context<Cuda>& context, Work&& work) : context_(context) {
    if (context.options().synchronize || context.options().time_kernels)
      throw ValueError("[CudaGraph] a context that waits after kernels or times them cannot be captured; switch both options off");
    work();
    context.synchronize();
    cudaGraph_t graph = nullptr;
    // Relaxed, because the host's constants need pinned memory while the capture runs.
    detail::cuda_check(cudaStreamBeginCapture(context.stream(), cudaStreamCaptureModeRelaxed), "CudaGraph");
    context.capture_into(&constants_);
    try {
      work();
    } catch (...) {
      context.capture_into(nullptr);
      cudaStreamEndCapture(context.stream(), &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    context.capture_into(nullptr);
    detail::cuda_check(cudaStreamEndCapture(context.stream(), &graph), "CudaGraph");
    const cudaError_t status = cudaGraphInstantiate(&executable_, graph, 0);
    cudaGraphDestroy(graph);
    detail::cuda_check(status, "CudaGraph");
  }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  ~CudaGraph() {
    cudaStreamSynchronize(context_.stream());
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
  }

  /// In the order of the context's other work; returns before it is done.
  void replay() { detail::cuda_check(cudaGraphLaunch(executable_, context_.stream()), "CudaGraph::replay"); }

 private:
  Context<Cuda>& context_;
  cudaGraphExec_t executable_ = nullptr;
  detail::PinnedCopies constants_;
};

}  // namespace lpo::inline LPO_ABI
