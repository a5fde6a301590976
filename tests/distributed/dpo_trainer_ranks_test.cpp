// SPDX-License-Identifier: MIT
// DpoTrainer over ranks: weights and logs of one rank at the same batch, 16-bit networks too; resuming with another
// number of ranks.
#include <doctest/doctest.h>

#include <lpo/distributed/thread_communicator.hpp>

#include "rank_cases.hpp"

using namespace lpo;
using namespace rank_cases;

namespace {
template <class T>
std::vector<Outcome> train_on(int size, const DpoTrainerOptions& options, const ProgressCallback& progress = {}) {
  std::vector<Outcome> outcomes(static_cast<std::size_t>(size));
  run_on_threads(size, [&](ThreadCommunicator ranks) {
    Context<Cpu> context(1);
    outcomes[static_cast<std::size_t>(ranks.rank())] = train_dpo<T>(context, ranks, options, progress);
  });
  return outcomes;
}
}  // namespace

TEST_CASE("two and three ranks train the policy that one trains") {
  auto options = rank_cases::dpo_options();
  SUBCASE("micro-batches") {}
  SUBCASE("whole shares, averages") {
    options.micro_batch_size = 0;
    options.ema_decay = 0.5;
  }
  const auto alone = train_on<float>(1, options).front();
  small_world::Policy start;
  CHECK(largest_difference(alone.weights, small_world::weights(start.store)) > 1e-3);
  for (const int size : {2, 3}) {
    const auto outcomes = train_on<float>(size, options);
    CHECK(largest_difference(outcomes[0].weights, alone.weights) < 2e-6);
    CHECK(largest_difference(outcomes[0].lines, alone.lines) < 2e-5);
    CHECK(outcomes.back().weights == outcomes[0].weights);
    CHECK(outcomes.back().lines.empty());
  }
}

TEST_CASE("bfloat16 networks: gradients are added in float, all ranks end with the same weights") {
  const auto options = rank_cases::dpo_options();
  const auto alone = train_on<bfloat16>(1, options).front();
  const auto outcomes = train_on<bfloat16>(3, options);
  CHECK(outcomes[1].weights == outcomes[0].weights);
  CHECK(outcomes[2].weights == outcomes[0].weights);
  CHECK(outcomes[0].lines[0][0].second == doctest::Approx(alone.lines[0][0].second).epsilon(1e-6));  // the loss
  CHECK(outcomes[0].lines[0][3].second == doctest::Approx(alone.lines[0][3].second).epsilon(2e-2));  // the norm
}

TEST_CASE("a run of three ranks is stopped and goes on with two") {
  small_world::TemporaryFolder folder;
  auto options = rank_cases::dpo_options(folder.path());
  CHECK_THROWS_AS(train_on<float>(3, options, [](const Progress& p) { return p.step < 3; }), CancelledError);
  options.resume = true;
  const auto outcomes = train_on<float>(2, options);
  const auto alone = train_on<float>(1, rank_cases::dpo_options()).front();
  CHECK(largest_difference(outcomes[0].weights, alone.weights) < 2e-6);
  CHECK(read_metrics(folder.path() + "/metrics.jsonl").size() == 6);
}
