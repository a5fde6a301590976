// SPDX-License-Identifier: MIT
// Memory: aligned host blocks, the last-in-first-out arena for activations, the size-class pool for gradients.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>

namespace lpo::inline LPO_ABI {

/// Every allocation starts on a cache line, which is also the widest SIMD pack.
inline constexpr std::size_t memory_alignment = 64;

namespace detail {

inline std::size_t aligned_bytes(std::size_t bytes) {
  return (bytes + memory_alignment - 1) / memory_alignment * memory_alignment;
}

/// An owning, aligned, uninitialised host block. Large ones are mapped and ask for large pages: touching gigabytes of
/// weights for the first time otherwise costs a page fault every 4 KiB, more than converting them from a file does.
class HostBlock {
 public:
  HostBlock() = default;
  explicit HostBlock(std::size_t bytes) : bytes_(aligned_bytes(std::max<std::size_t>(bytes, 1))) {
    data_ = is_mapped() ? map(bytes_)
                        : static_cast<std::byte*>(::operator new(bytes_, std::align_val_t{memory_alignment}));
  }
  /// A block of zeros. Mapped memory is zero from the start and takes no room until it is written.
  static HostBlock zeros(std::size_t bytes) {
    HostBlock block(bytes);
    if (!block.is_mapped()) std::memset(block.data_, 0, block.bytes_);
    return block;
  }
  HostBlock(HostBlock&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
  HostBlock& operator=(HostBlock&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~HostBlock() {
    if (is_mapped())
      ::munmap(data_, bytes_);
    else
      ::operator delete(data_, std::align_val_t{memory_alignment});
  }

  std::byte* data() const { return data_; }
  std::size_t bytes() const { return bytes_; }

 private:
  /// From here on malloc would map as well: glibc never puts more than this into its heap.
  static constexpr std::size_t mapped_bytes = std::size_t{32} << 20;

  bool is_mapped() const { return bytes_ >= mapped_bytes; }

  static std::byte* map(std::size_t bytes) {
    void* const data = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    ::madvise(data, bytes, MADV_HUGEPAGE);  // a wish: where it is not granted, pages stay small
#endif
    return static_cast<std::byte*>(data);
  }

  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
};

}  // namespace detail

/// Where an arena stands.
struct ArenaMark {
  std::size_t block = 0;
  std::size_t used = 0;
};

/// A stack of bytes over blocks of a device's memory. `mark()` and `rewind()` free in reverse order; blocks stay mapped, so
/// that a second pass over the same network allocates nothing (page faults cost a framework 40 % of a forward).
template <class Block>
class BasicArena {
 public:
  using Mark = ArenaMark;

  explicit BasicArena(std::size_t first_block_bytes = std::size_t{1} << 20) : next_block_bytes_(first_block_bytes) {}

  std::byte* allocate(std::size_t bytes) {
    bytes = detail::aligned_bytes(bytes);
    while (top_.block < blocks_.size() && top_.used + bytes > blocks_[top_.block].bytes()) {
      ++top_.block;
      top_.used = 0;
    }
    if (top_.block == blocks_.size()) {
      blocks_.emplace_back(std::max(bytes, next_block_bytes_));
      next_block_bytes_ = std::min(next_block_bytes_ * 2, std::size_t{1} << 28);
      top_.used = 0;
    }
    std::byte* data = blocks_[top_.block].data() + top_.used;
    top_.used += bytes;
    peak_ = std::max(peak_, in_use());
    return data;
  }

  Mark mark() const { return top_; }
  void rewind(Mark mark) { top_ = mark; }

  std::size_t reserved_bytes() const {
    std::size_t total = 0;
    for (const auto& block : blocks_) total += block.bytes();
    return total;
  }
  std::size_t peak_bytes() const { return peak_; }

 private:
  std::size_t in_use() const {
    std::size_t total = top_.used;
    for (std::size_t i = 0; i < top_.block; ++i) total += blocks_[i].bytes();
    return total;
  }

  std::vector<Block> blocks_;
  Mark top_;
  std::size_t next_block_bytes_;
  std::size_t peak_ = 0;
};

using Arena = BasicArena<detail::HostBlock>;

/// Free lists of blocks by size class (quarter powers of two): gradients live and die out of order.
template <class Block>
class BasicPool {
 public:
  std::byte* allocate(std::size_t bytes) {
    auto& free_list = free_[size_class(bytes)];
    if (free_list.empty()) {
      const std::size_t rounded = class_bytes(size_class(bytes));
      blocks_.emplace_back(rounded);
      reserved_ += rounded;
      return blocks_.back().data();
    }
    std::byte* data = free_list.back();
    free_list.pop_back();
    return data;
  }

  void release(std::byte* data, std::size_t bytes) { free_[size_class(bytes)].push_back(data); }

  std::size_t reserved_bytes() const { return reserved_; }

 private:
  static std::size_t class_bytes(std::size_t index) {
    const std::size_t base = memory_alignment << (index / 4);
    return base + base / 4 * (index % 4);
  }
  static std::size_t size_class(std::size_t bytes) {
    std::size_t index = 0;
    while (class_bytes(index) < bytes) ++index;
    return index;
  }

  std::vector<std::byte*> free_[4 * 48];
  std::vector<Block> blocks_;
  std::size_t reserved_ = 0;
};

using Pool = BasicPool<detail::HostBlock>;

/// What a tensor needs of a device's memory when it stands alone, without a context: an owning block, and transfers that
/// are complete when they return. Host devices are these; backend/cuda specialises it.
template <class Device>
struct DeviceMemory {
  using Block = detail::HostBlock;

  static void copy_from_host(void* device, const void* host, std::size_t bytes) {
    if (bytes != 0) std::memcpy(device, host, bytes);
  }
  static void copy_to_host(void* host, const void* device, std::size_t bytes) {
    if (bytes != 0) std::memcpy(host, device, bytes);
  }
  static void fill_zero(void* device, std::size_t bytes) {
    if (bytes != 0) std::memset(device, 0, bytes);
  }
};

}  // namespace lpo::inline LPO_ABI
