// SPDX-License-Identifier: MIT
// Differentiable embedding lookup.
#pragma once

#include <cstdint>
#include <span>

#include <lpo/autograd/var.hpp>
#include <lpo/kernel/embedding.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// `ids` lie where the device reads them, and stay there until backward. `mark`: where the arena stood before them.
template <class T, class Device>
Var<T, 2, Device> embedding_of(const Var<T, 2, Device>& table, const std::int32_t* ids, index_t count,
                               Arena::Mark mark) {
  const index_t vocabulary = table.extent(0), width = table.extent(1);
  auto& tape = table.tape();
  const auto y = make_output<T>(tape, Extents<2>{count, width}, table.requires_gradient());
  kernel::Embedding<Device>::forward(tape.context(), count, width, ids, static_cast<const T*>(table.data()), y.data());
  if (!y.requires_gradient()) return y;
  tape.push(mark, y.slot(), [=](Tape<Device>& t) {
    if (const auto d = gradient_target(table))
      kernel::Embedding<Device>::backward(t.context(), count, width, vocabulary, ids, output_gradient(y), d.data,
                                          d.accumulate);
  });
  return y;
}

}  // namespace detail

/// table [vocabulary, width], ids [count] -> [count, width]. The ids are copied onto the tape.
template <class T, class Device>
Var<T, 2, Device> embedding(const Var<T, 2, Device>& table, std::span<const std::int32_t> ids) {
  for (std::size_t i = 0; i < ids.size(); ++i)
    if (ids[i] < 0 || ids[i] >= table.extent(0))
      throw ValueError(message("[embedding] id ", ids[i], " at position ", static_cast<index_t>(i), " is outside the table of ",
                               table.extent(0), " rows; does the tokenizer belong to this model?"));
  auto& tape = table.tape();
  const auto mark = tape.mark();
  const auto count = static_cast<index_t>(ids.size());
  auto* kept = tape.template allocate<std::int32_t>(count);
  tape.context().copy_from_host(kept, ids.data(), ids.size_bytes());
  return detail::embedding_of(table, kept, count, mark);
}

/// The same of ids in the device's memory that stay there until backward, as work that is captured needs
/// (RepeatedWork). The caller has checked that they lie in the table.
template <class T, class Device>
Var<T, 2, Device> embedding(const Var<T, 2, Device>& table, const std::int32_t* ids, index_t count) {
  return detail::embedding_of(table, ids, count, table.tape().mark());
}

}  // namespace lpo::inline LPO_ABI
