// SPDX-License-Identifier: MIT
// PackedWeights: constant matrices in the form in which a backend's products read them, made once and kept.
#pragma once

#include <algorithm>
#include <compare>
#include <cstddef>
#include <functional>
#include <utility>
#include <vector>

#include <lpo/base/extents.hpp>
#include <lpo/tensor/memory.hpp>

namespace lpo::inline LPO_ABI {

/// Belongs to a context. A product looks here for the packed form of its right operand, which it else makes in each call;
/// only memory that was promised to stay as it is has one. Bits do not depend on it. The price is memory: a copy of every
/// promised matrix for each form that products ask for, one in a forward and one in the gradient towards activations.
/// nn/keep_packed.hpp is how models use it.
class PackedWeights {
 public:
  /// Which form of which matrix: its extents, how it is cut, and where its first and some other elements lie.
  struct Key {
    const void* first;
    index_t n, k, form;
    index_t next_column, next_panel, last_column, next_k, last_k;  ///< behind the first element

    auto operator<=>(const Key&) const = default;
  };

  /// Nothing writes to these bytes until forget(begin).
  void promise(const void* begin, std::size_t bytes) {
    const auto* const first = static_cast<const std::byte*>(begin);
    ranges_.emplace_back(first, first + bytes);
  }

  /// Ends a promise. All packed forms are dropped; what other promises need is made again.
  void forget(const void* begin) {
    const auto at = std::find_if(ranges_.begin(), ranges_.end(), [&](const Range& range) { return range.first == begin; });
    if (at != ranges_.end()) ranges_.erase(at);
    drop();
  }

  /// Drops all packed forms: promised memory has changed after all, and stays as it is again from now on.
  void drop() {
    packed_.clear();
    arena_ = Arena();
  }

  bool promised(const void* at) const {
    constexpr std::less<const void*> before;
    return std::any_of(ranges_.begin(), ranges_.end(),
                       [&](const Range& range) { return !before(at, range.first) && before(at, range.second); });
  }

  /// The packed form of `count` elements; the first call for a key has pack(T* to) write it.
  template <class T, class Pack>
  T* find_or_make(const Key& key, index_t count, Pack&& pack) {
    const auto at = [&] {
      return std::lower_bound(packed_.begin(), packed_.end(), key, [](const auto& one, const Key& other) { return one.first < other; });
    };
    if (const auto found = at(); found != packed_.end() && found->first == key) return static_cast<T*>(found->second);
    T* const to = reinterpret_cast<T*>(arena_.allocate(static_cast<std::size_t>(count) * sizeof(T)));
    pack(to);
    packed_.insert(at(), {key, to});
    return to;
  }

  std::size_t reserved_bytes() const { return arena_.reserved_bytes(); }

 private:
  using Range = std::pair<const std::byte*, const std::byte*>;

  std::vector<Range> ranges_;
  std::vector<std::pair<Key, void*>> packed_;  // sorted
  Arena arena_;
};

}  // namespace lpo::inline LPO_ABI
