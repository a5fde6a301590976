// SPDX-License-Identifier: MIT
// LpoTrainer, GrpoTrainer and SpoTrainer over ranks: weights, logs and reports of one rank at the same roll-outs; resuming with
// another number of ranks; stopping together, also for scores that are not numbers on one rank.
#include <doctest/doctest.h>

#include <atomic>

#include <lpo/distributed/thread_communicator.hpp>
#include <lpo/train/grpo_trainer.hpp>

#include "spo_rank_cases.hpp"

using namespace lpo;
using namespace rank_cases;
using small_world::TemporaryFolder;

namespace {
struct Run {
  Outcome outcome;
  RolloutTrainerReport report;
};

/// What `train(context, ranks, run)` gives on each of `size` ranks.
template <class Train>
std::vector<Run> on_ranks(int size, const Train& train) {
  std::vector<Run> runs(static_cast<std::size_t>(size));
  run_on_threads(size, [&](ThreadCommunicator ranks) {
    Context<Cpu> context(1);
    train(context, ranks, runs[static_cast<std::size_t>(ranks.rank())]);
  });
  return runs;
}

template <template <class...> class Trainer, class Options>
std::vector<Run> train_on(int size, const Options& options, const ProgressCallback& progress = {},
                          int broken_rank = -1) {
  return on_ranks(size, [&](Context<Cpu>& context, ThreadCommunicator ranks, Run& run) {
    const bool broken = ranks.rank() == broken_rank;
    run.outcome = train_on_rollouts<Trainer>(context, ranks, options, progress, &run.report, broken);
  });
}

/// `train(size)` gives the runs of `size` ranks.
template <class Train>
void check_ranks(const Train& train) {
  const auto alone = train(1).front();
  small_world::Policy start;
  CHECK(largest_difference(alone.outcome.weights, small_world::weights(start.store)) > 1e-3);
  CHECK(alone.report.pairs > 0);
  for (const int size : {2, 3}) {
    CAPTURE(size);
    const auto runs = train(size);
    CHECK(largest_difference(runs[0].outcome.weights, alone.outcome.weights) < 2e-6);
    // Of all numbers the norm of gradients moves most with the rounding of other batch sizes: 3e-5 were measured.
    CHECK(largest_difference(runs[0].outcome.lines, alone.outcome.lines) < 6e-5);
    for (const Run& run : runs) {
      CHECK(run.outcome.weights == runs[0].outcome.weights);
      CHECK(run.report.pairs == alone.report.pairs);
      CHECK(run.report.optimizer_steps == alone.report.optimizer_steps);
      CHECK(run.report.kept_per_step == alone.report.kept_per_step);
      CHECK(run.report.drawn_per_step == alone.report.drawn_per_step);
      CHECK(run.report.thresholds.front() == doctest::Approx(alone.report.thresholds.front()).epsilon(1e-5));
    }
    CHECK(runs.back().outcome.lines.empty());
  }
}
}  // namespace

TEST_CASE("two and three ranks run LPO as one does") {
  auto options = rank_cases::lpo_options();
  SUBCASE("every pair is kept") {}
  SUBCASE("micro-batches, averages, steps without pairs, thresholds that are looked for") {
    options.micro_batch_size = 1;
    options.ema_decay = 0.5;
    options.rollout.divert_start_step = 1;
    options.threshold_quantile = 0.4;
    options.calibration_rollouts = 1;
  }
  check_ranks([&](int size) { return train_on<LpoTrainer>(size, options); });
}

TEST_CASE("two and three ranks run GRPO as one does") {
  GrpoTrainerOptions options;
  static_cast<RolloutTrainerOptions&>(options) = rank_cases::lpo_options();
  check_ranks([&](int size) { return train_on<GrpoTrainer>(size, options); });
}

TEST_CASE("two and three ranks run SPO as one does") {
  const auto options = rank_cases::spo_options();
  check_ranks([&](int size) {
    return on_ranks(size, [&](Context<Cpu>& context, ThreadCommunicator ranks, Run& run) {
      run.outcome = train_spo(context, ranks, options, &run.report);
    });
  });
}

TEST_CASE("a run of three ranks is stopped in an iteration and goes on with two") {
  TemporaryFolder folder;
  auto options = rank_cases::lpo_options(folder.path());
  options.micro_batch_size = 1;
  std::atomic<int> calls = 0;  // of all ranks
  ProgressCallback go_on;
  SUBCASE("in its roll-out") {
    go_on = [&](const Progress& p) { return p.step < 3 || ++calls < 4; };
  }
  SUBCASE("between micro-batches, on some ranks first") {
    go_on = [&](const Progress& p) { return p.step < 3 || !p.within_step || ++calls < 2; };
  }
  CHECK_THROWS_AS(train_on<LpoTrainer>(3, options, go_on), CancelledError);
  CHECK(CheckpointFolder(folder.path(), 0).steps().back() == 3);
  options.resume = true;
  const auto runs = train_on<LpoTrainer>(2, options);
  const auto alone = train_on<LpoTrainer>(1, rank_cases::lpo_options()).front();
  CHECK(largest_difference(runs[0].outcome.weights, alone.outcome.weights) < 2e-6);
  CHECK(runs[1].report.pairs == alone.report.pairs);
  CHECK(read_metrics(folder.path() + "/metrics.jsonl").size() == 5);
}

TEST_CASE("scores that are not numbers on one rank stop all, with a report") {
  TemporaryFolder folder;
  const auto options = rank_cases::lpo_options(folder.path());
  CHECK_THROWS_WITH_AS(train_on<LpoTrainer>(3, options, {}, 1), doctest::Contains("is not a number"), ValueError);
  CHECK(CheckpointFolder(folder.path(), 0).steps() == std::vector<index_t>{0});
  CHECK(file_exists(folder.path() + "/not_finite.json"));
}

TEST_CASE("more ranks than prompts are refused") {
  auto options = rank_cases::lpo_options();
  options.sample_batch_size = 2;
  CHECK_THROWS_WITH_AS(train_on<LpoTrainer>(3, options), doctest::Contains("nothing for some of 3 ranks"), ValueError);
}
