// SPDX-License-Identifier: MIT
// PairStore: preference pairs in flat tensors — the parent x_t, the preferred and the rejected next latent of each.
#pragma once

#include <cstddef>
#include <cstring>
#include <span>
#include <vector>

#include <lpo/base/philox.hpp>
#include <lpo/diffusion/sample.hpp>
#include <lpo/kernel/copy.hpp>
#include <lpo/tensor/tensor.hpp>

namespace lpo::inline LPO_ABI {

/// Where a pair comes from.
struct PairRecord {
  int step = 0;      ///< index into the run's chain of GaussianSteps
  int timestep = 0;  ///< its departure timestep
  int prompt = 0;    ///< row of the prompt batch
  float gap = 0;     ///< softmax gap of the two scores
};

/// Room for `capacity` pairs of latents [h, w, c]; memory is taken once and reused.
template <class T, class Device>
class PairStore {
 public:
  PairStore() = default;
  PairStore(index_t capacity, const Extents<3>& latent)
      : latent_(latent),
        x_t_(Extents<4>{capacity, latent[0], latent[1], latent[2]}),
        x_win_(x_t_.extents()),
        x_lose_(x_t_.extents()) {
    records_.reserve(static_cast<std::size_t>(capacity));
  }

  index_t count() const { return static_cast<index_t>(records_.size()); }
  index_t capacity() const { return x_t_.size() == 0 ? 0 : x_t_.extent(0); }
  bool empty() const { return records_.empty(); }
  void clear() { records_.clear(); }

  std::span<const PairRecord> records() const { return records_; }
  /// The stored latents, [count, h, w, c].
  View<const T, 4, Device> x_t() const { return stored(x_t_); }
  View<const T, 4, Device> x_win() const { return stored(x_win_); }
  View<const T, 4, Device> x_lose() const { return stored(x_lose_); }

  /// Copies one pair; the pointers address dense latents [h, w, c] on the device.
  void append(Context<Device>& context, const PairRecord& record, const T* x_t, const T* x_win, const T* x_lose) {
    expect_room();
    const index_t width = latent_.size(), at = count() * width;
    const auto copy = [&](const T* source, T* target) {
      kernel::CopyRows<Device>::run(context, 1, width, source, width, target + at, width, false);
    };
    copy(x_t, x_t_.data());
    copy(x_win, x_win_.data());
    copy(x_lose, x_lose_.data());
    records_.push_back(record);
  }

  /// Replaces the content of `batch` by the pairs number `indices` of this store, in that order: a mini-batch.
  void gather(Context<Device>& context, std::span<const int> indices, PairStore& batch) const {
    batch.clear();
    const index_t width = latent_.size();
    for (const int i : indices) {
      if (i < 0 || i >= count()) throw ValueError(message("[PairStore::gather] no pair ", i, " among ", count()));
      const index_t at = i * width;
      batch.append(context, records_[static_cast<std::size_t>(i)], x_t_.data() + at, x_win_.data() + at,
                   x_lose_.data() + at);
    }
  }

  /// An empty store for pairs of this one.
  PairStore empty_like(index_t capacity) const { return PairStore(capacity, latent_); }
  /// Pair number i as item_bytes() bytes of the host, in which it can go to another process.
  std::size_t item_bytes() const { return sizeof(PairRecord) + 3 * latent_bytes(); }
  void write_item(Context<Device>& context, index_t i, std::byte* to) const {
    std::memcpy(to, &records_[static_cast<std::size_t>(i)], sizeof(PairRecord));
    to += sizeof(PairRecord);
    for (const auto* tensor : {&x_t_, &x_win_, &x_lose_}) {
      context.copy_to_host(to, tensor->data() + i * latent_.size(), latent_bytes());
      to += latent_bytes();
    }
  }
  void append_item(Context<Device>& context, const std::byte* from) {
    PairRecord record;
    std::memcpy(&record, from, sizeof record);
    from += sizeof record;
    expect_room();
    for (auto* tensor : {&x_t_, &x_win_, &x_lose_}) {
      context.copy_from_host(tensor->data() + count() * latent_.size(), from, latent_bytes());
      from += latent_bytes();
    }
    records_.push_back(record);
  }

 private:
  std::size_t latent_bytes() const { return static_cast<std::size_t>(latent_.size()) * sizeof(T); }
  void expect_room() const {
    if (count() == capacity())
      throw ValueError(message("[PairStore] all ", capacity(), " places are taken; clear() it or make it larger"));
  }
  View<const T, 4, Device> stored(const Tensor<T, 4, Device>& tensor) const {
    return {tensor.data(), Extents<4>{count(), latent_[0], latent_[1], latent_[2]}};
  }

  Extents<3> latent_{};
  Tensor<T, 4, Device> x_t_, x_win_, x_lose_;
  std::vector<PairRecord> records_;
};

/// A random order of `count` pairs, the same for the same seed and iteration.
inline std::vector<int> shuffled_order(index_t count, std::uint64_t seed, std::uint32_t iteration) {
  std::vector<int> order(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int>(i);
  RandomStream(RandomKey{seed, random_operation::pair_order, iteration}).shuffle(order);
  return order;
}

}  // namespace lpo::inline LPO_ABI
