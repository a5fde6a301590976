// SPDX-License-Identifier: MIT
// TextStates: what a text encoder gives the networks, and the concept through which trainers see encoders.
#pragma once

#include <concepts>
#include <cstdint>
#include <span>
#include <vector>

#include <lpo/autograd/var.hpp>

namespace lpo::inline LPO_ABI {

/// What UNet and reward model read of n prompts.
template <class T, class Device>
struct TextStates {
  Var<T, 3, Device> context;  ///< [n, tokens, width], for cross-attention
  Var<T, 2, Device> pooled;   ///< [n, width]; SD1: final-norm state at the first EOS; SDXL: projected, of its second encoder
  std::vector<float> time_ids = {};  ///< SDXL: original size, crop, target size, the same 6 numbers for all rows
};

/// `encode(tape, ids, n)` runs n prompts of equal token count; `encode_empty(tape)` the empty prompt, one row.
template <class Encoder, class T, class Device>
concept TextEncoder = requires(Encoder& encoder, Tape<Device>& tape, std::span<const std::int32_t> ids, index_t n) {
  { encoder.encode(tape, ids, n) } -> std::convertible_to<TextStates<T, Device>>;
  { encoder.encode_empty(tape) } -> std::convertible_to<TextStates<T, Device>>;
};

/// One row [1, ...] repeated: a broadcast that the tape differentiates (its gradient sums the rows).
template <class T, int Rank, class Device>
Var<T, Rank, Device> repeat_rows(const Var<T, Rank, Device>& row, index_t count) {
  if (row.extent(0) != 1) throw ShapeError(message("[repeat_rows] expects one row, has ", to_string(row.extents())));
  auto extents = row.extents();
  extents[0] = count;
  const auto zeros = make_output<T>(row.tape(), extents, false);
  row.tape().context().fill_zero(zeros.data(), static_cast<std::size_t>(zeros.size()) * sizeof(T));
  return Var<T, Rank, Device>(row + zeros);
}

}  // namespace lpo::inline LPO_ABI
