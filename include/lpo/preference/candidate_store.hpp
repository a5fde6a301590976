// SPDX-License-Identifier: MIT
// CandidateStore: all K candidates of prompts at steps in flat tensors, with their parent, its prediction and advantages.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include <lpo/kernel/copy.hpp>
#include <lpo/preference/pair_store.hpp>
#include <lpo/preference/rollout.hpp>

namespace lpo::inline LPO_ABI {

/// Room for `capacity` groups: the parent x_t, the prediction that drew the candidates, K candidates and K advantages.
/// Memory is taken once and reused.
template <class T, class Device>
class CandidateStore {
 public:
  CandidateStore() = default;
  CandidateStore(index_t capacity, index_t candidates, const Extents<3>& latent)
      : latent_(latent), k_(candidates),
        x_t_(Extents<4>{capacity, latent[0], latent[1], latent[2]}),
        prediction_(x_t_.extents()),
        candidates_(Extents<4>{capacity * candidates, latent[0], latent[1], latent[2]}) {
    records_.reserve(static_cast<std::size_t>(capacity));
  }

  index_t count() const { return static_cast<index_t>(records_.size()); }
  index_t capacity() const { return x_t_.size() == 0 ? 0 : x_t_.extent(0); }
  void clear() {
    records_.clear();
    advantages_.clear();
  }

  std::span<const PairRecord> records() const { return records_; }
  /// The stored parents and predictions [count, h, w, c].
  View<const T, 4, Device> x_t() const { return {x_t_.data(), extents()}; }
  View<const T, 4, Device> prediction() const { return {prediction_.data(), extents()}; }

  /// Appends every prompt of a step. `advantages` of row k*B + b.
  void append(Context<Device>& context, int timestep, const StepCandidates<T, Device>& drawn,
              std::span<const double> advantages) {
    const index_t prompts = drawn.x_t.extent(0), width = latent_.size();
    expect_room(prompts);
    const auto copy = [&](const T* source, T* target) {
      kernel::CopyRows<Device>::run(context, prompts, width, source, width, target + count() * width, width, false);
    };
    copy(drawn.x_t.data, x_t_.data());
    copy(drawn.prediction.data, prediction_.data());
    for (index_t b = 0; b < prompts; ++b) {
      kernel::CopyRows<Device>::run(context, k_, width, drawn.candidates.data + b * width, prompts * width,
                                    candidates_.data() + count() * k_ * width, width, false);
      records_.push_back({drawn.step, timestep, static_cast<int>(drawn.first_prompt + b), 0.0f});
      for (index_t k = 0; k < k_; ++k) advantages_.push_back(advantages[static_cast<std::size_t>(k * prompts + b)]);
    }
  }

  /// Copies the groups number `indices` into `batch`, whose candidates and advantages are then laid out for grpo_loss:
  /// batch_candidates() and batch_advantages().
  void gather(Context<Device>& context, std::span<const int> indices, CandidateStore& batch) const {
    batch.clear();
    const index_t width = latent_.size(), n = static_cast<index_t>(indices.size());
    batch.expect_room(n);
    batch.advantages_.resize(static_cast<std::size_t>(k_ * n));
    for (index_t j = 0; j < n; ++j) {
      const int i = indices[static_cast<std::size_t>(j)];
      if (i < 0 || i >= count()) throw ValueError(message("[CandidateStore::gather] no group ", i, " among ", count()));
      const auto copy = [&](const Tensor<T, 4, Device>& from, Tensor<T, 4, Device>& to) {
        kernel::CopyRows<Device>::run(context, 1, width, from.data() + i * width, width, to.data() + j * width, width,
                                      false);
      };
      copy(x_t_, batch.x_t_);
      copy(prediction_, batch.prediction_);
      kernel::CopyRows<Device>::run(context, k_, width, candidates_.data() + i * k_ * width, width,
                                    batch.candidates_.data() + j * width, n * width, false);
      batch.records_.push_back(records_[static_cast<std::size_t>(i)]);
      for (index_t k = 0; k < k_; ++k)
        batch.advantages_[static_cast<std::size_t>(k * n + j)] = advantages_[static_cast<std::size_t>(i * k_ + k)];
    }
  }

  /// An empty store for groups of this one.
  CandidateStore empty_like(index_t capacity) const { return CandidateStore(capacity, k_, latent_); }
  /// Group number i as item_bytes() bytes of the host, in which it can go to another process.
  std::size_t item_bytes() const {
    return sizeof(PairRecord) + static_cast<std::size_t>(2 + k_) * latent_bytes() + advantage_bytes();
  }
  void write_item(Context<Device>& context, index_t i, std::byte* to) const {
    const auto put = [&](const Tensor<T, 4, Device>& from, index_t row, index_t rows) {
      context.copy_to_host(to, from.data() + row * latent_.size(), static_cast<std::size_t>(rows) * latent_bytes());
      to += static_cast<std::size_t>(rows) * latent_bytes();
    };
    std::memcpy(to, &records_[static_cast<std::size_t>(i)], sizeof(PairRecord));
    std::memcpy(to + sizeof(PairRecord), advantages_.data() + i * k_, advantage_bytes());
    to += sizeof(PairRecord) + advantage_bytes();
    put(x_t_, i, 1);
    put(prediction_, i, 1);
    put(candidates_, i * k_, k_);
  }
  void append_item(Context<Device>& context, const std::byte* from) {
    expect_room(1);
    const auto take = [&](Tensor<T, 4, Device>& to, index_t row, index_t rows) {
      context.copy_from_host(to.data() + row * latent_.size(), from, static_cast<std::size_t>(rows) * latent_bytes());
      from += static_cast<std::size_t>(rows) * latent_bytes();
    };
    PairRecord record;
    std::memcpy(&record, from, sizeof record);
    advantages_.resize(advantages_.size() + static_cast<std::size_t>(k_));
    std::memcpy(advantages_.data() + count() * k_, from + sizeof record, advantage_bytes());
    from += sizeof record + advantage_bytes();
    take(x_t_, count(), 1);
    take(prediction_, count(), 1);
    take(candidates_, count() * k_, k_);
    records_.push_back(record);
  }

  /// Of a gathered batch: [k, n, h, w, c].
  View<const T, 5, Device> batch_candidates() const {
    return {candidates_.data(), Extents<5>{k_, count(), latent_[0], latent_[1], latent_[2]}};
  }
  /// Of a gathered batch: row k*n + i.
  std::span<const double> batch_advantages() const { return advantages_; }

 private:
  std::size_t latent_bytes() const { return static_cast<std::size_t>(latent_.size()) * sizeof(T); }
  std::size_t advantage_bytes() const { return static_cast<std::size_t>(k_) * sizeof(double); }
  Extents<4> extents() const { return {count(), latent_[0], latent_[1], latent_[2]}; }
  void expect_room(index_t more) const {
    if (count() + more > capacity())
      throw ValueError(message("[CandidateStore] ", more, " more groups, ", capacity() - count(), " of ", capacity(),
                               " places are free; clear() it or make it larger"));
  }

  Extents<3> latent_{};
  index_t k_ = 0;
  Tensor<T, 4, Device> x_t_, prediction_, candidates_;
  std::vector<PairRecord> records_;
  std::vector<double> advantages_;
};

}  // namespace lpo::inline LPO_ABI
