// SPDX-License-Identifier: MIT
// Differentiable embedding lookup.
#pragma once

#include <cstdint>
#include <span>

#include <lpo/autograd/var.hpp>
#include <lpo/kernel/embedding.hpp>

namespace lpo::inline LPO_ABI {

/// table [vocabulary, width], ids [count] -> [count, width]. The ids are copied onto the tape.
template <class T, class Device>
Var<T, 2, Device> embedding(const Var<T, 2, Device>& table, std::span<const std::int32_t> ids) {
  const index_t count = static_cast<index_t>(ids.size()), vocabulary = table.extent(0), width = table.extent(1);
  for (std::size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || ids[i] >= vocabulary)
      throw ValueError(message("[embedding] id ", ids[i], " at position ", static_cast<index_t>(i), " is outside the table of ",
                               vocabulary, " rows; does the tokenizer belong to this model?"));
  auto& tape = table.tape();
  const auto mark = tape.mark();
  const auto y = make_output<T>(tape, Extents<2>{count, width}, table.requires_gradient());
  auto* kept = tape.template allocate<std::int32_t>(count);
  tape.context().copy_from_host(kept, ids.data(), ids.size_bytes());
  kernel::Embedding<Device>::forward(tape.context(), count, width, static_cast<const std::int32_t*>(kept),
                                     static_cast<const T*>(table.data()), y.data());
  if (!y.requires_gradient()) return y;
  tape.push(mark, y.slot(), [=](Tape<Device>& t) {
    if (const auto d = gradient_target(table))
      kernel::Embedding<Device>::backward(t.context(), count, width, vocabulary, static_cast<const std::int32_t*>(kept),
                                          output_gradient(y), d.data, d.accumulate);
  });
  return y;
}

}  // namespace lpo::inline LPO_ABI
