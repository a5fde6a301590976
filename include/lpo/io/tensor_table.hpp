// SPDX-License-Identifier: MIT
// TensorTable: named tensors of a file, whatever its format, and the questions that readers of weights ask.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>
#include <lpo/io/dtype.hpp>
#include <lpo/io/file.hpp>
#include <lpo/io/json.hpp>

namespace lpo::inline LPO_ABI {

/// One tensor of a file: row-major, little-endian, not necessarily aligned.
struct TensorInfo {
  DType dtype = DType::F32;
  std::vector<index_t> shape;  ///< empty for a scalar
  const std::byte* data = nullptr;
  std::size_t bytes = 0;

  index_t count() const { return static_cast<index_t>(bytes / dtype_size(dtype)); }
};

/// "[320, 4, 3, 3]"
inline std::string shape_text(const std::vector<index_t>& shape) {
  return detail::extents_text(shape.data(), static_cast<int>(shape.size()));
}

namespace detail {

/// A 1x1 convolution and a matrix are the same weight: [o, i, 1, 1] counts as [o, i]; and a number is a vector of one.
inline std::vector<index_t> without_unit_kernel(std::vector<index_t> shape) {
  if (shape.size() == 4 && shape[2] == 1 && shape[3] == 1) shape.resize(2);
  if (shape.empty()) shape.push_back(1);
  return shape;
}

}  // namespace detail

/// What `SafetensorsFile`, `TorchFile`, `Checkpoint`, `SingleFile` and `RenamedWeights` have in common; they add only
/// how it is filled. Copies share the memory; pointers in `TensorInfo` live as long as any of them.
class TensorTable {
 public:
  const std::string& path() const { return name_; }

  /// Names of all tensors, sorted.
  std::vector<std::string> keys() const {
    std::vector<std::string> names;
    names.reserve(tensors_.size());
    for (const auto& [key, info] : tensors_) names.push_back(key);
    return names;
  }

  bool contains(std::string_view key) const { return tensors_.find(key) != tensors_.end(); }

  /// Type, shape and bytes of a tensor; FileError with the nearest names if there is none.
  const TensorInfo& info(std::string_view key) const {
    const auto found = tensors_.find(key);
    if (found == tensors_.end())
      fail("no tensor \"", key, "\" among ", tensors_.size(), detail::near_keys(key, keys()));
    return found->second;
  }

  /// Texts that the file holds beside its tensors: `__metadata__` of safetensors, strings of a torch dictionary.
  const std::map<std::string, std::string>& metadata() const { return metadata_; }

  /// Converts the tensor to `To` (float, double, bfloat16, half or an integer). It must have exactly `count` elements.
  /// Floats are not read into integers: that would lose them silently.
  template <class To>
  void read(std::string_view key, To* destination, index_t count) const {
    const TensorInfo& tensor = info(key);
    if (tensor.count() != count)
      fail("tensor \"", key, "\" has shape ", shape_text(tensor.shape), ", ", tensor.count(), " elements; expected ",
           count);
    read_checked(key, tensor, destination);
  }

  /// The same, and the shape must be exactly `shape`.
  template <class To>
  void read(std::string_view key, To* destination, const std::vector<index_t>& shape) const {
    const TensorInfo& tensor = info(key);
    if (tensor.shape != shape)
      fail("tensor \"", key, "\" has shape ", shape_text(tensor.shape), ", expected ", shape_text(shape));
    read_checked(key, tensor, destination);
  }

  /// Elements [first, first + count) in row-major order, converted.
  template <class To>
  void read_part(std::string_view key, index_t first, index_t count, To* destination) const {
    TensorInfo part = info(key);
    if (first < 0 || count < 0 || first > part.count() - count)
      fail("tensor \"", key, "\" has ", part.count(), " elements, expected ", count, " from ", first);
    const std::size_t width = dtype_size(part.dtype);
    part.data += static_cast<std::size_t>(first) * width;
    part.bytes = static_cast<std::size_t>(count) * width;
    read_checked(key, part, destination);
  }

  /// All elements, converted, in row-major order.
  template <class To>
  std::vector<To> read_vector(std::string_view key) const {
    const TensorInfo& tensor = info(key);
    std::vector<To> values(static_cast<std::size_t>(tensor.count()));
    read_checked(key, tensor, values.data());
    return values;
  }

  /// Points into the file if the tensor is stored as `T` and aligned for it, so that no copy is needed; else null.
  template <class T>
  const T* direct(std::string_view key) const {
    const TensorInfo& tensor = info(key);
    const bool aligned = reinterpret_cast<std::uintptr_t>(tensor.data) % alignof(T) == 0;
    return tensor.dtype == dtype_of<T>() && aligned ? reinterpret_cast<const T*>(tensor.data) : nullptr;
  }

  /// See `MappedFile::release_pages`; all tensors, or one.
  void release_pages() const {
    for (const auto& mapping : mappings_) mapping->release_pages();
  }
  void release_pages(std::string_view key) const {
    const TensorInfo& tensor = info(key);
    for (const auto& mapping : mappings_)
      if (mapping->contains(tensor.data)) mapping->release_pages(tensor.data, tensor.bytes);
  }

 protected:
  /// `format` names the reader in messages and must be a literal; `name` is the path or stands in for it.
  TensorTable(const char* format, std::string name) : name_(std::move(name)), format_(format) {}

  template <class... Parts>
  [[noreturn]] LPO_COLD void fail(const Parts&... parts) const {
    throw FileError(message("[", format_, "] ", name_, ": ", parts...));
  }

  /// Keeps the memory that tensors point into alive for as long as the table.
  void keep(std::shared_ptr<const void> memory) { memory_.push_back(std::move(memory)); }
  void keep(std::shared_ptr<const MappedFile> mapping) { mappings_.push_back(std::move(mapping)); }
  /// The same for what the tensors of `other` point into.
  void keep(const TensorTable& other) {
    memory_.insert(memory_.end(), other.memory_.begin(), other.memory_.end());
    mappings_.insert(mappings_.end(), other.mappings_.begin(), other.mappings_.end());
  }

  std::string name_;
  std::map<std::string, TensorInfo, std::less<>> tensors_;
  std::map<std::string, std::string> metadata_;

 private:
  template <class To>
  void read_checked(std::string_view key, const TensorInfo& tensor, To* destination) const {
    if constexpr (std::is_integral_v<To>) {
      if (is_floating(tensor.dtype))
        fail("tensor \"", key, "\" holds ", dtype_name(tensor.dtype), ", expected an integer type");
    }
    convert_from(tensor.dtype, tensor.data, destination, tensor.count());
  }

  std::vector<std::shared_ptr<const void>> memory_;
  std::vector<std::shared_ptr<const MappedFile>> mappings_;
  const char* format_;
};

}  // namespace lpo::inline LPO_ABI
