// SPDX-License-Identifier: MIT
// ParameterStore: flat buffers for a model's weights and gradients, trainable ones first, so an optimiser step is one kernel.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include <lpo/base/philox.hpp>
#include <lpo/nn/parameter.hpp>

namespace lpo::inline LPO_ABI {

/// Owns the memory of every weight of one or more models.
///
///   ParameterStore<float, Cpu> store;
///   store.add("unet", unet);
///   store.allocate([](const std::string& name) { return name.find("lora_") != std::string::npos; });
///   store.initialize(seed);           // or load a checkpoint
template <class T, class Device>
class ParameterStore {
 public:
  struct Entry {
    std::string name;
    AnyParameter<T, Device>* parameter;
  };

  /// Lists the weights that the module has now, with the adapters that are on. Once for each module: ValueError otherwise.
  template <class Module>
  void add(const std::string& prefix, Module& network) {
    for_each_parameter<T, Device>(
        network,
        [this](const std::string& name, AnyParameter<T, Device>& p) {
          if (std::any_of(entries_.begin(), entries_.end(), [&](const Entry& one) { return one.parameter == &p; }))
            throw ValueError(message("[ParameterStore] \"", name, "\" is here already; add() takes a module once"));
          entries_.push_back({name, &p});
        },
        prefix);
  }

  /// Gives every weight memory. Weights whose name satisfies `trainable` come first, contiguously, and get gradients.
  void allocate(const std::function<bool(const std::string&)>& trainable) {
    index_t total = 0, train = 0;
    for (const Entry& e : entries_) {
      e.parameter->slot.requires_gradient = trainable(e.name);
      (e.parameter->trainable() ? train : total) += padded(e.parameter->size());
    }
    total += train;
    trainable_count_ = train;
    values_ = Tensor<T, 1, Device>::zeros(Extents<1>{total});
    gradients_ = Tensor<T, 1, Device>::zeros(Extents<1>{train});
    index_t at_trainable = 0, at_frozen = train;
    for (const Entry& e : entries_) {
      AnyParameter<T, Device>& p = *e.parameter;
      index_t& at = p.trainable() ? at_trainable : at_frozen;
      p.slot.data = reinterpret_cast<std::byte*>(values_.data() + at);
      p.slot.bytes = static_cast<std::size_t>(p.size()) * sizeof(T);
      p.slot.gradient = p.trainable() ? reinterpret_cast<std::byte*>(gradients_.data() + at) : nullptr;
      at += padded(p.size());
    }
  }
  void allocate_all_trainable() {
    allocate([](const std::string&) { return true; });
  }
  void allocate_frozen() {
    allocate([](const std::string&) { return false; });
  }

  /// Draws starting values, of all weights or of those whose name satisfies `which`; weight number i uses Philox
  /// operation i, so one model's start does not depend on another's.
  void initialize(std::uint64_t seed, const std::function<bool(const std::string&)>& which = {}) {
    for (std::size_t i = 0; i < entries_.size(); ++i)
      if (!which || which(entries_[i].name)) initialize(*entries_[i].parameter, seed, static_cast<std::uint32_t>(i));
  }

  /// Starts a new accumulation: the next gradient writers store.
  void reset_gradients() {
    for (const Entry& e : entries_) e.parameter->slot.written = false;
  }
  /// Call after backward and before the optimiser: weights that no gradient reached get zeros.
  void finish_gradients() {
    for (const Entry& e : entries_) {
      Slot& slot = e.parameter->slot;
      if (slot.requires_gradient && !slot.written) DeviceMemory<Device>::fill_zero(slot.gradient, slot.bytes);
    }
  }

  const std::vector<Entry>& entries() const { return entries_; }
  AnyParameter<T, Device>* find(const std::string& name) const {
    for (const Entry& e : entries_)
      if (e.name == name) return e.parameter;
    return nullptr;
  }

  /// The trainable weights and their gradients as flat buffers (padding between weights is zero and stays zero).
  index_t trainable_size() const { return trainable_count_; }
  T* trainable_values() { return values_.data(); }
  T* trainable_gradients() { return gradients_.data(); }
  /// The others.
  index_t frozen_size() const { return values_.size() - trainable_count_; }
  T* frozen_values() { return values_.data() + trainable_count_; }
  std::span<T> values() { return values_.span(); }

  /// Number of weights, without padding.
  index_t parameter_count(bool trainable_only = false) const {
    index_t count = 0;
    for (const Entry& e : entries_)
      if (!trainable_only || e.parameter->trainable()) count += e.parameter->size();
    return count;
  }

 private:
  static index_t padded(index_t size) {
    constexpr index_t step = static_cast<index_t>(memory_alignment / sizeof(T));
    return (size + step - 1) / step * step;
  }

  static void initialize(AnyParameter<T, Device>& p, std::uint64_t seed, std::uint32_t operation) {
    if (p.data() == nullptr) throw ValueError("[ParameterStore] initialize() comes after allocate(), which gives weights memory");
    using Kind = Initialization::Kind;
    std::vector<T> values(static_cast<std::size_t>(p.size()));
    const auto store = [&](index_t i, float value) {
      values[static_cast<std::size_t>(i)] = static_cast<T>(static_cast<compute_t<T>>(value));
    };
    RandomStream random(seed, operation, 0);
    for (index_t i = 0; i < p.size(); ++i) {
      switch (p.initialization.kind) {
        case Kind::zeros: store(i, 0.0f); break;
        case Kind::ones: store(i, 1.0f); break;
        case Kind::constant: store(i, p.initialization.scale); break;
        case Kind::uniform: store(i, p.initialization.scale * (2.0f * static_cast<float>(random.uniform()) - 1.0f)); break;
        case Kind::normal: store(i, p.initialization.scale * static_cast<float>(random.normal())); break;
      }
    }
    DeviceMemory<Device>::copy_from_host(p.data(), values.data(), values.size() * sizeof(T));
  }

  std::vector<Entry> entries_;
  Tensor<T, 1, Device> values_, gradients_;
  index_t trainable_count_ = 0;
};

}  // namespace lpo::inline LPO_ABI
