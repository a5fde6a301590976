// SPDX-License-Identifier: MIT
// Memory for time: `scoped` keeps only a block's result during inference, `checkpoint` recomputes a block in backward.
#pragma once

#include <cstring>
#include <type_traits>

#include <lpo/autograd/var.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// Moves a value down to `mark`, where the block's temporaries began, and frees everything above it.
template <class T, int Rank, class Device, int Channels>
Var<T, Rank, Device, Channels> settle(Tape<Device>& tape, Arena::Mark mark, const Var<T, Rank, Device, Channels>& value) {
  const auto dense = Extents<Rank>(value.extents());
  const std::size_t bytes = static_cast<std::size_t>(value.size()) * sizeof(T);
  Scratch<Device> scratch(tape.context());
  auto* kept = scratch.template allocate<std::byte>(static_cast<index_t>(bytes));
  tape.context().copy_from_host(kept, value.data(), bytes);
  tape.rewind(mark);
  const auto out = make_output<T, Channels>(tape, dense, false);
  tape.context().copy_from_host(out.data(), kept, bytes);
  return out;
}

}  // namespace detail

/// Runs `block()`; when the tape is not recording, its temporaries are freed and only its (dense) result stays.
template <class Device, class Block>
auto scoped(Tape<Device>& tape, Block&& block) -> std::invoke_result_t<Block> {
  if (tape.recording()) return block();
  const auto mark = tape.mark();
  const auto value = block();
  if (!value.view().dense()) return value;
  return detail::settle(tape, mark, value);
}

/// Runs `block(inputs...)` without keeping its activations; backward runs it again. The block must be deterministic, use
/// its inputs and parameters only, and return a dense Var. Checkpoints nest. `block` is copied onto the tape.
template <class Device, class Block, class... Inputs>
auto checkpoint(Tape<Device>& tape, const Block& block, const Inputs&... inputs) -> std::invoke_result_t<Block, Inputs...> {
  if (!tape.recording()) return scoped(tape, [&] { return block(inputs...); });
  const auto mark = tape.mark();
  const bool adapters = tape.adapters();
  auto out = [&] {
    auto guard = tape.inference();
    const auto value = block(inputs...);
    return detail::settle(tape, mark, value);
  }();
  // Whether anything inside is trainable is known only after the recomputation, so a checkpoint always counts.
  Slot* slot = out.slot();
  slot->requires_gradient = true;
  tape.push(mark, slot, [=](Tape<Device>& t) {
    typename Tape<Device>::ModeGuard guard(t, true, adapters);
    auto* position = t.position();
    const auto again = block(inputs...);
    if (!again.requires_gradient()) {
      t.run_back_to(position);
      return;
    }
    auto target = gradient_target(again);
    View<std::remove_pointer_t<decltype(target.data)>, std::remove_cvref_t<decltype(again)>::rank, Device> into(
        target.data, again.extents());
    View<const std::remove_pointer_t<decltype(target.data)>, std::remove_cvref_t<decltype(again)>::rank, Device> from(
        output_gradient(out), again.extents());
    evaluate(&t.context(), into, from);
    t.run_back_to(position);
  });
  return out;
}

}  // namespace lpo::inline LPO_ABI
