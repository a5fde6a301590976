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

/// Elements that lie one after the other in memory, any alignment: the whole of a tensor or a run of its rows.
struct TensorPiece {
  DType dtype;
  const void* data;
  index_t count;
  std::shared_ptr<const void> owner = {};  ///< keeps `data` alive, where nobody else does
};

/// What a file that is yet to be written will hold.
struct PlannedTensor {
  std::string name;
  DType dtype;
  std::vector<index_t> shape;
  std::size_t bytes;
};

/// Called after every tensor with its name and the bytes of all tensors so far and in all; false stops the writing.
using WriteCallback = std::function<bool(const std::string& name, std::size_t done, std::size_t total)>;

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
    const index_t count = element_count(name, shape);
    insert(name, Entry{target, std::move(shape), {{source, data, count, std::move(owner)}}, {}});
  }

  /// A tensor of `From` (float, double, bfloat16, half, an integer) that is stored as `target`.
  template <class From>
  void add_converted(const std::string& name, DType target, std::vector<index_t> shape, const From* data) {
    add_stored(name, target, dtype_of<From>(), std::move(shape), data);
  }

  /// The same, and the writer keeps the values.
  template <class From>
  void add_owned(const std::string& name, DType target, std::vector<index_t> shape, std::vector<From> values) {
    auto owner = std::make_shared<const std::vector<From>>(std::move(values));
    const auto* const data = owner->data();
    const auto count = static_cast<index_t>(owner->size());
    insert(name, Entry{target, std::move(shape), {{dtype_of<From>(), data, count, std::move(owner)}}, {}});
  }

  /// A tensor that is stored as `target` and whose elements are those of the pieces, one after the other.
  void add_pieces(const std::string& name, DType target, std::vector<index_t> shape, std::vector<TensorPiece> pieces) {
    insert(name, Entry{target, std::move(shape), std::move(pieces), {}});
  }

  /// A tensor whose values are computed when its turn to be written comes, and forgotten after: a file of many
  /// gigabytes needs the memory of its largest tensor.
  void add_computed(const std::string& name, DType target, std::vector<index_t> shape,
                    std::function<std::vector<float>()> values) {
    insert(name, Entry{target, std::move(shape), {}, std::move(values)});
  }

  /// Gives a tensor that was added another shape of as many elements. ValueError if it was not, or has more or fewer.
  void reshape(const std::string& name, std::vector<index_t> shape) {
    const auto entry = entries_.find(name);
    if (entry == entries_.end()) throw ValueError(message("[safetensors] no tensor \"", name, "\" was added"));
    expect_count(name, shape, element_count(name, entry->second.shape));
    entry->second.shape = std::move(shape);
  }

  std::size_t size() const { return entries_.size(); }

  /// All tensors in the order of the file.
  std::vector<PlannedTensor> plan() const {
    std::vector<PlannedTensor> tensors;
    for (const Named* named : in_file_order())
      tensors.push_back({named->first, named->second.dtype, named->second.shape, stored_bytes(*named)});
    return tensors;
  }

  /// Bytes of all tensors, without the header.
  std::size_t data_bytes() const {
    std::size_t bytes = 0;
    for (const Named& named : entries_) bytes += stored_bytes(named);
    return bytes;
  }

  /// Writes the file, entirely or not at all. CancelledError if the callback says so; then there is no file either.
  void write(const std::string& path, const WriteCallback& callback = {}) const {
    write_file_atomically(path, [&](FileSink& sink) { write_to(sink, callback); });
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
    std::vector<index_t> shape;
    std::vector<TensorPiece> pieces;
    std::function<std::vector<float>()> values;  ///< instead of pieces
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

  static void expect_count(const std::string& name, const std::vector<index_t>& shape, index_t values) {
    if (element_count(name, shape) != values)
      throw ValueError(message("[safetensors] tensor \"", name, "\" has ", values, " values, but its shape is ",
                               detail::extents_text(shape.data(), static_cast<int>(shape.size()))));
  }

  void insert(const std::string& name, Entry entry) {
    if (name == "__metadata__") throw ValueError("[safetensors] a tensor cannot be named \"__metadata__\"");
    element_count(name, entry.shape);  // or the shape is impossible
    index_t given = 0;
    for (const TensorPiece& piece : entry.pieces) {
      if (piece.count != 0 && piece.data == nullptr)
        throw ValueError(message("[safetensors] tensor \"", name, "\" has no data"));
      given += piece.count;
    }
    if (!entry.values) expect_count(name, entry.shape, given);
    if (!entries_.emplace(name, std::move(entry)).second)
      throw ValueError(message("[safetensors] tensor \"", name, "\" was added twice"));
  }

  static std::size_t stored_bytes(const Named& named) {
    return static_cast<std::size_t>(element_count(named.first, named.second.shape)) * dtype_size(named.second.dtype);
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
      const std::size_t bytes = stored_bytes(*named);
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
  void write_to(Sink& sink, const WriteCallback& callback) const {
    const std::vector<const Named*> order = in_file_order();
    const std::string text = header(order);
    unsigned char length[8];
    for (int i = 0; i < 8; ++i) length[i] = static_cast<unsigned char>(std::uint64_t{text.size()} >> (8 * i));
    sink.write(length, sizeof length);
    sink.write(text.data(), text.size());
    std::vector<std::byte> converted;
    std::size_t done = 0;
    const std::size_t total = data_bytes();
    for (const Named* named : order) {
      const Entry& entry = named->second;
      for (const TensorPiece& piece : entry.pieces) write_piece(sink, piece, entry.dtype, converted);
      if (entry.values) {
        const std::vector<float> values = entry.values();
        expect_count(named->first, entry.shape, static_cast<index_t>(values.size()));
        write_piece(sink, {DType::F32, values.data(), static_cast<index_t>(values.size())}, entry.dtype, converted);
      }
      done += stored_bytes(*named);
      if (callback && !callback(named->first, done, total))
        throw CancelledError(message("[safetensors] cancelled after ", done, " bytes of data; nothing was kept"));
    }
  }

  /// `converted` is scratch, kept from piece to piece.
  template <class Sink>
  static void write_piece(Sink& sink, const TensorPiece& piece, DType target, std::vector<std::byte>& converted) {
    if (piece.count == 0) return;
    if (piece.dtype == target) {
      sink.write(piece.data, static_cast<std::size_t>(piece.count) * dtype_size(target));
      return;
    }
    constexpr index_t step = 1 << 16;
    converted.resize(step * 8);
    for (index_t first = 0; first < piece.count; first += step) {
      const index_t now = std::min(step, piece.count - first);
      const auto* const source =
          static_cast<const std::byte*>(piece.data) + static_cast<std::size_t>(first) * dtype_size(piece.dtype);
      convert(piece.dtype, source, target, converted.data(), now);
      sink.write(converted.data(), static_cast<std::size_t>(now) * dtype_size(target));
    }
  }

  std::map<std::string, Entry> entries_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace lpo::inline LPO_ABI
