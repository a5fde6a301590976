// SPDX-License-Identifier: MIT
// SafetensorsWriter: collects named tensors and writes them as one .safetensors file, byte for byte as the reference
// does.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
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
    add_stored(name, dtype, dtype, std::move(shape), data);
  }

  /// A tensor whose bytes have type `source` and any alignment (those of another file, say), stored as `target`.
  /// `owner`, if given, keeps them alive.
  void add_stored(const std::string& name, DType target, DType source, std::vector<index_t> shape, const void* data,
                  std::shared_ptr<const void> owner = nullptr) {
    insert(name, Entry{target, source, std::move(shape), data, std::move(owner), {}});
  }

  /// A tensor of `From` (float, double, bfloat16, half, an integer) that is stored as `target`.
  template <class From>
  void add_converted(const std::string& name, DType target, std::vector<index_t> shape, const From* data) {
    add_stored(name, target, dtype_of<From>(), std::move(shape), data);
  }

  /// The same, and the writer keeps the values.
  template <class From>
  void add_owned(const std::string& name, DType target, std::vector<index_t> shape, std::vector<From> values) {
    expect_count(name, shape, values.size());
    auto owner = std::make_shared<const std::vector<From>>(std::move(values));
    const From* data = owner->data();
    add_stored(name, target, dtype_of<From>(), std::move(shape), data, std::move(owner));
  }

  /// A tensor whose values are computed when its turn to be written comes, and forgotten after: a file of many
  /// gigabytes needs the memory of its largest tensor.
  void add_computed(const std::string& name, DType target, std::vector<index_t> shape,
                    std::function<std::vector<float>()> values) {
    insert(name, Entry{target, DType::F32, std::move(shape), nullptr, nullptr, std::move(values)});
  }

  std::size_t size() const { return entries_.size(); }

  /// Called after every tensor with its name and the bytes of all tensors so far and in all.
  using AfterTensor = std::function<void(const std::string& name, std::size_t done, std::size_t total)>;

  /// Writes the file, entirely or not at all: nothing is left of it when `after_tensor` throws.
  void write(const std::string& path, const AfterTensor& after_tensor = {}) const {
    write_file_atomically(path, [&](FileSink& sink) { write_to(sink, after_tensor); });
  }

  /// The file's bytes, for tests and small things.
  std::string bytes() const {
    struct {
      std::string text;
      void write(const void* data, std::size_t count) { text.append(static_cast<const char*>(data), count); }
    } sink;
    write_to(sink, {});
    return std::move(sink.text);
  }

 private:
  struct Entry {
    DType dtype;
    DType source;
    std::vector<index_t> shape;
    const void* data;
    std::shared_ptr<const void> owner;
    std::function<std::vector<float>()> values;  ///< instead of data
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

  static void expect_count(const std::string& name, const std::vector<index_t>& shape, std::size_t values) {
    if (element_count(name, shape) != static_cast<index_t>(values))
      throw ValueError(message("[safetensors] tensor \"", name, "\" has ", values, " values, but its shape is ",
                               detail::extents_text(shape.data(), static_cast<int>(shape.size()))));
  }

  void insert(const std::string& name, Entry entry) {
    if (name == "__metadata__") throw ValueError("[safetensors] a tensor cannot be named \"__metadata__\"");
    const index_t count = element_count(name, entry.shape);
    if (count != 0 && entry.data == nullptr && !entry.values)
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
      const std::size_t bytes = bytes_of(*named);
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

  static std::size_t bytes_of(const Named& named) {
    return static_cast<std::size_t>(element_count(named.first, named.second.shape)) * dtype_size(named.second.dtype);
  }

  template <class Sink>
  void write_to(Sink& sink, const AfterTensor& after_tensor) const {
    const std::vector<const Named*> order = in_file_order();
    const std::string text = header(order);
    unsigned char length[8];
    for (int i = 0; i < 8; ++i) length[i] = static_cast<unsigned char>(std::uint64_t{text.size()} >> (8 * i));
    sink.write(length, sizeof length);
    sink.write(text.data(), text.size());
    std::size_t done = 0, total = 0;
    for (const Named* named : order) total += bytes_of(*named);
    for (const Named* named : order) {
      if (named->second.values) {
        const std::vector<float> values = named->second.values();
        expect_count(named->first, named->second.shape, values.size());
        write_tensor(sink, *named, values.data());
      } else {
        write_tensor(sink, *named, named->second.data);
      }
      done += bytes_of(*named);
      if (after_tensor) after_tensor(named->first, done, total);
    }
  }

  template <class Sink>
  static void write_tensor(Sink& sink, const Named& named, const void* data) {
    const Entry& entry = named.second;
    const index_t count = element_count(named.first, entry.shape);
    if (count == 0) return;
    if (entry.dtype == entry.source) {
      sink.write(data, bytes_of(named));
      return;
    }
    constexpr index_t piece_elements = 1 << 16;
    std::vector<std::byte> piece(piece_elements * 8);
    for (index_t first = 0; first < count; first += piece_elements) {
      const index_t now = std::min(piece_elements, count - first);
      const auto* source =
          static_cast<const std::byte*>(data) + static_cast<std::size_t>(first) * dtype_size(entry.source);
      convert(entry.source, source, entry.dtype, piece.data(), now);
      sink.write(piece.data(), static_cast<std::size_t>(now) * dtype_size(entry.dtype));
    }
  }

  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace lpo::inline LPO_ABI
