// SPDX-License-Identifier: MIT
// SafetensorsFile: reads one .safetensors file through a mapping and enforces every rule of the format.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>
#include <lpo/io/dtype.hpp>
#include <lpo/io/file.hpp>
#include <lpo/io/json.hpp>
#include <lpo/io/tensor_table.hpp>

namespace lpo::inline LPO_ABI {

struct SafetensorsOptions {
  /// Accept bytes after the last tensor (some released files have 4); otherwise they are an error.
  bool allow_trailing_bytes = false;
  /// Called with a sentence for each irregularity that was accepted.
  std::function<void(const std::string&)> warn = {};
};

/// A file of named tensors: 8 bytes length, JSON header, data. Nothing is copied until `read`.
/// Format: github.com/huggingface/safetensors.
class SafetensorsFile : public TensorTable {
 public:
  /// Longest header that the format allows.
  static constexpr std::uint64_t header_limit = 100'000'000;

  SafetensorsFile() : TensorTable("safetensors", "") {}

  /// Maps `path` and checks the whole header. FileError names the file, the tensor, what was found and expected.
  explicit SafetensorsFile(const std::string& path, const SafetensorsOptions& options = {})
      : TensorTable("safetensors", path) {
    const auto mapping = std::make_shared<const MappedFile>(path);
    keep(mapping);
    load(mapping->data(), mapping->size(), options);
  }

  /// The same for bytes in memory, which the caller keeps alive; `name` stands in for the path in messages.
  static SafetensorsFile from_memory(const void* data, std::size_t size, std::string name,
                                     const SafetensorsOptions& options = {}) {
    SafetensorsFile file;
    file.name_ = std::move(name);
    file.load(static_cast<const std::byte*>(data), size, options);
    return file;
  }

 private:
  void load(const std::byte* data, std::size_t size, const SafetensorsOptions& options) {
    if (size < 8) fail("has ", size, " bytes, expected at least 8 (the header's length)");
    std::uint64_t header_bytes = 0;
    for (int i = 7; i >= 0; --i) header_bytes = (header_bytes << 8) | static_cast<std::uint64_t>(data[i]);
    if (header_bytes > header_limit)
      fail("says its header has ", header_bytes, " bytes, expected at most ", header_limit,
           "; this is not a safetensors file");
    if (header_bytes > size - 8)
      fail("says its header has ", header_bytes, " bytes, but only ", size - 8, " follow; the file is truncated");
    const std::string_view text(reinterpret_cast<const char*>(data) + 8, static_cast<std::size_t>(header_bytes));
    if (text.empty() || text.front() != '{') fail("header does not begin with '{'; this is not a safetensors file");
    const auto header = parse_json<SortedJson>(text, "safetensors", name_);
    read_header(header, data + 8 + header_bytes, size - 8 - static_cast<std::size_t>(header_bytes), options);
  }

  void read_header(const SortedJson& header, const std::byte* buffer, std::size_t available,
                   const SafetensorsOptions& options) {
    struct Range {
      std::uint64_t begin;
      std::uint64_t end;
      std::string_view key;
      bool operator<(const Range& other) const { return std::pair(begin, end) < std::pair(other.begin, other.end); }
    };
    std::vector<Range> ranges;
    for (const auto& [key, entry] : header.items()) {
      if (key == "__metadata__") {
        read_metadata(entry);
        continue;
      }
      TensorInfo tensor;
      const auto [begin, end] = read_entry(key, entry, tensor);
      const auto inserted = tensors_.emplace(key, std::move(tensor)).first;
      inserted->second.data = buffer + std::min<std::uint64_t>(begin, available);
      ranges.push_back({begin, end, inserted->first});
    }
    std::sort(ranges.begin(), ranges.end());
    std::uint64_t expected = 0;
    std::string_view previous = "the header";
    for (const Range& range : ranges) {
      if (range.begin != expected)
        fail("tensor \"", range.key, "\" begins at ", range.begin, ", expected ", expected, " where \"", previous,
             "\" ends: the data has ", range.begin > expected ? "a gap" : "an overlap");
      if (range.end > available)
        fail("tensor \"", range.key, "\" ends at ", range.end, ", but the data has ", available,
             " bytes; the file is truncated");
      expected = range.end;
      previous = range.key;
    }
    if (expected != available) {
      const std::string trailing = message("has ", available - expected, " bytes after the last tensor, expected none");
      if (!options.allow_trailing_bytes) fail(trailing);
      if (options.warn) options.warn(message("[safetensors] ", name_, ": ", trailing, "; they are ignored"));
    }
  }

  void read_metadata(const SortedJson& entry) {
    if (!entry.is_object()) fail("__metadata__ is ", json_kind(entry), ", expected an object of strings");
    for (const auto& [key, value] : entry.items()) {
      if (!value.is_string()) fail("__metadata__ value of \"", key, "\" is ", json_kind(value), ", expected a string");
      metadata_.emplace(key, value.get_ref<const std::string&>());
    }
  }

  /// Fills type, shape and size; returns the offsets, which agree with them but are not yet checked against the file.
  std::pair<std::uint64_t, std::uint64_t> read_entry(const std::string& key, const SortedJson& entry,
                                                     TensorInfo& tensor) const {
    if (!entry.is_object()) fail("entry of tensor \"", key, "\" is ", json_kind(entry), ", expected an object");
    const auto member = [&](const char* name) -> const SortedJson& {
      const auto found = entry.find(name);
      if (found == entry.end()) fail("entry of tensor \"", key, "\" has no \"", name, "\"");
      return *found;
    };
    const SortedJson& dtype = member("dtype");
    const SortedJson& shape = member("shape");
    const SortedJson& offsets = member("data_offsets");
    const auto known = dtype.is_string() ? dtype_of_name(dtype.get_ref<const std::string&>()) : std::nullopt;
    if (!known)
      fail("tensor \"", key, "\" has dtype ", json_preview(dtype), ", which is not one of the format's types");
    tensor.dtype = *known;
    if (!shape.is_array()) fail("tensor \"", key, "\" has shape ", json_preview(shape), ", expected an array");
    std::uint64_t bytes = dtype_size(*known);
    bool overflow = false;
    bool empty = false;
    for (const SortedJson& extent : shape) {
      if (!extent.is_number_unsigned() || extent.get<std::uint64_t>() > (std::uint64_t{1} << 62))
        fail("tensor \"", key, "\" has shape ", json_preview(shape), ", expected integers from 0 to 2^62");
      const auto value = extent.get<std::uint64_t>();
      tensor.shape.push_back(static_cast<index_t>(value));
      empty = empty || value == 0;
      overflow = __builtin_mul_overflow(bytes, value, &bytes) || overflow;
    }
    if (empty && !overflow) bytes = 0;
    if (overflow) fail("tensor \"", key, "\" has shape ", json_preview(shape), ", whose size overflows 64 bits");
    if (!offsets.is_array() || offsets.size() != 2 || !offsets[0].is_number_unsigned() ||
        !offsets[1].is_number_unsigned())
      fail("tensor \"", key, "\" has data_offsets ", json_preview(offsets), ", expected two non-negative integers");
    const auto begin = offsets[0].get<std::uint64_t>();
    const auto end = offsets[1].get<std::uint64_t>();
    if (begin > end || end - begin != bytes)
      fail("tensor \"", key, "\" of type ", dtype_name(*known), " and shape ", json_preview(shape), " needs ", bytes,
           " bytes, but its data_offsets are ", json_preview(offsets));
    tensor.bytes = static_cast<std::size_t>(bytes);
    return {begin, end};
  }
};

}  // namespace lpo::inline LPO_ABI
