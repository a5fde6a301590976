// SPDX-License-Identifier: MIT
// CudaGraph: work captured once and replayed with one call, for steps that the host cannot launch fast enough; and
// RepeatedWork, which captures the rounds of a loop by itself.
#pragma once

#include <memory>
#include <vector>

#include <lpo/backend/cuda/context.cuh>
#include <lpo/tensor/repeated_work.hpp>

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
  CudaGraph(Context<Cuda>& context, Work&& work) : CudaGraph(context, work, [&] {
    work();
    context.synchronize();
  }) {}

  /// Of work that has run before: it is called once. The device has done nothing yet; `replay()` follows.
  template <class Work>
  static std::unique_ptr<CudaGraph> of_known_work(Context<Cuda>& context, Work&& work) {
    return std::unique_ptr<CudaGraph>(new CudaGraph(context, work, [] {}));
  }

  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  ~CudaGraph() {
    cudaStreamSynchronize(context_.stream());
    if (executable_ != nullptr) cudaGraphExecDestroy(executable_);
  }

  /// In the order of the context's other work; returns before it is done.
  void replay() {
    detail::cuda_check(cudaGraphLaunch(executable_, context_.stream()), "CudaGraph::replay");
    context_.count_graph_launch();
  }

 private:
  template <class Work, class Prepare>
  CudaGraph(Context<Cuda>& context, Work& work, const Prepare& prepare) : context_(context) {
    if (context.options().synchronize || context.options().time_kernels)
      throw ValueError("[CudaGraph] a context that waits after kernels or times them cannot be captured; switch both options off");
    prepare();
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

  Context<Cuda>& context_;
  cudaGraphExec_t executable_ = nullptr;
  detail::PinnedCopies constants_;
};

/// The rounds of a loop: the first runs, the second is captured, later ones are replayed. A round that finds the context's
/// arenas where no round has found them before runs as it is, and the next is captured anew.
template <>
class RepeatedWork<Cuda> {
 public:
  explicit RepeatedWork(int parts = 1) : parts_(static_cast<std::size_t>(parts)) {}

  void begin(Context<Cuda>& context) {
    const Marks marks{context.activations().mark(), context.scratch().mark()};
    const auto& options = context.options();
    const bool allowed = options.graphs && !options.synchronize && !options.time_kernels && !context.capturing();
    const bool known = rounds_ > 0 && same(marks, start_);
    part_ = 0;
    if (!allowed || !known) {
      reset();
      start_ = marks;
      rounds_ = allowed ? 1 : 0;
      mode_ = Mode::run;
    } else if (captured_.size() == parts_) {
      mode_ = Mode::replay;
    } else {
      captured_.clear();
      mode_ = Mode::capture;
    }
  }

  template <class Part>
  void run(Context<Cuda>& context, const Part& part) {
    if (mode_ == Mode::run) return part();
    if (mode_ == Mode::capture) {
      auto graph = CudaGraph::of_known_work(context, part);
      captured_.push_back({std::move(graph), context.activations().mark()});
    }
    Captured& captured = captured_.at(part_++);
    captured.graph->replay();
    context.activations().rewind(captured.end);
  }

  bool replays() const { return mode_ == Mode::replay; }
  void reset() {
    captured_.clear();
    rounds_ = 0;
    mode_ = Mode::run;
  }

 private:
  enum class Mode { run, capture, replay };
  struct Marks {
    ArenaMark activations, scratch;
  };
  struct Captured {
    std::unique_ptr<CudaGraph> graph;
    ArenaMark end;  ///< of the activations, after the part
  };

  static bool same(const ArenaMark& a, const ArenaMark& b) { return a.block == b.block && a.used == b.used; }
  static bool same(const Marks& a, const Marks& b) {
    return same(a.activations, b.activations) && same(a.scratch, b.scratch);
  }

  std::size_t parts_ = 1, part_ = 0;
  int rounds_ = 0;
  Mode mode_ = Mode::run;
  Marks start_{};
  std::vector<Captured> captured_;
};

}  // namespace lpo::inline LPO_ABI
