// SPDX-License-Identifier: MIT
// LrmTrainer over ranks: weights, logs and accuracies of one rank at the same batch; resuming with another number of
// ranks; stopping together.
#include <doctest/doctest.h>

#include <lpo/distributed/thread_communicator.hpp>

#include "rank_cases.hpp"

using namespace lpo;
using namespace rank_cases;
using small_world::TemporaryFolder;

namespace {

/// What each rank ends with.
std::vector<Outcome> train_on(int size, const LrmTrainerOptions& options, const LatentPairs& pairs,
                              const std::function<ProgressCallback(int rank)>& progress = {}) {
  std::vector<Outcome> outcomes(static_cast<std::size_t>(size));
  run_on_threads(size, [&](ThreadCommunicator ranks) {
    Context<Cpu> context(1);
    outcomes[static_cast<std::size_t>(ranks.rank())] =
        train_lrm(context, ranks, options, pairs, progress ? progress(ranks.rank()) : ProgressCallback{});
  });
  return outcomes;
}

Outcome train_alone(const LrmTrainerOptions& options, const LatentPairs& pairs) {
  Context<Cpu> context(1);
  return train_lrm(context, SoloCommunicator(), options, pairs);
}

void check_alike(const std::vector<Outcome>& ranks, const Outcome& alone) {
  CHECK(largest_difference(ranks[0].weights, alone.weights) < 2e-6);
  CHECK(largest_difference(ranks[0].lines, alone.lines) < 2e-5);
  CHECK(alone.lines.size() == 8);
  for (const Outcome& rank : ranks) {
    CHECK(rank.weights == ranks[0].weights);
    CHECK(rank.accuracy == doctest::Approx(alone.accuracy));
  }
  for (std::size_t rank = 1; rank < ranks.size(); ++rank) CHECK(ranks[rank].lines.empty());
}

}  // namespace

TEST_CASE("two and three ranks train the reward model that one trains") {
  auto options = rank_cases::lrm_options();
  auto pairs = small_world::random_pairs(21, 16);
  SUBCASE("pair loss") {}
  SUBCASE("pair loss in micro-batches, shared noise, ties and weights") {
    options.micro_batch_size = 1;
    options.shared_pair_noise = true;
    pairs.labels[3] = {0.5f, 0.5f, 2.0f, false};
    pairs.labels[7].num_examples = 5.0f;
  }
  SUBCASE("contrastive loss") { options.loss.kind = RewardLossOptions::Kind::batch; }
  SUBCASE("both losses") { options.loss.kind = RewardLossOptions::Kind::both; }
  SUBCASE("batches of prompts") {
    options.batch_unit = BatchUnit::prompt;
    pairs = small_world::random_triples(31, 12);
  }
  const auto alone = train_alone(options, pairs);
  small_world::Reward start;
  CHECK(largest_difference(alone.weights, small_world::weights(start.store)) > 1e-3);
  for (const int size : {1, 2, 3}) {
    const auto outcomes = train_on(size, options, pairs);
    check_alike(outcomes, alone);
    if (size == 1) CHECK(outcomes[0].weights == alone.weights);
  }
}

TEST_CASE("a run goes on with another number of ranks; rank 0 alone writes") {
  TemporaryFolder folder;
  const auto pairs = small_world::random_pairs(21, 16);
  auto options = rank_cases::lrm_options(folder.path());
  const auto alone = train_alone(rank_cases::lrm_options(), pairs);
  const auto stop_after_5 = [](const Progress& p) { return p.step < 5; };
  // One rank wants to stop, and all do, with a checkpoint.
  CHECK_THROWS_AS(train_on(3, options, pairs,
                           [&](int rank) { return rank == 1 ? ProgressCallback(stop_after_5) : ProgressCallback{}; }),
                  CancelledError);
  CHECK(CheckpointFolder(folder.path(), 0).steps().back() == 5);
  options.resume = true;
  const auto outcomes = train_on(2, options, pairs);
  CHECK(largest_difference(outcomes[0].weights, alone.weights) < 2e-6);
  CHECK(outcomes[1].weights == outcomes[0].weights);
  CHECK(read_metrics(folder.path() + "/metrics.jsonl").size() == 8);
}

TEST_CASE("ranks begin with the weights of rank 0") {
  const auto pairs = small_world::random_pairs(21, 16);
  const NoiseSchedule schedule;
  std::vector<std::vector<float>> ended(2);
  run_on_threads(2, [&](ThreadCommunicator ranks) {
    Context<Cpu> context(1);
    small_world::Reward reward;
    reward.store.initialize(static_cast<std::uint64_t>(100 + ranks.rank()));
    LrmTrainer trainer(context, reward.lrm, reward.encoder, reward.store, schedule, rank_cases::lrm_options(), ranks);
    trainer.train(pairs, {});
    ended[static_cast<std::size_t>(ranks.rank())] = small_world::weights(reward.store);
  });
  CHECK(ended[0] == ended[1]);
}

TEST_CASE("ranks that differ are refused, and so are batches with nothing for some") {
  const auto pairs = small_world::random_pairs(21, 16);
  auto options = rank_cases::lrm_options();
  options.train_batch_size = 2;
  CHECK_THROWS_WITH_AS(train_on(3, options, pairs), doctest::Contains("nothing for some of 3 ranks"), ValueError);
  const auto differ = [&](ThreadCommunicator ranks) {
    Context<Cpu> context(1);
    auto own = rank_cases::lrm_options();
    own.learning_rate += ranks.rank();
    train_lrm(context, ranks, own, pairs);
  };
  CHECK_THROWS_WITH_AS(run_on_threads(2, differ), doctest::Contains("different options or data"), ValueError);
}

TEST_CASE("steps that are not finite on one rank are left out by all") {
  auto pairs = small_world::random_pairs(21, 16);
  pairs.mean[5] = std::numeric_limits<float>::quiet_NaN();
  auto options = rank_cases::lrm_options();
  options.max_skipped_steps = 0;
  const auto alone = train_alone(options, pairs);
  CHECK(alone.lines.back()[6].first == "skipped_steps");
  CHECK(alone.lines.back()[6].second > 0);
  const auto outcomes = train_on(3, options, pairs);
  CHECK(outcomes[0].lines.back()[6].second == alone.lines.back()[6].second);
  CHECK(outcomes[2].weights == outcomes[0].weights);
  CHECK(largest_difference(outcomes[0].weights, alone.weights) < 2e-6);
}
