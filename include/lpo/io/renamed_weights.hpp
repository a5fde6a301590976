// SPDX-License-Identifier: MIT
// RenamedWeights: a component of a single-file checkpoint under diffusers' names; and the way back, into a writer.
#pragma once

#include <cstddef>
#include <cstring>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lpo/io/ldm_names.hpp>
#include <lpo/io/safetensors_writer.hpp>
#include <lpo/io/tensor_table.hpp>

namespace lpo::inline LPO_ABI {

/// Tells which keys (without prefix) a component may have besides its weights.
using KeyFilter = std::function<bool(std::string_view)>;

namespace detail {

/// One FileError for all that a component lacks and all that it should not have.
inline void expect_all_weights(const TensorTable& source, const std::string& prefix,
                               const std::vector<std::string>& missing, const std::vector<std::string>& foreign) {
  if (missing.empty() && foreign.empty()) return;
  std::string text = message("[checkpoint] ", source.path(), " does not fit the architecture:");
  if (!missing.empty())
    text += message(" ", missing.size(), missing.size() == 1 ? " tensor is" : " tensors are",
                    " missing: ", listed(missing));
  if (!foreign.empty())
    text += message(missing.empty() ? " " : "; ", foreign.size(), foreign.size() == 1 ? " tensor" : " tensors",
                    prefix.empty() ? "" : " under \"" + prefix + "\"", foreign.size() == 1 ? " is" : " are",
                    " not part of it: ", listed(foreign));
  throw FileError(text);
}

/// [a, b] -> [b, a], whatever the element type.
inline std::shared_ptr<const std::vector<std::byte>> transposed_bytes(const TensorInfo& matrix) {
  auto copy = std::make_shared<std::vector<std::byte>>(matrix.bytes);
  const auto rows = static_cast<std::size_t>(matrix.shape[0]), columns = static_cast<std::size_t>(matrix.shape[1]);
  const std::size_t size = dtype_size(matrix.dtype);
  for (std::size_t r = 0; r < rows; ++r)
    for (std::size_t c = 0; c < columns; ++c)
      std::memcpy(copy->data() + (c * rows + r) * size, matrix.data + (r * columns + c) * size, size);
  return copy;
}

}  // namespace detail

/// Weights of a file under other names. They point into the file, which they keep mapped; only transposed matrices are
/// copied.
class RenamedWeights : public TensorTable {
 public:
  /// `weights` without `prefix`, which their stored names have in `source`. FileError lists the weights that are
  /// missing and the keys under the prefix that neither belong to a weight nor pass `ignored`.
  RenamedWeights(const TensorTable& source, const std::string& prefix, const std::vector<StoredWeight>& weights,
                 const KeyFilter& ignored = {})
      : TensorTable("checkpoint", source.path()) {
    keep(source);
    std::vector<std::string> missing, foreign;
    std::set<std::string> expected;
    for (const StoredWeight& weight : weights) {
      const std::string key = prefix + weight.stored;
      const bool first = expected.insert(key).second;
      if (source.contains(key))
        tensors_.emplace(weight.name, unpacked(key, source.info(key), weight.packing));
      else if (first)
        missing.push_back(key);
    }
    for (const std::string& key : source.keys())
      if (key.starts_with(prefix) && !expected.contains(key) &&
          !(ignored && ignored(std::string_view(key).substr(prefix.size()))))
        foreign.push_back(key);
    detail::expect_all_weights(source, prefix, missing, foreign);
  }

 private:
  TensorInfo unpacked(const std::string& key, const TensorInfo& stored, WeightPacking packing) {
    TensorInfo weight = stored;
    const auto misfit = [&](const char* expected) {
      fail("tensor \"", key, "\" has shape ", shape_text(stored.shape), ", expected ", expected);
    };
    switch (packing) {
      case WeightPacking::whole:
        break;
      case WeightPacking::pointwise:  // some files already hold the matrix
        while (weight.shape.size() > 2 && weight.shape.back() == 1) weight.shape.pop_back();
        if (weight.shape.size() != 2) misfit("a matrix or a 1x1 convolution");
        break;
      case WeightPacking::transposed: {
        if (weight.shape.size() != 2) misfit("a matrix");
        const auto copy = detail::transposed_bytes(stored);
        weight.data = copy->data();
        keep(copy);
        std::swap(weight.shape[0], weight.shape[1]);
        break;
      }
      default: {
        if (weight.shape.empty() || weight.shape[0] % 3 != 0) misfit("three equal parts along the first axis");
        weight.shape[0] /= 3;
        weight.bytes /= 3;
        const auto part = static_cast<std::size_t>(packing) - static_cast<std::size_t>(WeightPacking::query);
        weight.data += part * weight.bytes;
      }
    }
    return weight;
  }
};

/// Adds all weights of `source` to a writer under their own names, as `dtype` or else in the type they have. The source
/// must live until the writer has written.
inline void add_weights(SafetensorsWriter& writer, const TensorTable& source, std::optional<DType> dtype = {}) {
  for (const std::string& name : source.keys()) {
    const TensorInfo& info = source.info(name);
    const DType target = dtype && is_floating(info.dtype) ? *dtype : info.dtype;
    writer.add_pieces(name, target, info.shape, {{info.dtype, info.data, info.count()}});
  }
}

/// Adds the weights of a component, which `source` has under diffusers' names, to a writer as a single file stores
/// them. `legacy` gives another name that older files use for a weight, or "". FileError as for `RenamedWeights`. The
/// source must live until the writer has written.
inline void add_stored_weights(SafetensorsWriter& writer, const TensorTable& source, const std::string& prefix,
                               const std::vector<StoredWeight>& weights, std::optional<DType> dtype = {},
                               const std::function<std::string(const std::string&)>& legacy = {},
                               const KeyFilter& ignored = {}) {
  std::vector<std::string> missing, foreign;
  std::set<std::string> expected;
  std::vector<const TensorInfo*> infos;
  for (const StoredWeight& weight : weights) {
    std::string key = weight.name;
    if (!source.contains(key) && legacy) {
      const std::string other = legacy(key);
      if (!other.empty() && source.contains(other)) key = other;
    }
    expected.insert(key);
    const bool there = source.contains(key);
    infos.push_back(there ? &source.info(key) : nullptr);
    if (!there) missing.push_back(key);
  }
  for (const std::string& key : source.keys())
    if (!expected.contains(key) && !(ignored && ignored(key))) foreign.push_back(key);
  detail::expect_all_weights(source, "", missing, foreign);

  const auto piece_of = [](const TensorInfo& info) { return TensorPiece{info.dtype, info.data, info.count()}; };
  for (std::size_t i = 0; i < weights.size(); ++i) {
    const TensorInfo& info = *infos[i];
    std::vector<index_t> shape = info.shape;
    std::vector<TensorPiece> pieces = {piece_of(info)};
    const auto fail = [&](const TensorInfo& found, const auto&... wanted) {
      throw FileError(message("[checkpoint] ", source.path(), ": tensor \"", weights[i].name, "\" has shape ",
                              shape_text(found.shape), ", expected ", wanted...));
    };
    switch (weights[i].packing) {
      case WeightPacking::whole:
        break;
      case WeightPacking::pointwise:
        if (shape.size() == 2) shape.insert(shape.end(), {1, 1});
        break;
      case WeightPacking::transposed:
        if (shape.size() != 2) fail(info, "a matrix");
        pieces.front().owner = detail::transposed_bytes(info);
        pieces.front().data = static_cast<const std::vector<std::byte>*>(pieces.front().owner.get())->data();
        std::swap(shape[0], shape[1]);
        break;
      default: {  // the three parts of a joined tensor follow each other
        if (shape.empty()) fail(info, "a matrix or vector");
        for (int part = 1; part < 3; ++part) {
          const TensorInfo& next = *infos[++i];
          if (next.shape != shape) fail(next, shape_text(shape), ", the shape of the query projection");
          pieces.push_back(piece_of(next));
        }
        shape[0] *= 3;
      }
    }
    const DType target = dtype && is_floating(info.dtype) ? *dtype : info.dtype;
    writer.add_pieces(prefix + weights[i].stored, target, std::move(shape), std::move(pieces));
  }
}

}  // namespace lpo::inline LPO_ABI
