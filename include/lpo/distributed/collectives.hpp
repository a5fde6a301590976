// SPDX-License-Identifier: MIT
// What trainers do over ranks: each takes a share of a batch; numbers are gathered, sums and decisions are of all.
#pragma once

#include <algorithm>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include <lpo/distributed/communicator.hpp>
#include <lpo/tensor/operators.hpp>

namespace lpo::inline LPO_ABI {

/// Consecutive entries of a batch.
struct Share {
  index_t begin = 0, end = 0;

  index_t size() const { return end - begin; }
};

/// The entries of `count` that are rank's own: the shares follow each other and differ by one entry at most.
inline Share share_of(index_t count, int rank, int size) { return {count * rank / size, count * (rank + 1) / size}; }
inline index_t largest_share(index_t count, int size) { return (count + size - 1) / size; }
template <class Ranks>
Share own_share(const Ranks& ranks, index_t count) {
  return share_of(count, ranks.rank(), ranks.size());
}

/// The values of all ranks, those of rank 0 first.
template <class T, class Ranks>
std::vector<T> gather_values(Ranks& ranks, const std::vector<T>& own) {
  static_assert(std::is_trivially_copyable_v<T>,
                "lpo gather_values: ranks exchange bytes, so values must be plain data");
  if (ranks.size() == 1) return own;
  HostBytes bytes(own.size() * sizeof(T));
  if (!own.empty()) std::memcpy(bytes.data(), own.data(), bytes.size());
  std::vector<T> all;
  for (const HostBytes& part : ranks.all_gather(bytes)) {
    const std::size_t begin = all.size();
    all.resize(begin + part.size() / sizeof(T));
    if (!part.empty()) std::memcpy(all.data() + begin, part.data(), part.size());
  }
  return all;
}

/// Sums over ranks of numbers that every rank has as many of.
template <class T, class Ranks>
std::vector<T> sum_of_ranks(Ranks& ranks, std::vector<T> own) {
  if (ranks.size() == 1) return own;
  const auto all = gather_values(ranks, own);
  for (std::size_t i = 0; i < own.size(); ++i) {
    own[i] = T{};
    for (std::size_t k = i; k < all.size(); k += own.size()) own[i] += all[k];
  }
  return own;
}
template <class Ranks>
double sum_of_ranks(Ranks& ranks, double own) {
  return sum_of_ranks(ranks, std::vector<double>{own}).front();
}

/// Statistics of all ranks' values; `merge(other)` adds what another one saw.
template <class Statistics, class Ranks>
Statistics merged_over_ranks(Ranks& ranks, const Statistics& own) {
  if (ranks.size() == 1) return own;
  const auto all = gather_values(ranks, std::vector<Statistics>{own});
  Statistics merged = all.front();
  for (std::size_t rank = 1; rank < all.size(); ++rank) merged.merge(all[rank]);
  return merged;
}

/// Whether it is true on any rank: what one wants, such as to stop, all learn.
template <class Ranks>
bool any_rank(Ranks& ranks, bool own) {
  if (ranks.size() == 1) return own;
  const auto all = gather_values(ranks, std::vector<char>{own ? '\1' : '\0'});
  return std::find(all.begin(), all.end(), '\1') != all.end();
}

/// The text of the first rank that has one.
template <class Ranks>
std::string first_text(Ranks& ranks, const std::string& own) {
  if (ranks.size() == 1) return own;
  HostBytes bytes(own.size());
  if (!own.empty()) std::memcpy(bytes.data(), own.data(), own.size());
  for (const HostBytes& text : ranks.all_gather(bytes))
    if (!text.empty()) return std::string(reinterpret_cast<const char*>(text.data()), text.size());
  return "";
}

/// Gradients on the device become their sums over ranks. 16-bit ones are added in float.
template <class T, class Device, class Ranks>
void sum_gradients(Ranks& ranks, Context<Device>& context, T* gradients, index_t count) {
  static_assert(std::is_same_v<compute_t<T>, float>, "lpo sum_gradients: gradients are float, bfloat16 or half");
  if (ranks.size() == 1) return;
  if constexpr (std::is_same_v<T, float>) {
    ranks.all_reduce(context, gradients, count);
  } else {
    constexpr index_t part = index_t{1} << 24;
    Scratch<Device> scratch(context);
    float* const memory = scratch.template allocate<float>(std::min(count, part));
    for (index_t begin = 0; begin < count; begin += part) {
      const Extents<1> extents{std::min(count - begin, part)};
      const View<float, 1, Device> sums(memory, extents);
      const View<T, 1, Device> own(gradients + begin, extents);
      evaluate(&context, sums, own);
      ranks.all_reduce(context, memory, extents[0]);
      evaluate(&context, own, sums);
    }
  }
}

/// Gives the trainable weights of all ranks the values of rank 0; returns the communicator, so that a trainer can begin
/// with it.
template <class Ranks, class Device, class Store>
Ranks begin_alike(Ranks ranks, Context<Device>& context, Store& store) {
  ranks.broadcast(context, store.trainable_values(),
                  static_cast<std::size_t>(store.trainable_size()) * sizeof(*store.trainable_values()));
  return ranks;
}

}  // namespace lpo::inline LPO_ABI
