// SPDX-License-Identifier: MIT
// KeptProjections: what layers make of inputs that stay the same over many passes, kept between them.
#pragma once

#include <cstddef>
#include <unordered_map>

#include <lpo/tensor/memory.hpp>

namespace lpo::inline LPO_ABI {

/// Keys and values of a text, by layer. While a tape that does not record has one (`Tape::keeping`), attention to a
/// text computes them in the first pass and reads them in the others. They hold for one text and one state of the
/// weights: `clear()` when either changes.
template <class Device>
class KeptProjections {
 public:
  using Block = typename DeviceMemory<Device>::Block;

  /// Memory of a layer's result, and whether it was filled before under the same adapters.
  struct Place {
    std::byte* data;
    bool filled;
  };

  Place place(const void* layer, std::size_t bytes, bool adapters) {
    if (adapters != adapters_) clear();
    adapters_ = adapters;
    Kept& kept = layers_[layer];
    const bool filled = kept.filled && kept.bytes == bytes;
    if (kept.block.bytes() < bytes) kept.block = Block(bytes);
    kept.filled = true;
    kept.bytes = bytes;
    return {kept.block.data(), filled};
  }

  /// Forgets the values; the memory stays for the next ones.
  void clear() {
    for (auto& [layer, kept] : layers_) kept.filled = false;
  }

 private:
  struct Kept {
    Block block;
    std::size_t bytes = 0;
    bool filled = false;
  };
  std::unordered_map<const void*, Kept> layers_;
  bool adapters_ = true;
};

}  // namespace lpo::inline LPO_ABI
