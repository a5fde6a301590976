// SPDX-License-Identifier: MIT
// ClipTextEncoder: a CLIPTextModel and the token ids of its empty prompt as the TextEncoder that trainers use (SD1, SD2).
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <lpo/model/clip_text.hpp>
#include <lpo/train/text_states.hpp>

namespace lpo::inline LPO_ABI {

/// The TextEncoder of SD1.5 and SD2.1: one CLIP text model. `model` must outlive it.
template <class Model>
class ClipTextEncoder {
 public:
  using T = typename Model::value_type;
  using Device = typename Model::device;

  /// `empty_ids`: the padded token ids of "".
  ClipTextEncoder(Model& model, std::vector<std::int32_t> empty_ids) : model_(model), empty_(std::move(empty_ids)) {}

  TextStates<T, Device> encode(Tape<Device>& tape, std::span<const std::int32_t> ids, index_t n) {
    const auto out = model_(tape, ids, n);
    return {out.last_hidden_state, out.pooled};
  }
  TextStates<T, Device> encode_empty(Tape<Device>& tape) { return encode(tape, empty_, 1); }

  const std::vector<std::int32_t>& empty_ids() const { return empty_; }

 private:
  Model& model_;
  std::vector<std::int32_t> empty_;
};

}  // namespace lpo::inline LPO_ABI
