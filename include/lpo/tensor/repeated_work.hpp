// SPDX-License-Identifier: MIT
// RepeatedWork: the same work again and again on the same addresses, which a device may record once and replay.
#pragma once

#include <lpo/tensor/context.hpp>

namespace lpo::inline LPO_ABI {

/// A round of work that is the same every time but for the values in the memory that it reads: what a step of a loop does
/// on a device. On hosts every round runs. Devices that can (backend/cuda/graph.cuh) run the first round, capture the
/// second, and replay it from then on without calling the work.
///
///   work.begin(context);
///   work.run(context, [&] { ... });   // the same number of parts in each round
///
/// A part may not wait for the device, read from it, or depend on numbers of the host that change; between the parts of a
/// round all that is allowed. What a part leaves in the arenas stays there until the caller rewinds them. `reset()` when
/// an address changes.
template <class Device>
class RepeatedWork {
 public:
  explicit RepeatedWork(int = 1) {}

  void begin(Context<Device>&) {}
  template <class Part>
  void run(Context<Device>&, const Part& part) {
    part();
  }
  /// Whether the parts of this round are replayed, not called.
  bool replays() const { return false; }
  void reset() {}
};

}  // namespace lpo::inline LPO_ABI
