// SPDX-License-Identifier: MIT
// FiniteGuard: decides about steps whose gradients are not finite: leave out a few, stop at many, and say where it
// began.
#pragma once

#include <cmath>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <lpo/io/file.hpp>
#include <lpo/io/json.hpp>
#include <lpo/nn/parameter_store.hpp>
#include <lpo/train/training_checkpoint.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// Whether an array of the device holds a NaN or an infinity; `values` is room for a copy.
template <class Device, class T>
bool holds_non_finite(const T* data, index_t count, std::vector<T>& values) {
  values.resize(static_cast<std::size_t>(count));
  DeviceMemory<Device>::copy_to_host(values.data(), data, values.size() * sizeof(T));
  for (const T& value : values)
    if (!std::isfinite(static_cast<double>(static_cast<compute_t<T>>(value)))) return true;
  return false;
}

}  // namespace detail

/// The names of trainable weights whose gradients hold a NaN or an infinity.
template <class T, class Device>
std::vector<std::string> non_finite_gradients(const ParameterStore<T, Device>& store) {
  std::vector<std::string> names;
  std::vector<T> values;
  for (const auto& entry : store.entries()) {
    if (!entry.parameter->trainable()) continue;
    if (detail::holds_non_finite<Device>(entry.parameter->gradient(), entry.parameter->size(), values))
      names.push_back(entry.name);
  }
  return names;
}

/// The name of the first weight that holds a NaN or an infinity, or nothing.
template <class T, class Device>
std::string first_non_finite_weight(const ParameterStore<T, Device>& store, bool trainable_only = false) {
  std::vector<T> values;
  for (const auto& entry : store.entries()) {
    if (trainable_only && !entry.parameter->trainable()) continue;
    if (detail::holds_non_finite<Device>(entry.parameter->data(), entry.parameter->size(), values)) return entry.name;
  }
  return "";
}

/// For weights that were just read from `source`: FileError that names the first which holds a NaN or an infinity.
template <class T, class Device>
void expect_finite_weights(const ParameterStore<T, Device>& store, const std::string& source) {
  const std::string name = first_non_finite_weight(store);
  if (!name.empty())
    throw FileError(message("[model] ", source, ": weight \"", name, "\" holds NaN or an infinity; nothing can be learned "
                            "from it, so use a file that is whole"));
}

/// Saves a checkpoint, unless trained weights hold a NaN or an infinity: none of those is ever a good one. An update can
/// make them, by a rate that is none or beyond the largest number of 16 bits, though its gradients were finite.
template <class T, class Device>
bool save_finite(const CheckpointFolder& folder, const TrainingState& state, const ParameterStore<T, Device>& store,
                 const std::function<void(const std::string&)>& write_more = {}) {
  if (!first_non_finite_weight(store, true).empty()) return false;
  folder.save(state, write_more);
  return true;
}

/// The same for a run that stops at state.step, where that has no checkpoint yet. Returns the path of the newest good
/// one; empty if there is none.
template <class T, class Device>
std::string save_last_good(const CheckpointFolder& folder, const TrainingState& state,
                           const ParameterStore<T, Device>& store,
                           const std::function<void(const std::string&)>& write_more = {}) {
  index_t step = state.step;
  if (!folder.contains(step) && !save_finite(folder, state, store, write_more)) {
    const auto steps = folder.steps();
    if (steps.empty()) return "";
    step = steps.back();
  }
  return message(folder.path(), "/checkpoint-", step);
}

/// A loss that is not finite has such gradients, so the norm of the gradients tells of both. Steps that are left out
/// change neither weights nor moments: weights stay as the last step that was taken made them, however many there are.
/// Whether these are good ones too, save_finite() looks.
class FiniteGuard {
 public:
  /// After `limit` steps in a row, training should stop; 0 never stops it.
  explicit FiniteGuard(int limit) : limit_(limit) {}

  /// Whether the step may be taken. `names()` lists bad gradients; it is called at the first of a row.
  template <class Names>
  bool accept(double norm, index_t iteration, index_t optimizer_step, const Names& names) {
    if (std::isfinite(norm)) {
      in_a_row_ = 0;
      return true;
    }
    ++skipped_;
    if (++in_a_row_ == 1) {
      iteration_ = iteration;
      optimizer_step_ = optimizer_step;
      names_ = names();
    }
    return false;
  }

  index_t skipped() const { return skipped_; }
  void set_skipped(index_t count) { skipped_ = count; }
  int in_a_row() const { return in_a_row_; }
  bool exhausted() const { return limit_ > 0 && in_a_row_ >= limit_; }
  /// The iteration in which the row began.
  index_t first_iteration() const { return iteration_; }

  /// Writes `folder`/not_finite.json, if there is a folder, and throws: a ValueError that says where the row began and
  /// what might help. `good` is the checkpoint from before it, or empty.
  [[noreturn]] LPO_COLD void stop(
      const char* trainer, const std::string& folder, const std::string& good,
      const char* remedy = "lower learning_rate or beta, set max_grad_norm, or check the reward model") const {
    if (!folder.empty()) {
      OrderedJson json;
      json["steps_in_a_row"] = in_a_row_;
      json["first_iteration"] = iteration_;
      json["optimizer_step"] = optimizer_step_;
      json["skipped_in_all"] = skipped_;
      json["weights_with_bad_gradients"] = names_;
      json["last_good_checkpoint"] = good;
      write_text_file(folder + "/not_finite.json", json.dump(2) + "\n");
    }
    throw ValueError(message("[", trainer, "] loss or gradients were not finite in ", in_a_row_,
                             " steps in a row, beginning in iteration ", iteration_, " after ", optimizer_step_,
                             " optimizer steps, in the gradients of ", names_.size(), " weights",
                             names_.empty() ? "" : " (first " + names_.front() + ")",
                             good.empty() ? "" : "; the last good weights are in " + good,
                             "; ", remedy,
                             folder.empty() ? "" : ", details are in " + folder + "/not_finite.json"));
  }

  /// The same at once, for what cannot be left out, such as scores that are not numbers: `what` happened in `iteration`.
  [[noreturn]] LPO_COLD static void stop_at(const char* trainer, const std::string& folder, const std::string& good,
                                            index_t iteration, index_t optimizer_step, const std::string& what) {
    if (!folder.empty()) {
      OrderedJson json;
      json["reason"] = what;
      json["first_iteration"] = iteration;
      json["optimizer_step"] = optimizer_step;
      json["last_good_checkpoint"] = good;
      write_text_file(folder + "/not_finite.json", json.dump(2) + "\n");
    }
    throw ValueError(message("[", trainer, "] stopped in iteration ", iteration, ": ", what,
                             good.empty() ? "" : "; the last good weights are in " + good,
                             folder.empty() ? "" : ", details are in " + folder + "/not_finite.json"));
  }

 private:
  int limit_;
  int in_a_row_ = 0;
  index_t skipped_ = 0, iteration_ = 0, optimizer_step_ = 0;
  std::vector<std::string> names_;
};

}  // namespace lpo::inline LPO_ABI
