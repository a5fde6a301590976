// SPDX-License-Identifier: MIT
// Reading a model's weights from files and writing them: names, layouts and types are matched, all or nothing.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <lpo/io/checkpoint.hpp>
#include <lpo/io/safetensors_writer.hpp>
#include <lpo/nn/linear.hpp>
#include <lpo/nn/parameter_store.hpp>

namespace lpo::inline LPO_ABI {

/// Which weights of a store are meant: LoRA weights live in files of their own.
enum class ParameterPart { base, lora, all };

/// How the names in a store relate to those in a file.
struct ParameterNames {
  /// Only weights under this prefix are read or written: "unet" for `store.add("unet", unet)`; "" for all.
  std::string model_prefix = {};
  /// What stands for it in the file: "" in a component's own file, "model.diffusion_model" and so on in joint ones.
  std::string file_prefix = {};
  ParameterPart part = ParameterPart::base;
  /// Another name that some files use for a weight (both without prefix), or "".
  std::function<std::string(const std::string&)> legacy = {};
};

/// What a file had besides the weights that were read.
struct LoadReport {
  std::size_t loaded = 0;           ///< number of weights read
  std::vector<std::string> unused;  ///< keys under `file_prefix` that no weight asked for, sorted
};

namespace detail {

/// "" stays "", "unet" becomes "unet."; a prefix that ends in a dot or a slash is whole already.
inline std::string dotted(const std::string& prefix) {
  return prefix.empty() || prefix.back() == '.' || prefix.back() == '/' ? prefix : prefix + ".";
}

template <class T, class Device>
struct NamedParameter {
  std::string name;  ///< without prefix
  AnyParameter<T, Device>* parameter;
};

template <class T, class Device>
void expect_memory(const std::string& name, const AnyParameter<T, Device>& parameter) {
  if (parameter.data() == nullptr)
    throw ValueError(message("[parameters] \"", name, "\" has no memory yet; call the store's allocate() first"));
}

template <class T, class Device>
std::vector<NamedParameter<T, Device>> select_parameters(const ParameterStore<T, Device>& store,
                                                         const ParameterNames& names) {
  std::vector<NamedParameter<T, Device>> selected;
  const std::string prefix = dotted(names.model_prefix);
  for (const auto& entry : store.entries()) {
    if (!entry.name.starts_with(prefix)) continue;
    if (names.part != ParameterPart::all && is_lora_name(entry.name) != (names.part == ParameterPart::lora)) continue;
    expect_memory(entry.name, *entry.parameter);
    selected.push_back({entry.name.substr(prefix.size()), entry.parameter});
  }
  if (selected.empty())
    throw ValueError(message("[parameters] the store has no ", names.part == ParameterPart::lora ? "LoRA " : "",
                             "weights under \"", names.model_prefix, "\""));
  return selected;
}

/// The shape that a file gives a weight: convolutions are OIHW there.
template <class T, class Device>
std::vector<index_t> file_shape(const AnyParameter<T, Device>& p) {
  if (p.layout == WeightLayout::convolution) return {p.extents[0], p.extents[3], p.extents[1], p.extents[2]};
  return std::vector<index_t>(p.extents, p.extents + p.rank);
}

/// `from` [rows, columns] -> `to` [columns, rows]. Tiles of rows stay in the nearest cache while they are read across.
template <class T>
void transpose_matrix(const T* from, T* to, index_t rows, index_t columns) {
  constexpr index_t tile = 64;
  for (index_t begin = 0; begin < rows; begin += tile) {
    const index_t end = std::min(rows, begin + tile);
    for (index_t column = 0; column < columns; ++column)
      for (index_t row = begin; row < end; ++row) to[column * rows + row] = from[row * columns + column];
  }
}

/// OIHW -> OHWI, or back when `to_file`.
template <class T>
void permute_convolution(const T* from, T* to, const index_t* ohwi, bool to_file) {
  const index_t area = ohwi[1] * ohwi[2], channels = ohwi[3], filter = area * channels;
  for (index_t at = 0; at < ohwi[0] * filter; at += filter)
    transpose_matrix(from + at, to + at, to_file ? area : channels, to_file ? channels : area);
}

template <class T, class Device>
bool needs_permutation(const AnyParameter<T, Device>& p) {
  return p.layout == WeightLayout::convolution && p.extents[1] * p.extents[2] != 1 && p.extents[3] != 1;
}

/// Weights with the key of each in a file that was found to fit.
template <class T, class Device>
struct MatchedParameters {
  std::vector<NamedParameter<T, Device>> parameters;
  std::vector<std::string> keys;
};

/// Reads a weight whose shape fits into the layout of memory. Sources that read parts of a tensor give convolutions
/// filter by filter, so that there is no second copy of them; those that map files give the pages back that were read.
template <class T, class Device, class Source>
void read_parameter(const Source& source, const std::string& key, AnyParameter<T, Device>& p) {
  constexpr bool in_parts = requires(T* to) { source.read_part(key, index_t{}, index_t{}, to); };
  std::vector<T> staged;  // weights of other devices pass through host memory, one at a time
  T* to = p.data();
  if constexpr (!is_host_device<Device>) {
    staged.resize(static_cast<std::size_t>(p.size()));
    to = staged.data();
  }
  if (needs_permutation(p) && p.size() > 0) {
    const index_t step = in_parts ? p.size() / p.extents[0] : p.size();
    const index_t ohwi[4] = {in_parts ? 1 : p.extents[0], p.extents[1], p.extents[2], p.extents[3]};
    std::vector<T> oihw(static_cast<std::size_t>(step));
    for (index_t at = 0; at < p.size(); at += step) {
      if constexpr (in_parts)
        source.read_part(key, at, step, oihw.data());
      else
        source.read(key, oihw.data(), step);
      permute_convolution(static_cast<const T*>(oihw.data()), to + at, ohwi, false);
    }
  } else {
    source.read(key, to, p.size());
  }
  if constexpr (!is_host_device<Device>) DeviceMemory<Device>::copy_from_host(p.data(), to, staged.size() * sizeof(T));
  if constexpr (requires { source.release_pages(key); }) source.release_pages(key);
}

/// Finds every weight of `parameters` in `source` and compares shape and type. One FileError lists all that is wrong.
template <class T, class Device, class Source>
MatchedParameters<T, Device> match_parameters(std::vector<NamedParameter<T, Device>> parameters, const Source& source,
                                              const ParameterNames& names = {}) {
  MatchedParameters<T, Device> matched{std::move(parameters), {}};
  const std::string prefix = dotted(names.file_prefix);
  std::vector<std::string> missing, mismatched;
  for (const auto& [name, parameter] : matched.parameters) {
    std::string key = prefix + name;
    if (!source.contains(key) && names.legacy) {
      const std::string other = names.legacy(name);
      if (!other.empty() && source.contains(prefix + other)) key = prefix + other;
    }
    matched.keys.push_back(key);
    if (!source.contains(key)) {
      missing.push_back("\"" + key + "\"");
      continue;
    }
    const auto expected = file_shape(*parameter);
    const TensorInfo& found = source.info(key);
    if (without_unit_kernel(found.shape) != without_unit_kernel(expected))
      mismatched.push_back(message("\"", key, "\" is ", shape_text(found.shape), ", expected ", shape_text(expected)));
    else if (!is_floating(found.dtype))
      mismatched.push_back(
          message("\"", key, "\" holds ", dtype_name(found.dtype), ", expected numbers with a fraction"));
  }
  if (!missing.empty() || !mismatched.empty()) {
    std::string text = message("[load_parameters] ", source.path(), " does not fit the model:");
    if (!missing.empty()) {
      const std::string first = missing.front().substr(1, missing.front().size() - 2);
      text += message(" ", missing.size(), missing.size() == 1 ? " weight is" : " weights are",
                      " missing: ", listed(missing), near_keys(first, source.keys()));
    }
    if (!mismatched.empty())
      text += message(missing.empty() ? " " : "; ", mismatched.size(), mismatched.size() == 1 ? " has" : " have",
                      " another shape or type: ", listed(mismatched));
    throw FileError(text);
  }
  return matched;
}

/// Reads the matched weights, converting type and layout. The report lists the other keys under `file_prefix`.
template <class T, class Device, class Source>
LoadReport read_parameters(const MatchedParameters<T, Device>& matched, const Source& source,
                           const ParameterNames& names = {}) {
  LoadReport report;
  for (std::size_t i = 0; i < matched.keys.size(); ++i) {
    read_parameter(source, matched.keys[i], *matched.parameters[i].parameter);
    ++report.loaded;
  }
  const std::set<std::string> read(matched.keys.begin(), matched.keys.end());
  const std::string prefix = dotted(names.file_prefix);
  for (const std::string& key : source.keys())
    if (key.starts_with(prefix) && !read.contains(key)) report.unused.push_back(key);
  return report;
}

}  // namespace detail

/// Reads every selected weight of `store` from `source` (TensorTable or Checkpoint), converting type and layout. One
/// FileError lists all missing keys and all wrong shapes; then nothing was changed. Keys of the file that no weight
/// wants are no error: they come back in the report.
template <class T, class Device, class Source>
LoadReport load_parameters(const ParameterStore<T, Device>& store, const Source& source,
                           const ParameterNames& names = {}) {
  const auto matched = detail::match_parameters(detail::select_parameters(store, names), source, names);
  return detail::read_parameters(matched, source, names);
}

/// Adds the selected weights to a writer as `dtype` (F32, F16, BF16 …), convolutions as OIHW. The store must live until
/// the writer has written.
template <class T, class Device>
void add_parameters(SafetensorsWriter& writer, const ParameterStore<T, Device>& store, DType dtype,
                    const ParameterNames& names = {}) {
  if (!is_floating(dtype))
    throw ValueError(message("[parameters] weights cannot be stored as ", dtype_name(dtype), "; use F32, F16 or BF16"));
  const std::string prefix = detail::dotted(names.file_prefix);
  for (const auto& [name, parameter] : detail::select_parameters(store, names)) {
    const T* values = parameter->data();
    std::vector<T> host;
    if constexpr (!is_host_device<Device>) {
      host.resize(static_cast<std::size_t>(parameter->size()));
      DeviceMemory<Device>::copy_to_host(host.data(), values, host.size() * sizeof(T));
      values = host.data();
    }
    if (detail::needs_permutation(*parameter)) {
      std::vector<T> oihw(static_cast<std::size_t>(parameter->size()));
      detail::permute_convolution(values, oihw.data(), parameter->extents, true);
      writer.add_owned(prefix + name, dtype, detail::file_shape(*parameter), std::move(oihw));
    } else if (!host.empty()) {
      writer.add_owned(prefix + name, dtype, detail::file_shape(*parameter), std::move(host));
    } else {
      writer.add_converted(prefix + name, dtype, detail::file_shape(*parameter), values);
    }
  }
}

/// Writes the selected weights to one safetensors file, entirely or not at all: in double if they are, else in float, unless
/// `dtype` says otherwise. `names` leaves LoRA weights out unless its `part` asks for them.
template <class T, class Device>
void save_parameters(const std::string& path, const ParameterStore<T, Device>& store,
                     DType dtype = std::is_same_v<T, double> ? DType::F64 : DType::F32,
                     const ParameterNames& names = {},
                     const std::map<std::string, std::string>& metadata = {{"format", "pt"}}) {
  SafetensorsWriter writer;
  for (const auto& [key, value] : metadata) writer.set_metadata(key, value);
  add_parameters(writer, store, dtype, names);
  writer.write(path);
}

}  // namespace lpo::inline LPO_ABI
