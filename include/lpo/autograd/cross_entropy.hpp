// SPDX-License-Identifier: MIT
// Differentiable cross-entropy of rows of logits.
#pragma once

#include <cstdint>
#include <span>

#include <lpo/autograd/var.hpp>
#include <lpo/kernel/cross_entropy.hpp>

namespace lpo::inline LPO_ABI {

/// logits [rows, classes] dense, one target class per row -> -ln softmax(logits)_target [rows].
template <class T, class Device>
Var<T, 1, Device> cross_entropy(const Var<T, 2, Device>& logits, std::span<const std::int32_t> targets) {
  const index_t rows = logits.extent(0), classes = logits.extent(1);
  if (static_cast<index_t>(targets.size()) != rows)
    throw ShapeError(message("[cross_entropy] ", rows, " rows need ", rows, " targets, given ", static_cast<index_t>(targets.size())));
  for (const std::int32_t target : targets)
    if (target < 0 || target >= classes)
      throw ValueError(message("[cross_entropy] target ", target, " is outside the ", classes, " classes"));
  if (!logits.view().dense()) throw ShapeError("[cross_entropy] the logits must be dense; copy the slice first");
  auto& tape = logits.tape();
  const auto mark = tape.mark();
  const auto loss = make_output<T>(tape, Extents<1>{rows}, logits.requires_gradient());
  auto* kept = tape.template allocate<std::int32_t>(rows);
  tape.context().copy_from_host(kept, targets.data(), targets.size_bytes());
  kernel::CrossEntropy<Device>::forward(tape.context(), rows, classes, static_cast<const T*>(logits.data()),
                                        static_cast<const std::int32_t*>(kept), loss.data());
  if (!loss.requires_gradient()) return loss;
  tape.push(mark, loss.slot(), [=](Tape<Device>& t) {
    if (const auto d = gradient_target(logits))
      kernel::CrossEntropy<Device>::backward(t.context(), rows, classes, static_cast<const T*>(logits.data()),
                                             static_cast<const std::int32_t*>(kept), output_gradient(loss), d.data, d.accumulate);
  });
  return loss;
}

}  // namespace lpo::inline LPO_ABI
