// SPDX-License-Identifier: MIT
// TorchWriter: writes small dictionaries of tensors and numbers as torch.load reads them, weights_only or not.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>
#include <lpo/io/dtype.hpp>
#include <lpo/io/file.hpp>
#include <lpo/io/torch_types.hpp>
#include <lpo/io/zip_writer.hpp>

namespace lpo::inline LPO_ABI {

/// A dictionary whose values are tensors, numbers, or dictionaries of those, one level deep. Everything is held in
/// memory until it is written: this is for heads and adapters, whole models belong in safetensors.
class TorchWriter {
 public:
  /// {group: {name: tensor}}, or {name: tensor} if `group` is empty; values of `From` are stored as `dtype`.
  template <class From>
  void add(const std::string& group, const std::string& name, DType dtype, const std::vector<index_t>& shape,
           const From* values) {
    const std::string_view storage = detail::torch_storage_of(dtype);
    if (storage.empty())
      throw ValueError(message("[torch] tensor \"", name, "\" cannot be stored as ", dtype_name(dtype),
                               ", for which torch has no storage class; use F32, F16 or BF16"));
    index_t count = 1;
    for (const index_t extent : shape) count *= extent;
    std::string data(static_cast<std::size_t>(count) * dtype_size(dtype), '\0');
    convert_to(dtype, values, data.data(), count);
    insert(group, name, tensor_pickle(storage, shape, count, std::to_string(storages_.size())));
    storages_.push_back(std::move(data));
  }

  /// {group: {name: number}}: a Python float.
  void add_number(const std::string& group, const std::string& name, double value) {
    std::string code = "G";
    const auto bits = std::bit_cast<std::uint64_t>(value);
    for (int i = 7; i >= 0; --i) code += static_cast<char>((bits >> (8 * i)) & 0xff);
    insert(group, name, code);
  }

  /// The file's bytes.
  std::string bytes() const {
    std::string pickle = "\x80\x02}(";
    for (const auto& [group, items] : groups_) {
      if (!group.empty()) pickle += text(group) + "}(";
      for (const auto& [name, code] : items) pickle += text(name) + code;
      if (!group.empty()) pickle += "u";
    }
    pickle += "u.";
    ZipWriter zip;
    zip.add("archive/data.pkl", pickle);
    zip.add("archive/byteorder", "little");
    for (std::size_t i = 0; i < storages_.size(); ++i) zip.add("archive/data/" + std::to_string(i), storages_[i]);
    zip.add("archive/version", "3\n");
    return zip.bytes();
  }

  /// Writes the file, entirely or not at all.
  void write(const std::string& path) const { write_text_file(path, bytes()); }

 private:
  void insert(const std::string& group, const std::string& name, std::string code) {
    if (!groups_[group].emplace(name, std::move(code)).second)
      throw ValueError(message("[torch] \"", name, "\" was added twice"));
  }

  static std::string text(std::string_view value) {
    std::string code = "X";
    detail::append_number(code, value.size(), 4);
    return code += value;
  }

  static std::string integer(index_t value) {
    std::string code = "\x8a\x08";
    detail::append_number(code, static_cast<std::uint64_t>(value), 8);
    return code;
  }

  /// GLOBAL takes module and name on lines of their own.
  static std::string global(std::string_view full) {
    const std::size_t dot = full.rfind('.');
    return "c" + std::string(full.substr(0, dot)) + "\n" + std::string(full.substr(dot + 1)) + "\n";
  }

  /// _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks)
  static std::string tensor_pickle(std::string_view storage, const std::vector<index_t>& shape, index_t count,
                                   const std::string& key) {
    std::string sizes = "(", strides = "(";
    index_t stride = 1;
    for (const index_t extent : shape) stride *= extent > 0 ? extent : 1;
    for (const index_t extent : shape) {
      stride /= extent > 0 ? extent : 1;
      sizes += integer(extent);
      strides += integer(stride);
    }
    return global(detail::torch_tensor) + "((" + text("storage") + global(storage) + text(key) + text("cpu") +
           integer(count) + "tQ" + integer(0) + sizes + "t" + strides + "t\x89" + global("collections.OrderedDict") +
           ")RtR";
  }

  std::map<std::string, std::map<std::string, std::string>> groups_;  ///< pickle code of every value
  std::vector<std::string> storages_;
};

}  // namespace lpo::inline LPO_ABI
