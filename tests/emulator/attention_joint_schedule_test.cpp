// SPDX-License-Identifier: MIT
// The order of attention's gradients in one walk, on the host: every block of keys of every head once, waits only for
// blocks that have begun, and a protocol that ends, with the same order of sums, whoever runs when. The kernel itself
// needs Hopper.
#include <lpo/backend/cuda/attention_joint_schedule.cuh>

#include <random>
#include <set>
#include <vector>

#include <doctest/doctest.h>

using lpo::detail::AttentionJointSchedule, lpo::detail::AttentionJointItem;

namespace {

/// What the warpgroup of dq does tile by tile, with so many blocks at a time, each step by one that is chosen at
/// random. Sums are the numbers of the blocks of keys that were added to them. Returns whether all blocks came to their
/// end.
bool run(const AttentionJointSchedule& schedule, int tiles, int running, unsigned seed) {
  struct Running {
    AttentionJointItem item;
    int tile;
  };
  struct Sum {
    int pair = -1, blocks = 0;
  };
  const auto at = [&](int pair, int block) { return static_cast<std::size_t>(pair * schedule.blocks + block); };
  const int items = schedule.pairs * schedule.blocks;
  std::vector<int> progress(static_cast<std::size_t>(items), 0);
  std::vector<Sum> sums(static_cast<std::size_t>(schedule.kept * schedule.together * tiles));
  std::vector<Running> blocks;
  std::mt19937 random(seed);
  bool right = true;
  int next = 0, waits = 0;
  while (next < items || !blocks.empty()) {
    while (next < items && static_cast<int>(blocks.size()) < running) blocks.push_back({schedule.item(next++), 0});
    const std::size_t i = random() % blocks.size();
    auto& [item, tile] = blocks[i];
    const bool first = item.block == 0, last = item.block == schedule.blocks - 1;
    const bool must_wait = first ? !last && item.before >= 0 && progress[at(item.before, schedule.blocks - 1)] < tiles
                                 : progress[at(item.pair, item.block - 1)] <= tile;
    if (must_wait) {
      if (++waits > 1000 * running) return false;
      continue;
    }
    waits = 0;
    if (!(first && last)) {
      Sum& sum = sums[static_cast<std::size_t>(item.place * tiles + tile)];
      if (first) sum = {item.pair, 0};
      right = right && sum.pair == item.pair && sum.blocks == item.block;
      ++sum.blocks;
    }
    ++tile;
    if (!last || tile == tiles) progress[at(item.pair, item.block)] = tile;
    if (tile == tiles) blocks.erase(blocks.begin() + static_cast<std::ptrdiff_t>(i));
  }
  CHECK(right);
  return true;
}

}  // namespace

TEST_CASE("blocks of attention's gradients in one walk wait only for blocks that have begun") {
  for (const int pairs : {1, 2, 12, 13, 25, 160, 161})
    for (const int key_blocks : {1, 2, 5, 32})
      for (const int most_together : {1, 5, 12, 20})
        for (const int running : {1, 132}) {
          INFO(pairs << " x " << key_blocks << ", " << most_together << " together, " << running << " at a time");
          const AttentionJointSchedule schedule(pairs, key_blocks, most_together, running);
          std::set<std::pair<int, int>> begun;
          bool inside = true, waits_for_begun = true;
          for (int number = 0; number < pairs * key_blocks; ++number) {
            const auto item = schedule.item(number);
            inside = inside && item.pair >= 0 && item.pair < pairs && item.block >= 0 && item.block < key_blocks &&
                     item.place >= 0 && item.place < schedule.kept * schedule.together;
            if (item.block > 0) waits_for_begun = waits_for_begun && begun.count({item.pair, item.block - 1}) == 1;
            if (item.before >= 0) waits_for_begun = waits_for_begun && begun.count({item.before, key_blocks - 1}) == 1;
            begun.insert({item.pair, item.block});
          }
          CHECK(inside);
          CHECK(waits_for_begun);
          CHECK(begun.size() == static_cast<std::size_t>(pairs * key_blocks));
        }
}

TEST_CASE("attention's gradients in one walk come to their end with any number of blocks at a time") {
  for (const int running : {1, 2, 7, 40, 500})
    for (const unsigned seed : {1u, 2u, 3u}) {
      INFO(running << " at a time, seed " << seed);
      CHECK(run(AttentionJointSchedule(25, 4, 12, running), 3, running, seed));
      CHECK(run(AttentionJointSchedule(25, 4, 3, 1), 3, running,
                seed));  // more run than the sums in memory are meant for
      CHECK(run(AttentionJointSchedule(7, 1, 2, running), 3, running, seed));
    }
}
