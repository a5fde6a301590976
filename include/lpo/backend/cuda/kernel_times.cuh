// SPDX-License-Identifier: MIT
// KernelTimes: how long each kernel of a context took on the device, by name, from events between the launches.
#pragma once

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <vector>

#include <lpo/backend/cuda/memory.cuh>

namespace lpo::inline LPO_ABI {

/// Time of all launches of one kernel.
struct KernelTime {
  std::string name;
  index_t launches = 0;
  double milliseconds = 0;  ///< includes gaps before a launch, when the host is slower than the device
};

namespace detail {

class KernelTimes {
 public:
  KernelTimes() = default;
  KernelTimes(const KernelTimes&) = delete;
  KernelTimes& operator=(const KernelTimes&) = delete;
  ~KernelTimes() {
    for (const auto& mark : marks_) cudaEventDestroy(mark.event);
  }

  /// A name that lives as long as this.
  const char* kept_name(const std::string& name) { return names_.insert(name).first->c_str(); }

  /// Called after each launch; `name` outlives this.
  void mark(const char* name, cudaStream_t stream) {
    Mark mark{name, nullptr};
    cuda_check(cudaEventCreate(&mark.event), "kernel times");
    cuda_check(cudaEventRecord(mark.event, stream), "kernel times");
    marks_.push_back(mark);
  }

  /// Sums since the last call, the longest first. What came before the first launch is not counted.
  std::vector<KernelTime> take(cudaStream_t stream) {
    cuda_check(cudaStreamSynchronize(stream), "kernel times");
    std::map<std::string, KernelTime> by_name;
    for (std::size_t i = 1; i < marks_.size(); ++i) {
      float milliseconds = 0;
      cuda_check(cudaEventElapsedTime(&milliseconds, marks_[i - 1].event, marks_[i].event), "kernel times");
      auto& sum = by_name[marks_[i].name];
      ++sum.launches;
      sum.milliseconds += static_cast<double>(milliseconds);
    }
    for (const auto& mark : marks_) cudaEventDestroy(mark.event);
    marks_.clear();
    std::vector<KernelTime> sorted;
    for (auto& [name, time] : by_name) {
      time.name = name;
      sorted.push_back(time);
    }
    std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) { return a.milliseconds > b.milliseconds; });
    return sorted;
  }

 private:
  struct Mark {
    const char* name;
    cudaEvent_t event;
  };
  std::vector<Mark> marks_;
  std::set<std::string> names_;  // whose characters stay where they are
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
