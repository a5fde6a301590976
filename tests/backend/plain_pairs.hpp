// SPDX-License-Identifier: MIT
// Plain loops that stand for the instructions on pairs of bfloat16, so that what is around them is tested anywhere.
#pragma once

#include <atomic>

#include <lpo/backend/cpu/attention_pairs.hpp>

namespace lpo_test {

using lpo::bfloat16;
using lpo::index_t;
namespace detail = lpo::detail;

/// What the instructions do, over the same blocks.
inline void run_plain(const detail::PairWork& work) {
  for (index_t row = 0; row < work.rows; ++row)
    for (index_t column = 0; column < work.panels * 16; ++column) {
      float& sum = work.sums[row * 32 + column];
      if (!work.begun) sum = 0.0f;
      for (index_t l = 0; l < work.blocks * 32; ++l) {
        const detail::PairGroup& group = work.left[row / 16];
        const bfloat16* left =
            group.data + group.step[l / 32] + row % 16 * group.row + l % 32 / 2 * group.pair + l % 2;
        const bfloat16* right =
            work.right + (l / 32 * work.panels + column / 16) * 512 + l % 32 / 2 * 32 + column % 16 * 2 + l % 2;
        sum += static_cast<float>(*left) * static_cast<float>(*right);
      }
    }
  if (work.to == nullptr) return;
  for (index_t r = 0; r < work.rows; ++r)
    for (index_t j = 0; j < 32; ++j)
      work.to[work.offset[r] + j] = bfloat16(work.sums[r * 32 + j] + work.bias[j]);
}

template <bool right>
void pack_plain_lines(const detail::PairLines& lines, index_t k, index_t first, index_t blocks, bfloat16* to,
                      index_t step) {
  detail::pack_pair_lines<right>(lines, k, first, blocks, to, step);
}
template <bool right>
void pack_plain_across(const bfloat16* from, const index_t* offset, index_t valid, index_t k, index_t first,
                       index_t blocks, bfloat16* to, index_t step, index_t beside) {
  detail::pack_pair_across<right>(from, offset, valid, k, first, blocks, to, step, beside);
}

inline std::atomic<int> open_states{0};

template <bool broadcasts>
inline constexpr detail::PairTiles plain_pairs = {20,
                                                  0,
                                                  2,
                                                  16,
                                                  16,
                                                  broadcasts,
                                                  {&pack_plain_lines<false>, &pack_plain_lines<true>},
                                                  {&pack_plain_across<false>, &pack_plain_across<true>},
                                                  [] { ++open_states; },
                                                  [] { --open_states; },
                                                  &run_plain};

inline constexpr detail::PairAttentionLoops plain_attention_loops = {
    [](const detail::PairScores& work) { detail::pair_weights(work); },
    [](const detail::PairSlopes& work) { detail::pair_slopes(work); }};

}  // namespace lpo_test
