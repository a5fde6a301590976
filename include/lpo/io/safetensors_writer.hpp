// SPDX-License-Identifier: MIT
// SafetensorsWriter: collects named tensors and writes them as one .safetensors file, byte for byte as the reference
// does.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
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

namespace lpo::inline LPO_ABI {

/// Tensors are sorted by type (widest first), then name, without gaps; the header is padded with spaces to 8 bytes.
/// Tensors added by pointer are not copied: they must live until `write`, which also does the type conversion, in
/// pieces.
class SafetensorsWriter {
 public:
  /// A text of `__metadata__`; a second value for a key replaces the first.
  void set_metadata(const std::string& key, const std::string& value) { metadata_[key] = value; }

  /// A tensor whose bytes already have type `dtype`.
  void add(const std::string& name, DType dtype, std::vector<index_t> shape, const void* data) {
    insert(name, Entry{dtype, dtype, std::move(shape), data, nullptr});
  }

  /// A tensor of `From` (float, double, bfloat16, half, an integer) that is stored as `target`.
  template <class From>
  void add_converted(const std::string& name, DType target, std::vector<index_t> shape, const From* data) {
    insert(name, Entry{target, dtype_of<From>(), std::move(shape), data, nullptr});
  }

  /// The same, and the writer keeps the values.
  template <class From>
  void add_owned(const std::string& name, DType target, std::vector<index_t> shape, std::vector<From> values) {
    auto owner = std::make_shared<const std::vector<From>>(std::move(values));
    Entry entry{target, dtype_of<From>(), std::move(shape), owner->data(), owner};
    if (element_count(name, entry.shape) != static_cast<index_t>(owner->size()))
      throw ValueError(message("[safetensors] tensor \"", name, "\" has ", owner->size(), " values, but its shape is ",
                               detail::extents_text(entry.shape.data(), static_cast<int>(entry.shape.size()))));
    insert(name, std::move(entry));
  }

  std::size_t size() const { return entries_.size(); }

  /// Writes the file, entirely or not at all.
  void write(const std::string& path) const {
    write_file_atomically(path, [&](FileSink& sink) { write_to(sink); });
  }

  /// The file's bytes, for tests and small things.
  std::string bytes() const {
    struct {
      std::string text;
      void write(const void* data, std::size_t count) { text.append(static_cast<const char*>(data), count); }
    } sink;
    write_to(sink);
    return std::move(sink.text);
  }

 private:
  struct Entry {
    DType dtype;
    DType source;
    std::vector<index_t> shape;
    const void* data;
    std::shared_ptr<const void> owner;
  };
  using Named = std::pair<const std::string, Entry>;

  static index_t element_count(const std::string& name, const std::vector<index_t>& shape) {
    index_t count = 1;
    for (const index_t extent : shape) {
      if (extent < 0 || __builtin_mul_overflow(count, extent, &count))
        throw ValueError(message("[safetensors] tensor \"", name, "\" has the impossible shape ",
                                 detail::extents_text(shape.data(), static_cast<int>(shape.size()))));
    }
    return count;
  }

  void insert(const std::string& name, Entry entry) {
    if (name == "__metadata__") throw ValueError("[safetensors] a tensor cannot be named \"__metadata__\"");
    const index_t count = element_count(name, entry.shape);
    if (count != 0 && entry.data == nullptr)
      throw ValueError(message("[safetensors] tensor \"", name, "\" has no data"));
    if (!entries_.emplace(name, std::move(entry)).second)
      throw ValueError(message("[safetensors] tensor \"", name, "\" was added twice"));
  }

  static std::string quoted(const std::string& text) {
    try {
      return SortedJson(text).dump();
    } catch (const nlohmann::json::exception&) {
      throw ValueError("[safetensors] a tensor name or metadata text is not valid UTF-8");
    }
  }

  std::vector<const Named*> in_file_order() const {
    std::vector<const Named*> order;
    for (const Named& entry : entries_) order.push_back(&entry);  // by name already
    std::stable_sort(order.begin(), order.end(), [](const Named* a, const Named* b) {
      return static_cast<int>(a->second.dtype) > static_cast<int>(b->second.dtype);
    });
    return order;
  }

  std::string header(const std::vector<const Named*>& order) const {
    std::string text = "{";
    if (!metadata_.empty()) {
      text += "\"__metadata__\":{";
      for (const auto& [key, value] : metadata_) text += quoted(key) + ":" + quoted(value) + ",";
      text.back() = '}';
      text += ",";
    }
    std::size_t offset = 0;
    for (const Named* named : order) {
      const auto& [name, entry] = *named;
      const std::size_t bytes = static_cast<std::size_t>(element_count(name, entry.shape)) * dtype_size(entry.dtype);
      text += quoted(name) + ":{\"dtype\":\"" + std::string(dtype_name(entry.dtype)) + "\",\"shape\":[";
      for (std::size_t axis = 0; axis < entry.shape.size(); ++axis)
        text += message(axis == 0 ? "" : ",", entry.shape[axis]);
      text += message("],\"data_offsets\":[", offset, ",", offset + bytes, "]},");
      offset += bytes;
    }
    if (text.back() == ',') text.pop_back();
    text += "}";
    text.resize((text.size() + 7) / 8 * 8, ' ');
    return text;
  }

  template <class Sink>
  void write_to(Sink& sink) const {
    const std::vector<const Named*> order = in_file_order();
    const std::string text = header(order);
    unsigned char length[8];
    for (int i = 0; i < 8; ++i) length[i] = static_cast<unsigned char>(std::uint64_t{text.size()} >> (8 * i));
    sink.write(length, sizeof length);
    sink.write(text.data(), text.size());
    std::vector<std::byte> piece;
    for (const Named* named : order) {
      const Entry& entry = named->second;
      const index_t count = element_count(named->first, entry.shape);
      if (count == 0) continue;
      if (entry.dtype == entry.source) {
        sink.write(entry.data, static_cast<std::size_t>(count) * dtype_size(entry.dtype));
        continue;
      }
      constexpr index_t piece_elements = 1 << 16;
      piece.resize(piece_elements * 8);
      for (index_t first = 0; first < count; first += piece_elements) {
        const index_t now = std::min(piece_elements, count - first);
        const auto* source =
            static_cast<const std::byte*>(entry.data) + static_cast<std::size_t>(first) * dtype_size(entry.source);
        convert(entry.source, source, entry.dtype, piece.data(), now);
        sink.write(piece.data(), static_cast<std::size_t>(now) * dtype_size(entry.dtype));
      }
    }
  }

  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace lpo::inline LPO_ABI
