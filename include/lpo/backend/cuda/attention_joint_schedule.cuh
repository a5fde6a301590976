// SPDX-License-Identifier: MIT
// Who works on what in attention_joint_gradient.cuh, and who waits for whom.
#pragma once

#include <algorithm>

#include <lpo/backend/cuda/numbers.cuh>

namespace lpo::inline LPO_ABI {
namespace detail {

/// A block of keys of a head.
struct AttentionJointItem {
  int pair, block;  ///< pair: head of a batch
  int place;        ///< of the head's sums
  int before;       ///< the head that had these sums before, or -1
};

/// Blocks of keys in the order in which they begin. The blocks of a head add to a tile of queries in the order of their
/// keys: each waits for the one before it. Heads are in sets of `together`, which alternate in a set, so that a block
/// seldom waits. The sums of `kept` sets are in memory, and stay in the second-level cache; the first block of a head
/// whose place was another's waits until that one's last block, which rounds the sums to dq, has read them.
///
/// Why no wait is for ever: a block takes its number when it runs, and waits only for blocks of lower numbers. Those
/// run already, and the first of all that are not done waits for nobody. So any number of blocks at a time will do: one
/// multiprocessor, a share of the device under MPS or MIG, a tool that runs them in any order. Only the device's
/// promise is needed that running blocks go on.
struct AttentionJointSchedule {
  int pairs, blocks;   ///< blocks of keys of each head
  int together, kept;  ///< heads of a set; sets

  /// At most `most_together` heads in a set; `running` blocks run at a time, about in order: when a set begins, the one
  /// that was as many blocks before it is done.
  AttentionJointSchedule(index_t heads, index_t key_blocks, index_t most_together, index_t running)
      : pairs(static_cast<int>(heads)), blocks(static_cast<int>(key_blocks)) {
    const index_t sets = (heads + most_together - 1) / most_together, of_set = (heads + sets - 1) / sets;
    together = static_cast<int>(of_set);
    kept = static_cast<int>(std::min(sets, 2 + running / (of_set * key_blocks)));
  }

  __host__ __device__ AttentionJointItem item(int number) const {
    const int set = number / (blocks * together), in_set = number % (blocks * together);
    const int left = pairs - set * together, set_pairs = left < together ? left : together;
    const int pair = set * together + in_set % set_pairs;
    return {pair, in_set / set_pairs, set % kept * together + in_set % set_pairs,
            set < kept ? -1 : pair - kept * together};
  }
};

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
