// SPDX-License-Identifier: MIT
// DealtItems: the mini-batches of two, three and five ranks hold, together, the pairs of one rank's in its order.
#include <doctest/doctest.h>

#include <algorithm>

#include <lpo/backend/cpu/copy.hpp>
#include <lpo/distributed/thread_communicator.hpp>
#include <lpo/train/dealt_items.hpp>

using namespace lpo;

namespace {
constexpr index_t width = 4;  // latents [1, 2, 2]
using Store = PairStore<float, Cpu>;

/// What a pair is, by its latents.
using Pair = std::array<float, 3 * width>;

/// Pairs of prompts [first, end), of steps 0 to 4; prompt p has none at steps that p + 1 divides, prompt 1 has none.
Store drawn(Context<Cpu>& context, int first, int end) {
  Store store(5 * (end - first), Extents<3>{1, 2, 2});
  for (int step = 0; step < 5; ++step)
    for (int prompt = first; prompt < end; ++prompt) {
      if (prompt == 1 || step % (prompt + 1) == 0) continue;
      std::array<float, width> latents[3];
      for (int i = 0; i < 3; ++i)
        for (int k = 0; k < width; ++k)
          latents[i][static_cast<std::size_t>(k)] = static_cast<float>(1000 * step + 100 * prompt + 10 * i + k);
      store.append(context, {step, 50 * step + 1, prompt, 0.25f * static_cast<float>(prompt)}, latents[0].data(),
                   latents[1].data(), latents[2].data());
    }
  return store;
}

/// The pairs of each mini-batch that this rank trains on; checks their records.
std::vector<std::vector<Pair>> dealt(Context<Cpu>& context, const DealtItems<Store, Cpu>& items, int& mistakes) {
  std::vector<std::vector<Pair>> batches;
  for (const auto& batch : items.batches()) {
    auto& pairs = batches.emplace_back();
    Store gathered(std::max<index_t>(1, std::ssize(batch.own)), Extents<3>{1, 2, 2});
    items.items().gather(context, batch.own, gathered);
    for (index_t i = 0; i < gathered.count(); ++i) {
      Pair pair;
      std::copy_n(gathered.x_t().data + i * width, width, pair.data());
      std::copy_n(gathered.x_win().data + i * width, width, pair.data() + width);
      std::copy_n(gathered.x_lose().data + i * width, width, pair.data() + 2 * width);
      pairs.push_back(pair);
      const PairRecord& record = gathered.records()[static_cast<std::size_t>(i)];
      if (pair[0] != static_cast<float>(1000 * record.step + 100 * record.prompt)) ++mistakes;
      if (record.timestep != 50 * record.step + 1) ++mistakes;
      if (record.gap != 0.25f * static_cast<float>(record.prompt)) ++mistakes;
    }
  }
  return batches;
}
}  // namespace

TEST_CASE("what ranks drew is dealt out as one rank would train on it") {
  constexpr int prompts = 7;
  for (const index_t batch : {1, 4, 1000}) {
    Context<Cpu> context(1);
    SoloCommunicator solo;
    const Store all = drawn(context, 0, prompts);
    DealtItems<Store, Cpu> alone;
    int mistakes = 0;
    alone.deal(context, solo, all, 42, 3, batch);
    const auto expected = dealt(context, alone, mistakes);
    CHECK(alone.total() == all.count());
    for (const int size : {2, 3, 5}) {
      std::vector<std::vector<std::vector<Pair>>> found(static_cast<std::size_t>(size));
      std::vector<int> wrong(static_cast<std::size_t>(size));
      run_on_threads(size, [&](ThreadCommunicator ranks) {
        Context<Cpu> own_context(1);
        const Share share = own_share(ranks, prompts);
        const Store store = drawn(own_context, static_cast<int>(share.begin), static_cast<int>(share.end));
        DealtItems<Store, Cpu> items;
        const auto rank = static_cast<std::size_t>(ranks.rank());
        for (const std::uint32_t iteration : {9u, 3u}) items.deal(own_context, ranks, store, 42, iteration, batch);
        found[rank] = dealt(own_context, items, wrong[rank]);
        for (std::size_t b = 0; b < items.batches().size(); ++b)
          if (items.batches()[b].total != std::ssize(expected[b])) ++wrong[rank];
      });
      for (const int count : wrong) mistakes += count;
      for (std::size_t b = 0; b < expected.size(); ++b) {
        std::vector<Pair> together;
        for (const auto& rank : found) {
          REQUIRE(rank.size() == expected.size());
          together.insert(together.end(), rank[b].begin(), rank[b].end());
          CHECK(std::ssize(rank[b]) <= std::ssize(expected[b]) / size + 1);
        }
        CHECK(together == expected[b]);
      }
    }
    CHECK(mistakes == 0);
  }
}

TEST_CASE("nothing kept on any rank: no mini-batches") {
  run_on_threads(2, [&](ThreadCommunicator ranks) {
    Context<Cpu> context(1);
    const Store nothing(3, Extents<3>{1, 2, 2});
    DealtItems<Store, Cpu> items;
    items.deal(context, ranks, nothing, 1, 0, 4);
    if (items.total() != 0 || !items.batches().empty()) throw ValueError("something was dealt");
  });
}
