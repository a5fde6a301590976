// SPDX-License-Identifier: MIT
// DealtItems: what the roll-outs of all ranks left, shuffled and dealt out for training.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include <lpo/distributed/collectives.hpp>
#include <lpo/preference/pair_store.hpp>

namespace lpo::inline LPO_ABI {

/// Numbers the items of all ranks by step and prompt, as one rank that drew them all would have them, shuffles them,
/// and cuts them into mini-batches. Each rank gets a share of every mini-batch (the released code drops what does not
/// divide; here nothing is lost, and the optimiser steps are those of one rank). Store: PairStore or CandidateStore,
/// with records that count prompts over all ranks.
template <class Store, class Device>
class DealtItems {
 public:
  /// One optimiser step.
  struct Batch {
    std::vector<int> own;  ///< numbers in items()
    index_t total = 0;     ///< over all ranks
  };

  /// `drawn` must live until the next call.
  template <class Ranks>
  void deal(Context<Device>& context, Ranks& ranks, const Store& drawn, std::uint64_t seed, std::uint32_t iteration,
            index_t batch_size) {
    const auto own = drawn.records();
    const auto counts = gather_values(ranks, std::vector<index_t>{std::ssize(own)});
    const auto records = gather_values(ranks, std::vector<PairRecord>(own.begin(), own.end()));
    std::vector<Place> places;
    for (std::size_t rank = 0; rank < counts.size(); ++rank)
      for (index_t i = 0; i < counts[rank]; ++i)
        places.push_back({records[places.size()].step, records[places.size()].prompt, static_cast<int>(rank), i});
    if (ranks.size() > 1)
      std::sort(places.begin(), places.end(), [](const Place& a, const Place& b) {
        return a.step != b.step ? a.step < b.step : a.prompt < b.prompt;
      });
    const auto order = shuffled_order(std::ssize(places), seed, iteration);
    total_ = std::ssize(places);
    batches_.clear();
    for (index_t begin = 0; begin < total_; begin += batch_size)
      batches_.push_back({{}, std::min(batch_size, total_ - begin)});
    items_ = &drawn;
    if (ranks.size() == 1) {
      for (index_t i = 0; i < total_; ++i)
        batches_[static_cast<std::size_t>(i / batch_size)].own.push_back(order[static_cast<std::size_t>(i)]);
    } else {
      move_items(context, ranks, drawn, places, order, batch_size);
      items_ = &dealt_;
    }
  }

  const Store& items() const { return *items_; }
  const std::vector<Batch>& batches() const { return batches_; }
  /// Items of all ranks.
  index_t total() const { return total_; }

 private:
  struct Place {
    int step, prompt, rank;
    index_t number;  ///< in its rank's store
  };

  template <class Ranks>
  void move_items(Context<Device>& context, Ranks& ranks, const Store& drawn, const std::vector<Place>& places,
                  const std::vector<int>& order, index_t batch_size) {
    const std::size_t bytes = drawn.item_bytes();
    std::vector<HostBytes> parcels(static_cast<std::size_t>(ranks.size()));
    std::vector<int> owners;  // of what this rank gets
    for (std::size_t b = 0; b < batches_.size(); ++b)
      for (int to = 0; to < ranks.size(); ++to) {
        const Share share = share_of(batches_[b].total, to, ranks.size());
        for (index_t i = share.begin; i < share.end; ++i) {
          const auto at = b * static_cast<std::size_t>(batch_size) + static_cast<std::size_t>(i);
          const Place& place = places[static_cast<std::size_t>(order[at])];
          if (place.rank == ranks.rank()) {
            HostBytes& parcel = parcels[static_cast<std::size_t>(to)];
            parcel.resize(parcel.size() + bytes);
            drawn.write_item(context, place.number, parcel.data() + parcel.size() - bytes);
          }
          if (to != ranks.rank()) continue;
          batches_[b].own.push_back(static_cast<int>(owners.size()));
          owners.push_back(place.rank);
        }
      }
    const auto arrived = ranks.exchange(std::move(parcels));
    const index_t count = std::ssize(owners);
    if (dealt_.capacity() < count) dealt_ = drawn.empty_like(count);
    dealt_.clear();
    std::vector<std::size_t> read(arrived.size(), 0);
    for (const int owner : owners) {
      const auto from = static_cast<std::size_t>(owner);
      dealt_.append_item(context, arrived[from].data() + read[from]);
      read[from] += bytes;
    }
  }

  const Store* items_ = nullptr;
  Store dealt_;
  std::vector<Batch> batches_;
  index_t total_ = 0;
};

}  // namespace lpo::inline LPO_ABI
