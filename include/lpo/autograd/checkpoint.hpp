// SPDX-License-Identifier: MIT
// Memory for time: `scoped` keeps only a block's result during inference, `checkpoint` recomputes a block in backward.
#pragma once

#include <cstdint>
#include <type_traits>

#include <lpo/autograd/var.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// Moves a value down to `start`, where the block's temporaries began, and frees everything above it. One copy, unless
/// the two places overlap.
template <class Device, class T, int Rank, int Channels>
Var<T, Rank, Device, Channels> settle(Tape<Device>& tape, const typename Tape<Device>::Snapshot& start,
                                      const Var<T, Rank, Device, Channels>& value) {
  tape.rewind(start);
  const auto out = make_output<T, Channels>(tape, Extents<Rank>(value.extents()), false);
  const auto bytes = static_cast<std::size_t>(value.size()) * sizeof(T);
  const auto from = reinterpret_cast<std::uintptr_t>(value.data()), to = reinterpret_cast<std::uintptr_t>(out.data());
  if (from == to) return out;
  auto& context = tape.context();
  if (from >= to + bytes || to >= from + bytes) {
    context.copy(out.data(), value.data(), bytes);
    return out;
  }
  Scratch<Device> scratch(context);
  auto* kept = scratch.template allocate<std::byte>(static_cast<index_t>(bytes));
  context.copy(kept, value.data(), bytes);
  context.copy(out.data(), kept, bytes);
  return out;
}

}  // namespace detail

/// Runs `block()`; when the tape is not recording, its temporaries are freed and only its (dense) result stays.
template <class Device, class Block>
auto scoped(Tape<Device>& tape, Block&& block) -> std::invoke_result_t<Block> {
  if (tape.recording()) return block();
  const auto start = tape.snapshot();
  const auto value = block();
  if (!value.view().dense()) return value;
  return detail::settle(tape, start, value);
}

/// Runs `block(inputs...)` without keeping its activations; backward runs it again. The block must be deterministic, use
/// its inputs and parameters only, and return a dense Var. Checkpoints nest. `block` is copied onto the tape. A block in
/// which nothing depends on a value that requires a gradient leaves no node.
template <class Device, class Block, class... Inputs>
auto checkpoint(Tape<Device>& tape, const Block& block, const Inputs&... inputs) -> std::invoke_result_t<Block, Inputs...> {
  if (!tape.recording()) return scoped(tape, [&] { return block(inputs...); });
  const auto start = tape.snapshot();
  const bool adapters = tape.adapters();
  bool trainable = false;
  const auto value = tape.without_recording([&] { return block(inputs...); }, trainable);
  if (!value.view().dense()) throw ShapeError("[checkpoint] the block must return a dense value; return contiguous(x)");
  trainable = trainable || value.requires_gradient();
  const auto out = detail::settle(tape, start, value);
  if (!trainable) return out;
  tape.require_gradient(out.slot());
  tape.push(start.activations, out.slot(), [=](Tape<Device>& t) {
    typename Tape<Device>::ModeGuard guard(t, true, adapters);
    auto* position = t.position();
    const auto again = block(inputs...);
    if (!again.requires_gradient()) {
      t.run_back_to(position);
      return;
    }
    using Again = std::remove_cvref_t<decltype(again)>;
    detail::add_gradient(again, View<const typename Again::value_type, Again::rank, Device>(output_gradient(out), again.extents()));
    t.run_back_to(position);
  });
  return out;
}

}  // namespace lpo::inline LPO_ABI
