// SPDX-License-Identifier: MIT
// Merging a LoRA into the files of a checkpoint, tensor by tensor, for any architecture: only names and shapes matter.
#pragma once

#include <cmath>
#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include <lpo/base/scalar.hpp>
#include <lpo/io/lora_base.hpp>
#include <lpo/io/safetensors_writer.hpp>

namespace lpo::inline LPO_ABI {

struct LoraMergeOptions {
  double strength = 1.0;            ///< W += strength * alpha / rank * up * down
  std::optional<DType> dtype = {};  ///< of all weights; nothing keeps the type of each
  WriteCallback progress = {};      ///< after every tensor; false stops the work and leaves no file
  bool allow_non_finite = false;    ///< merge weights and matrices although they hold a NaN or an infinity
};

namespace detail {

/// W [out, in] += scale * up [out, rank] * down [rank, in].
template <class T>
void add_low_rank(T* weight, const T* up, const T* down, index_t out, index_t rank, index_t in, double scale) {
  using Value = compute_t<T>;
  std::vector<Value> row(static_cast<std::size_t>(in));
  for (index_t o = 0; o < out; ++o) {
    for (index_t i = 0; i < in; ++i) row[static_cast<std::size_t>(i)] = static_cast<Value>(weight[o * in + i]);
    for (index_t r = 0; r < rank; ++r) {
      const Value factor = static_cast<Value>(scale) * static_cast<Value>(up[o * rank + r]);
      const T* line = down + r * in;
      for (index_t i = 0; i < in; ++i) row[static_cast<std::size_t>(i)] += factor * static_cast<Value>(line[i]);
    }
    for (index_t i = 0; i < in; ++i) weight[o * in + i] = static_cast<T>(row[static_cast<std::size_t>(i)]);
  }
}

/// FileError if values of `key` in a file are NaN or infinite.
inline void expect_finite_values(const std::vector<float>& values, const std::string& path, const std::string& key) {
  for (const float value : values)
    if (!std::isfinite(value))
      throw FileError(message("[lora] ", path, ": \"", key, "\" holds ", std::isnan(value) ? "NaN" : "an infinity",
                              "; such a model draws nothing"));
}

/// FileError that says what does not fit, if anything does not.
inline void require_fit(const LoraFile& file, const std::vector<BaseComponent>& base, const LoraFit& fit) {
  if (!fit.mismatched.empty())
    throw FileError(message("[lora] ", file.file().path(), " does not fit ", base.front().weights.path(), ": ",
                            listed(fit.mismatched)));
  if (!fit.targets.empty()) return;
  std::vector<std::string> parts;
  for (const BaseComponent& part : base) parts.push_back(part.name);
  const auto* first = file.adapters().front();
  throw FileError(message("[lora] ", file.file().path(), ": none of its ", file.adapters().size(),
                          " adapters belongs to ", base.front().weights.path(), "; the file has for example \"",
                          first->path, "\" of ", first->component, ", the base the parts ", listed(parts)));
}

}  // namespace detail

/// Writes the weights of one part with the LoRA's differences added, as one safetensors file. Sums are float32, rounded
/// once to the type that is written. `fit` comes from `fit_lora`; FileError when shapes differ, nothing matches at all,
/// or the part or the LoRA's matrices for it hold NaN or an infinity (options.allow_non_finite).
inline void merge_lora_file(const LoraFile& file, const std::vector<BaseComponent>& base, const LoraFit& fit,
                            const BaseComponent& part, const std::string& path, const LoraMergeOptions& options = {}) {
  file.require_plain();
  detail::require_fit(file, base, fit);
  if (options.dtype && !is_floating(*options.dtype))
    throw ValueError(
        message("[lora] weights cannot be stored as ", dtype_name(*options.dtype), "; use F32, F16 or BF16"));
  std::map<std::string, const LoraFile::Adapter*> adapter_of;
  for (const LoraTarget& target : fit.targets)
    if (target.part == &part) adapter_of[target.key] = target.adapter;

  if (!options.allow_non_finite) {
    for (const auto& [key, adapter] : adapter_of) {
      detail::expect_finite_values({static_cast<float>(adapter->scale())}, file.file().path(), adapter->alpha_key);
      for (const std::string* matrix : {&adapter->down, &adapter->up})
        detail::expect_finite_values(file.file().read_vector<float>(*matrix), file.file().path(), *matrix);
    }
    for (const std::string& key : part.weights.keys())
      if (is_floating(part.weights.info(key).dtype))
        detail::expect_finite_values(part.weights.read_vector<float>(key), part.weights.path(), key);
  }
  SafetensorsWriter writer;
  for (const auto& [key, value] : part.weights.metadata()) writer.set_metadata(key, value);
  writer.set_metadata("format", "pt");
  for (const std::string& key : part.weights.keys()) {
    const TensorInfo& weight = part.weights.info(key);
    const DType target = options.dtype && is_floating(weight.dtype) ? *options.dtype : weight.dtype;
    const auto adapter = adapter_of.find(key);
    if (adapter == adapter_of.end()) {
      writer.add_stored(key, target, weight.dtype, weight.shape, weight.data);
      continue;
    }
    writer.add_computed(key, target, weight.shape, [&file, &part, key, source = adapter->second, &options] {
      auto values = part.weights.read_vector<float>(key);
      const auto up = file.file().read_vector<float>(source->up), down = file.file().read_vector<float>(source->down);
      const index_t out = part.weights.info(key).shape[0], in = static_cast<index_t>(values.size()) / out;
      detail::add_low_rank(values.data(), up.data(), down.data(), out, source->rank, in,
                           options.strength * source->scale());
      return values;
    });
  }
  writer.write(path, options.progress);
}

}  // namespace lpo::inline LPO_ABI
