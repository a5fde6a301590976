// SPDX-License-Identifier: MIT
// LoRA between files and models: read into adapters, write for diffusers, ComfyUI and kohya's tools, merge into
// weights.
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <lpo/io/lora_file.hpp>
#include <lpo/io/lora_merge.hpp>
#include <lpo/io/lora_writer.hpp>
#include <lpo/io/parameters.hpp>
#include <lpo/nn/linear.hpp>

namespace lpo::inline LPO_ABI {

/// What came of reading or merging a LoRA file.
struct LoraReport {
  std::size_t matched = 0;             ///< adapters that found their module
  std::vector<std::string> unmatched;  ///< keys of the file that were not used, sorted
};

namespace detail {

/// An adapter of a model and the weight it adapts.
template <class T, class Device>
struct NamedAdapter {
  std::string path;
  LoraAdapter<T, Device>* lora = nullptr;
  AnyParameter<T, Device>* weight = nullptr;
};

template <class Module>
auto adapters_of(Module& module) {
  using T = typename Module::value_type;
  using Device = typename Module::device;
  struct Visitor : ParameterVisitor<T, Device> {
    std::vector<NamedAdapter<T, Device>> found;
    void parameter(const std::string& name, AnyParameter<T, Device>& p) override {
      if (!found.empty() && name == found.back().path + ".weight") found.back().weight = &p;
    }
    void adapter(const std::string& name, LoraAdapter<T, Device>& lora) override { found.push_back({name, &lora}); }
  } visitor;
  visitor.model("", module);
  return visitor.found;
}

[[noreturn]] LPO_COLD inline void no_adapter_matched(const LoraFile& file, const std::string& component,
                                                     const std::string& example) {
  const auto* first = file.adapters().front();
  throw FileError(message("[lora] ", file.file().path(), ": none of its ", file.adapters().size(),
                          " adapters belongs to the model; the file has for example \"", first->path, "\" of ",
                          first->component, ", the model \"", example, "\" of ", component));
}

inline std::vector<std::string> unmatched_keys(const LoraFile& file, const std::set<const LoraFile::Adapter*>& used) {
  std::vector<std::string> keys = file.unknown_keys();
  for (const auto* adapter : file.adapters())
    if (!used.contains(adapter))
      for (const std::string& key : {adapter->down, adapter->up, adapter->alpha_key})
        if (!key.empty()) keys.push_back(key);
  std::sort(keys.begin(), keys.end());
  return keys;
}

}  // namespace detail

/// Reads a LoRA into a model's adapters, which exist already: call `enable_lora(model, file.rank(), …)` and allocate
/// the store first. Smaller ranks are filled up with zeros, modules that the file does not adapt get B = 0; each
/// adapter's scale becomes the file's. Adapters may be off where the file has none. FileError when nothing matches or shapes
/// differ; then nothing was changed. `Module` names its `value_type` and `device`, as networks of the library do.
template <class Module>
LoraReport load_lora(const LoraFile& file, Module& model, const std::string& component = "unet") {
  using T = typename Module::value_type;
  file.require_plain();
  const auto adapters = detail::adapters_of(model);
  std::vector<const LoraFile::Adapter*> sources;
  std::set<const LoraFile::Adapter*> used;
  std::vector<std::string> wrong;
  const bool all_off = std::all_of(adapters.begin(), adapters.end(), [](const auto& a) { return a.lora->rank == 0; });
  for (const auto& target : adapters) {
    const auto* source = file.find(component, target.path);
    sources.push_back(source);
    if (source == nullptr && target.lora->rank == 0 && !all_off) continue;
    if (target.lora->rank == 0 || target.lora->down.data() == nullptr)
      throw ValueError(message("[lora] the model's adapter of \"", target.path,
                               "\" is off; call enable_lora and allocate the store before loading"));
    if (source == nullptr) continue;
    used.insert(source);
    const auto down = detail::without_unit_kernel(file.file().info(source->down).shape);
    const auto up = detail::without_unit_kernel(file.file().info(source->up).shape);
    if (down.size() != 2 || up.size() != 2 || down[1] != target.lora->in || up[0] != target.lora->out)
      wrong.push_back(message("\"", source->down, "\" ", shape_text(down), " and \"", source->up, "\" ", shape_text(up),
                              " do not adapt ", target.lora->in, " -> ", target.lora->out));
    else if (source->rank > target.lora->rank)
      wrong.push_back(
          message("\"", source->down, "\" has rank ", source->rank, ", the model's adapters ", target.lora->rank));
  }
  if (!wrong.empty())
    throw FileError(message("[lora] ", file.file().path(), " does not fit the model: ", detail::listed(wrong)));
  if (used.empty()) detail::no_adapter_matched(file, component, adapters.empty() ? "" : adapters.front().path);

  for (std::size_t i = 0; i < adapters.size(); ++i) {
    auto& lora = *adapters[i].lora;
    if (lora.rank == 0) continue;
    using Memory = DeviceMemory<typename Module::device>;
    const auto zero = static_cast<T>(compute_t<T>(0));
    std::vector<T> down(static_cast<std::size_t>(lora.down.size()), zero),
        up(static_cast<std::size_t>(lora.up.size()), zero);
    if (sources[i] != nullptr) {
      const auto& source = *sources[i];
      file.file().read(source.down, down.data(), source.rank * lora.in);  // the first rows of A
      const auto narrow = file.file().read_vector<T>(source.up);
      for (index_t o = 0; o < lora.out; ++o)
        for (index_t r = 0; r < source.rank; ++r)
          up[static_cast<std::size_t>(o * lora.rank + r)] = narrow[static_cast<std::size_t>(o * source.rank + r)];
      Memory::copy_from_host(lora.down.data(), down.data(), down.size() * sizeof(T));
      lora.scale = static_cast<float>(source.scale());
    }
    Memory::copy_from_host(lora.up.data(), up.data(), up.size() * sizeof(T));
  }
  return {used.size(), detail::unmatched_keys(file, used)};
}

namespace detail {

/// A weight as a matrix of a file: where it lies, or a copy of what another device holds.
template <class T, class Device>
LoraMatrix lora_matrix_of(const AnyParameter<T, Device>& weight) {
  LoraMatrix matrix{dtype_of<T>(), {weight.extents[0], weight.extents[1]}, weight.data()};
  if constexpr (!is_host_device<Device>) {
    auto copy = std::make_shared<std::vector<T>>(static_cast<std::size_t>(weight.size()));
    DeviceMemory<Device>::copy_to_host(copy->data(), weight.data(), copy->size() * sizeof(T));
    matrix.data = copy->data();
    matrix.owner = std::move(copy);
  }
  return matrix;
}

}  // namespace detail

/// Collects a model's adapters in a writer, as `component`: a file may hold those of a UNet and its text encoders.
/// Projections whose adapters are off are left out. The model must live until the writer has written.
template <class Module>
void add_lora(LoraWriter& writer, Module& model, const std::string& component) {
  const auto adapters = detail::adapters_of(model);
  if (adapters.empty()) throw ValueError("[lora] the model has no projection that can carry an adapter");
  std::set<std::string> on, off;  // last parts of the names
  for (const auto& [path, lora, weight] : adapters) {
    (lora->rank > 0 ? on : off).insert(detail::own_module_name(path));
    if (lora->rank == 0) continue;
    if (lora->down.data() == nullptr)
      throw ValueError("[lora] the model's adapters have no memory; allocate the store before writing");
    writer.add(component, path, static_cast<double>(lora->scale) * static_cast<double>(lora->rank),
               detail::lora_matrix_of(lora->down), detail::lora_matrix_of(lora->up));
  }
  if (on.empty()) throw ValueError("[lora] the model's adapters are off; there is nothing to write");
  const bool whole = std::none_of(on.begin(), on.end(), [&](const std::string& name) { return off.contains(name); });
  if (whole) writer.name_targets_by_suffix();
}

/// Writes a model's adapters as one file, entirely or not at all. `Module` names its `value_type` and `device`.
template <class Module>
void save_lora(const std::string& path, Module& model, const LoraOptions& options = {}) {
  LoraWriter writer(options);
  add_lora(writer, model, options.component);
  writer.write(path);
}

/// W += strength * scale * B A for every adapter of the model, then B = 0: the same function, without the adapters'
/// cost.
template <class Module>
void merge_adapters(Module& model, double strength = 1.0) {
  static_assert(is_host_device<typename Module::device>,
                "lpo merge_adapters: the weights are on another device; merge on the host");
  using T = typename Module::value_type;
  for (const auto& [path, lora, weight] : detail::adapters_of(model)) {
    if (lora->rank == 0) continue;
    detail::add_low_rank(weight->data(), static_cast<const T*>(lora->up.data()),
                         static_cast<const T*>(lora->down.data()), lora->out, lora->rank, lora->in,
                         strength * static_cast<double>(lora->scale));
    std::fill(lora->up.data(), lora->up.data() + lora->up.size(), static_cast<T>(compute_t<T>(0)));
  }
}

namespace detail {

/// Calls `change(values)` with a parameter's numbers in host memory; they are back where they live when this returns.
template <class T, class Device, class Change>
void change_on_host(AnyParameter<T, Device>& parameter, Change&& change) {
  if constexpr (is_host_device<Device>) {
    change(parameter.data());
  } else {
    std::vector<T> values(static_cast<std::size_t>(parameter.size()));
    DeviceMemory<Device>::copy_to_host(values.data(), parameter.data(), values.size() * sizeof(T));
    change(values.data());
    DeviceMemory<Device>::copy_from_host(parameter.data(), values.data(), values.size() * sizeof(T));
  }
}

}  // namespace detail

/// Adds strength * delta W of a file to the base weights that `store` holds under `prefix`, convolutions included; the
/// model needs no adapters. FileError when nothing matches or shapes differ; then nothing was changed.
template <class T, class Device>
LoraReport merge_lora(const LoraFile& file, ParameterStore<T, Device>& store, const std::string& prefix = "unet",
                      double strength = 1.0, const std::string& component = "unet") {
  file.require_plain();
  std::vector<std::pair<const LoraFile::Adapter*, AnyParameter<T, Device>*>> pairs;
  std::set<const LoraFile::Adapter*> used;
  std::vector<std::string> wrong;
  std::string example;
  for (const auto& named : detail::select_parameters(store, {.model_prefix = prefix})) {
    if (!named.name.ends_with(".weight")) continue;
    const std::string path = named.name.substr(0, named.name.size() - 7);
    if (example.empty() || path.ends_with(".to_q")) example = path;
    const auto* source = file.find(component, path);
    if (source == nullptr) continue;
    const auto shape = detail::without_unit_kernel(detail::file_shape(*named.parameter));
    const auto delta = detail::delta_shape(file.file().info(source->down).shape, file.file().info(source->up).shape);
    if (delta != shape)
      wrong.push_back(message("\"", source->down, "\" and \"", source->up, "\" make ", shape_text(delta), ", \"",
                              named.name, "\" is ", shape_text(shape)));
    used.insert(source);
    pairs.emplace_back(source, named.parameter);
  }
  if (!wrong.empty())
    throw FileError(message("[lora] ", file.file().path(), " does not fit the model: ", detail::listed(wrong)));
  if (used.empty()) detail::no_adapter_matched(file, component, example);

  for (const auto& [source, parameter] : pairs) {
    auto down = file.file().read_vector<T>(source->down);
    const auto up = file.file().read_vector<T>(source->up);
    const index_t out = parameter->extents[0], in = parameter->size() / out, rank = source->rank;
    const double scale = strength * source->scale();
    if (detail::needs_permutation(*parameter)) {
      const index_t ohwi[] = {rank, parameter->extents[1], parameter->extents[2], parameter->extents[3]};
      std::vector<T> permuted(down.size());
      detail::permute_convolution(static_cast<const T*>(down.data()), permuted.data(), ohwi, false);
      down = std::move(permuted);
    }
    detail::change_on_host(*parameter, [&](T* weight) {
      detail::add_low_rank(weight, up.data(), static_cast<const T*>(down.data()), out, rank, in, scale);
    });
  }
  return {used.size(), detail::unmatched_keys(file, used)};
}

}  // namespace lpo::inline LPO_ABI
