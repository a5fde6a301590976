// SPDX-License-Identifier: MIT
// WeightTable: the part of a plan that lists the weights of a policy's run, their memory and that of their packed forms.
#pragma once

#include <cstddef>
#include <cstdio>
#include <string>
#include <type_traits>

#include "memory_plan.hpp"
#include "policy.hpp"

namespace examples {

/// Prints a line for each part of a run that keeps its weights as T, and adds them up.
template <class T>
class WeightTable {
 public:
  explicit WeightTable(const DeviceOptions& device)
      : packed_number_(packed_number_bytes(sizeof(T), std::is_same_v<T, lpo::bfloat16>, device)) {
    std::printf("weights        parameters    in memory\n");
  }

  /// The weights of `store` that `counted` names; `forms`: in how many packed forms they stay, if at all.
  template <class Store, class Counted>
  void count(const char* name, const Store& store, const Counted& counted, int forms) {
    double numbers = 0;
    for (const auto& entry : store.entries())
      if (counted(entry.name)) numbers += static_cast<double>(entry.parameter->size());
    const double bytes = static_cast<double>(sizeof(T)) * numbers;
    weights_ += bytes;
    packed_ += forms * numbers * packed_number_;
    std::printf("  %-18s %12.0f %12s\n", name, numbers, memory_text(bytes).c_str());
  }
  /// All of them.
  template <class Store>
  void count(const char* name, const Store& store, int forms) {
    count(name, store, [](const std::string&) { return true; }, forms);
  }

  /// A policy's: gradients pass through its UNet unless a reference stands beside it.
  template <const ModelFamily& F>
  void count(const Policy<F, T>& policy) {
    count("text encoders", policy.store, [](const std::string& name) { return name.starts_with("text_encoder"); }, 1);
    count("unet", policy.store, [](const std::string& name) { return name.starts_with("unet.") && !lpo::is_lora_name(name); },
          policy.reference ? 0 : 2);
    if (policy.reference)
      count("reference", policy.reference_store, 1);
    else
      count("lora", policy.store, lpo::is_lora_name, 0);
  }

  /// The last line, if anything stays packed.
  void print_packed() const {
    if (packed_ > 0) std::printf("  %-31s %12s\n", "packed, at most", memory_text(packed_).c_str());
  }

  /// Of all weights counted, packed forms too.
  double bytes() const { return weights_ + packed_; }

 private:
  double packed_number_, weights_ = 0, packed_ = 0;
};

}  // namespace examples
