// SPDX-License-Identifier: MIT
// Roll-outs with fakes: layout of candidates, kept pairs, statistics, timesteps told, determinism over threads.
#include <lpo/preference/rollout.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include <lpo/backend/cpu/copy.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/cpu/random.hpp>
#include <lpo/backend/reference/copy.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/random.hpp>
#include <lpo/preference/threshold.hpp>

using lpo::Cpu;
using lpo::Extents;
using lpo::Reference;
using lpo::View;

namespace {

/// eps = 0.3 x + 0.1
template <class T, class Device>
struct FakePredictor {
  lpo::Context<Device>& context;
  std::vector<int> told = {};

  void predict(View<const T, 4, Device> x, double timestep, View<T, 4, Device> prediction) {
    told.push_back(static_cast<int>(timestep));
    lpo::evaluate(&context, prediction, 0.3 * x + 0.1);
  }
};

/// The mean of a latent times `scale`: prefers bright candidates.
template <class T, class Device>
struct FakeScorer {
  double scale = 100;
  std::vector<int> told = {};

  void score(View<const T, 4, Device> latents, int timestep, std::span<float> scores) {
    told.push_back(timestep);
    const auto width = latents.size() / latents.extent(0);
    for (lpo::index_t row = 0; row < latents.extent(0); ++row) {
      double sum = 0;
      for (lpo::index_t i = 0; i < width; ++i) sum += static_cast<double>(latents.data[row * width + i]);
      scores[static_cast<std::size_t>(row)] = static_cast<float>(scale * sum / static_cast<double>(width));
    }
  }
};

constexpr Extents<4> latents{3, 2, 3, 4};
constexpr std::size_t width = 24;

template <class T, class Device>
lpo::Rollout<T, Device> make_rollout(lpo::Context<Device>& context, const lpo::RolloutOptions& options,
                                     int steps = 20) {
  const lpo::NoiseSchedule schedule;
  return {context, lpo::ddim_steps(schedule, steps, 1.0), lpo::pair_thresholds(schedule, steps), latents, options};
}

double mean_of(const double* values) {
  double sum = 0;
  for (std::size_t i = 0; i < width; ++i) sum += values[i];
  return sum / static_cast<double>(width);
}

}  // namespace

TEST_CASE("kept pairs are candidates of one Gaussian, ordered by score, above the threshold") {
  lpo::Context<Reference> context(1);
  FakePredictor<double, Reference> predictor{context};
  FakeScorer<double, Reference> scorer;
  scorer.scale = 4;
  auto rollout = make_rollout<double>(context, {});
  rollout.run(predictor, scorer, 0);

  const auto& pairs = rollout.pairs();
  REQUIRE(pairs.count() > 5);
  REQUIRE(pairs.count() < 60);
  int kept = 0;
  for (const auto& step : rollout.statistics()) {
    kept += step.kept;
    CHECK(step.scores.count() == 12);
    CHECK(step.gaps.count() == 3);
  }
  CHECK(kept == pairs.count());
  for (lpo::index_t i = 0; i < pairs.count(); ++i) {
    const auto& record = pairs.records()[static_cast<std::size_t>(i)];
    const auto& step = rollout.steps()[static_cast<std::size_t>(record.step)];
    CHECK(record.timestep == step.timestep);
    const double* x = pairs.x_t().data + 24 * i;
    const double* win = pairs.x_win().data + 24 * i;
    const double* lose = pairs.x_lose().data + 24 * i;
    // Scores are recomputed from the stored latents.
    const double gap = std::tanh(4 * (mean_of(win) - mean_of(lose)) / 2);
    CHECK(gap > rollout.thresholds()[static_cast<std::size_t>(record.step)]);
    CHECK(static_cast<double>(record.gap) == doctest::Approx(gap).epsilon(1e-5));
    // Undo the step: the noise must be one of the four rows that the field holds for this prompt.
    bool found = false;
    std::vector<float> noise(4 * 3 * width);
    lpo::philox_fill_normal({42, lpo::random_operation::candidate_noise, static_cast<std::uint32_t>(record.step)},
                            noise.data(), noise.size());
    for (std::size_t k = 0; k < 4; ++k) {
      double worst = 0;
      for (std::size_t j = 0; j < width; ++j) {
        const double z = (win[j] - step.a * x[j] - step.c * (0.3 * x[j] + 0.1)) / step.sigma;
        worst = std::max(
            worst,
            std::fabs(z - static_cast<double>(noise[(k * 3 + static_cast<std::size_t>(record.prompt)) * width + j])));
      }
      found = found || worst < 1e-9;
    }
    CHECK(found);
  }
}

TEST_CASE("the chain continues from one of the candidates, whatever was kept") {
  lpo::Context<Reference> context(1);
  FakePredictor<double, Reference> predictor{context};
  FakeScorer<double, Reference> scorer;
  auto rollout = make_rollout<double>(context, {});
  rollout.run(predictor, scorer, 3);
  // With a generous scorer every pair is kept, so the parents of consecutive steps are all stored.
  const auto& pairs = rollout.pairs();
  int transitions = 0;
  for (lpo::index_t i = 0; i < pairs.count(); ++i)
    for (lpo::index_t j = 0; j < pairs.count(); ++j) {
      const auto& from = pairs.records()[static_cast<std::size_t>(i)];
      const auto& to = pairs.records()[static_cast<std::size_t>(j)];
      if (to.prompt != from.prompt || to.step != from.step + 1) continue;
      ++transitions;
      const auto& step = rollout.steps()[static_cast<std::size_t>(from.step)];
      const double* x = pairs.x_t().data + 24 * i;
      const double* next = pairs.x_t().data + 24 * j;
      std::vector<float> noise(4 * 3 * width);
      lpo::philox_fill_normal(
          {42, lpo::random_operation::candidate_noise, static_cast<std::uint32_t>(3 * 20 + from.step)}, noise.data(),
          noise.size());
      bool found = false;
      for (std::size_t k = 0; k < 4; ++k) {
        const double z = (next[0] - step.a * x[0] - step.c * (0.3 * x[0] + 0.1)) / step.sigma;
        found =
            found ||
            std::fabs(z - static_cast<double>(noise[(k * 3 + static_cast<std::size_t>(from.prompt)) * width])) < 1e-9;
      }
      CHECK(found);
    }
  CHECK(transitions > 30);
}

TEST_CASE("departure or arrival timesteps are told to the scorer, always departure to the predictor") {
  lpo::Context<Reference> context(1);
  FakePredictor<double, Reference> predictor{context};
  FakeScorer<double, Reference> scorer;
  auto departure = make_rollout<double>(context, {});
  departure.run(predictor, scorer, 0);
  REQUIRE(scorer.told.size() == 20);
  CHECK(scorer.told == predictor.told);
  CHECK(scorer.told[0] == 951);
  CHECK(scorer.told[19] == 1);
  lpo::RolloutOptions options;
  options.lrm_timestep = lpo::LrmTimestep::arrival;
  scorer.told.clear();
  auto arrival = make_rollout<double>(context, options);
  arrival.run(predictor, scorer, 0);
  CHECK(scorer.told[0] == 901);
  CHECK(scorer.told[18] == 1);
  CHECK(scorer.told[19] == 1);  // not 0, which the reward model never saw
}

TEST_CASE("one candidate or a constant scorer keeps nothing") {
  lpo::Context<Reference> context(1);
  FakePredictor<double, Reference> predictor{context};
  FakeScorer<double, Reference> indifferent{0.0};
  auto rollout = make_rollout<double>(context, {});
  rollout.run(predictor, indifferent, 0);
  CHECK(rollout.pairs().empty());
  lpo::RolloutOptions options;
  options.candidates = 1;
  FakeScorer<double, Reference> scorer;
  auto single = make_rollout<double>(context, options);
  single.run(predictor, scorer, 0);
  CHECK(single.pairs().empty());
}

TEST_CASE("divert_start records later, divert_end stops earlier") {
  lpo::Context<Reference> context(1);
  FakePredictor<double, Reference> predictor{context};
  FakeScorer<double, Reference> scorer;
  lpo::RolloutOptions options;
  options.divert_start_step = 4;
  options.divert_end_step = 7;
  auto rollout = make_rollout<double>(context, options);
  rollout.run(predictor, scorer, 0);
  CHECK(predictor.told.size() == 7);
  CHECK(scorer.told == std::vector<int>{751, 701, 651});
  CHECK(rollout.statistics().size() == 3);
  for (const auto& record : rollout.pairs().records()) CHECK(record.step >= 4);
}

TEST_CASE("roll-outs repeat exactly, differ between iterations, and do not depend on the number of threads") {
  const auto run = [](int threads, std::uint32_t iteration) {
    lpo::Context<Cpu> context(threads);
    FakePredictor<float, Cpu> predictor{context};
    FakeScorer<float, Cpu> scorer;
    const lpo::NoiseSchedule schedule;
    // Large enough that every kernel splits its work.
    lpo::Rollout<float, Cpu> rollout(context, lpo::ddim_steps(schedule, 10, 1.0), lpo::pair_thresholds(schedule, 10),
                                     Extents<4>{2, 64, 64, 4});
    scorer.scale = 500;
    rollout.run(predictor, scorer, iteration);
    const auto& pairs = rollout.pairs();
    std::vector<float> bits;
    for (const auto& view : {pairs.x_t(), pairs.x_win(), pairs.x_lose(), rollout.latents()})
      bits.insert(bits.end(), view.data, view.data + view.size());
    return bits;
  };
  const auto one = run(1, 5), three = run(3, 5), other = run(1, 6);
  REQUIRE(one.size() > 16384);
  REQUIRE(one.size() == three.size());
  CHECK(std::memcmp(one.data(), three.data(), one.size() * sizeof(float)) == 0);
  CHECK(one != other);
}

TEST_CASE("fewer prompts than room, buckets, shuffled mini-batches, cancelling") {
  lpo::Context<Reference> context(1);
  FakePredictor<double, Reference> predictor{context};
  FakeScorer<double, Reference> scorer;
  auto rollout = make_rollout<double>(context, {});
  rollout.run(predictor, scorer, 0, 2);
  CHECK(rollout.latents().extent(0) == 2);
  for (const auto& record : rollout.pairs().records()) CHECK(record.prompt < 2);
  const auto all = lpo::kept_buckets(rollout.statistics()), official = lpo::kept_buckets(rollout.statistics(), false);
  CHECK(all.very_large + all.large + all.middle + all.small == rollout.pairs().count());
  CHECK(all.small - official.small == rollout.statistics()[19].kept);

  const auto order = lpo::shuffled_order(rollout.pairs().count(), 42, 0);
  REQUIRE(order.size() >= 4);
  CHECK(order != lpo::shuffled_order(rollout.pairs().count(), 42, 1));
  lpo::PairStore<double, Reference> batch(4, {2, 3, 4});
  rollout.pairs().gather(context, std::span(order).first(4), batch);
  REQUIRE(batch.count() == 4);
  for (int i = 0; i < 4; ++i) {
    const auto at = order[static_cast<std::size_t>(i)];
    CHECK(batch.records()[static_cast<std::size_t>(i)].timestep ==
          rollout.pairs().records()[static_cast<std::size_t>(at)].timestep);
    CHECK(batch.x_lose()(i, 1, 2, 3) == rollout.pairs().x_lose()(at, 1, 2, 3));
  }
  if (order.size() > 4) CHECK_THROWS_AS(rollout.pairs().gather(context, order, batch), lpo::ValueError);
  CHECK_THROWS_AS(rollout.run(predictor, scorer, 0, 0, [](int done, int) { return done < 2; }), lpo::CancelledError);
  CHECK_THROWS_AS(rollout.run(predictor, scorer, 0, 4), lpo::ValueError);
}

TEST_CASE("running moments are the sample mean and deviation") {
  lpo::RunningMoments moments;
  for (const double value : {3.10, 2.40, 4.05, 3.55}) moments.add(value);
  CHECK(moments.mean() == doctest::Approx(3.275));
  CHECK(moments.deviation() == doctest::Approx(0.700595));
}

TEST_CASE("merged moments are those of all values") {
  lpo::RunningMoments all, first, second, empty;
  int i = 0;
  for (const double value : {3.10, 2.40, 4.05, 3.55, -7.0}) {
    all.add(value);
    (i++ < 2 ? first : second).add(value);
  }
  first.merge(empty);
  first.merge(second);
  empty.merge(first);
  for (const auto& merged : {first, empty}) {
    CHECK(merged.count() == 5);
    CHECK(merged.mean() == doctest::Approx(all.mean()).epsilon(1e-14));
    CHECK(merged.deviation() == doctest::Approx(all.deviation()).epsilon(1e-14));
  }
}
