// SPDX-License-Identifier: MIT
// Rollout: denoise a batch of prompts, draw and score K candidates per step, keep clear pairs, go on from a random one.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include <lpo/diffusion/sample.hpp>
#include <lpo/preference/concepts.hpp>
#include <lpo/preference/pair_selection.hpp>
#include <lpo/preference/pair_store.hpp>
#include <lpo/preference/rollout_statistics.hpp>

namespace lpo::inline LPO_ABI {

/// The timestep that the scorer is told for candidates drawn at t and lying at the noise level of the arrival.
/// `departure` is what the published results used; `arrival` matches how the reward model was trained, with 1 for an
/// arrival at 0.
enum class LrmTimestep { departure, arrival };

/// What a roll-out draws and keeps. Defaults are the released code's for SD1.5.
struct RolloutOptions {
  int candidates = 4;         ///< K, next latents that are drawn and compared at each step
  int divert_start_step = 0;  ///< steps before it draw one candidate and record nothing
  int divert_end_step = 0;    ///< > 0: the roll-out stops before this step
  LrmTimestep lrm_timestep = LrmTimestep::departure;
  bool keep_pairs = true;  ///< false: no memory for pairs; run() is told what to keep instead
  std::uint64_t seed = 42;
};

/// The K candidates of B prompts at one step, on their way to what keeps some of them.
template <class T, class Device>
struct StepCandidates {
  int step = 0;                           ///< index into the chain
  index_t first_prompt = 0;               ///< where b = 0 stands in the batch of prompts (Rollout::set_part)
  View<const T, 4, Device> x_t;           ///< their parents [b, h, w, c]
  View<const T, 4, Device> prediction;    ///< the (guided) network output for the parents [b, h, w, c]
  View<const T, 5, Device> candidates;    ///< [k, b, h, w, c]
  std::span<const float> scores;          ///< row k*B + b
};

/// Step-level preference sampling (arXiv 2502.01051). At step i the candidates of prompt b are
/// x^k = a x_t + c prediction + sigma z^k, one Gaussian for all k. Best and worst by score become a pair if their
/// softmax gap exceeds the step's threshold; the chain goes on from a uniformly random candidate, whatever the scores.
///
/// Noise comes from Philox fields (seed, operation, iteration * S + i), so a run repeats exactly, for any number of
/// threads. All memory is taken by the constructor.
template <class T, class Device>
class Rollout {
 public:
  /// `steps` and `thresholds` of the same length; `latents` [b, h, w, c] for the largest prompt batch. Steps with sigma
  /// 0 have no density: they move on without recording.
  Rollout(Context<Device>& context, std::vector<GaussianStep> steps, std::vector<double> thresholds,
          const Extents<4>& latents, const RolloutOptions& options = {})
      : context_(context),
        steps_(std::move(steps)),
        thresholds_(std::move(thresholds)),
        options_(options),
        extents_(latents),
        latents_(latents),
        prediction_(latents),
        candidates_(Extents<4>{options.candidates * latents[0], latents[1], latents[2], latents[3]}),
        scores_(static_cast<std::size_t>(std::max<index_t>(0, options.candidates * latents[0]))),
        pairs_(options.keep_pairs ? static_cast<index_t>(steps_.size()) * latents[0] : 0, Extents<3>{latents[1], latents[2], latents[3]}) {
    if (thresholds_.size() != steps_.size())
      throw ValueError(message("[Rollout] ", static_cast<index_t>(thresholds_.size()), " thresholds for ",
                               static_cast<index_t>(steps_.size()), " steps; give one per step"));
    if (options.candidates < 1 || latents[0] < 1)
      throw ValueError(message("[Rollout] ", options.candidates, " candidates for ", latents[0],
                               " prompts; expected at least 1 each"));
    statistics_.reserve(steps_.size());
  }

  /// One roll-out of the first `prompts` rows (0: all), starting from fresh noise. `iteration` numbers the roll-outs of
  /// a run. Kept pairs replace those of the previous call. CancelledError when `progress` returns false.
  ///
  /// A scorer is told a timestep (StepScorer) or the step (TransitionScorer). If it has `continue_with(chosen)`, it
  /// learns with which candidate each prompt goes on.
  template <NoisePredictor<T, Device> Predictor, class Scorer>
    requires(StepScorer<Scorer, T, Device> || TransitionScorer<Scorer, T, Device>)
  void run(Predictor& predictor, Scorer& scorer, std::uint32_t iteration, index_t prompts = 0,
           const StepCallback& progress = {}) {
    run(predictor, scorer, iteration, prompts, progress,
        [this](const StepCandidates<T, Device>& drawn) { return keep_pairs(drawn); });
  }

  /// The same, but `keep(StepCandidates)` takes what it wants of every step instead of the clear pairs; it returns for
  /// how many prompts that was.
  template <NoisePredictor<T, Device> Predictor, class Scorer, class Keep>
    requires(StepScorer<Scorer, T, Device> || TransitionScorer<Scorer, T, Device>)
  void run(Predictor& predictor, Scorer& scorer, std::uint32_t iteration, index_t prompts, const StepCallback& progress,
           const Keep& keep) {
    if (prompts < 0 || prompts > extents_[0])
      throw ValueError(message("[Rollout] ", prompts, " prompts, but there is room for ", extents_[0]));
    prompts_ = prompts == 0 ? extents_[0] : prompts;
    if (all_ > 0 && first_ + prompts_ > all_)
      throw ValueError(message("[Rollout] prompts ", first_, " to ", first_ + prompts_, " of a batch of ", all_));
    pairs_.clear();
    statistics_.clear();
    const View<T, 4, Device> x = rows(latents_, prompts_), prediction = rows(prediction_, prompts_);
    fill_noise(x, 1, {options_.seed, random_operation::initial_latents, iteration});
    const int total = step_limit();
    for (int i = 0; i < total; ++i) {
      const GaussianStep& step = steps_[static_cast<std::size_t>(i)];
      predictor.predict(x, step.timestep, prediction);
      const auto counter = static_cast<std::uint32_t>(iteration * steps_.size() + static_cast<std::size_t>(i));
      if (!(step.sigma > 0))
        evaluate(&context_, x, step.mean(x, prediction));
      else if (i < options_.divert_start_step)
        advance(step, counter);
      else
        branch(step, i, counter, scorer, keep);
      if (progress && !progress(i + 1, total))
        throw CancelledError(message("[Rollout] cancelled after step ", i + 1, " of ", total));
    }
  }

  /// Says that the prompts of the next runs are those from `first` on of a batch of `all`, whose other prompts are rolled
  /// out elsewhere: noise, choices and records are those of the whole batch. (0, 0): there are no others.
  void set_part(index_t first, index_t all) {
    first_ = first;
    all_ = all;
  }

  /// Pairs kept by the last run.
  const PairStore<T, Device>& pairs() const { return pairs_; }
  /// One entry per step that drew pairs in the last run.
  std::span<const StepStatistics> statistics() const { return statistics_; }
  /// Puts those of the whole batch in their place.
  void set_statistics(std::vector<StepStatistics> statistics) { statistics_ = std::move(statistics); }
  /// Where the chains ended, [b, h, w, c].
  View<const T, 4, Device> latents() const { return {latents_.data(), batch_extents(prompts_)}; }

  const std::vector<GaussianStep>& steps() const { return steps_; }
  const std::vector<double>& thresholds() const { return thresholds_; }
  /// Replaces the thresholds, one per step.
  void set_thresholds(std::vector<double> thresholds) {
    if (thresholds.size() != steps_.size())
      throw ValueError(message("[Rollout] ", static_cast<index_t>(thresholds.size()), " thresholds for ",
                               static_cast<index_t>(steps_.size()), " steps; give one per step"));
    thresholds_ = std::move(thresholds);
  }
  const RolloutOptions& options() const { return options_; }

 private:
  Extents<4> batch_extents(index_t count) const { return {count, extents_[1], extents_[2], extents_[3]}; }
  View<T, 4, Device> rows(Tensor<T, 4, Device>& tensor, index_t count) const {
    return {tensor.data(), batch_extents(count)};
  }

  int step_limit() const {
    const int all = static_cast<int>(steps_.size());
    return options_.divert_end_step > 0 ? std::min(all, options_.divert_end_step) : all;
  }

  /// Noise of `copies` copies of the batch, of the prompts that are here.
  void fill_noise(const View<T, 4, Device>& noise, index_t copies, const RandomKey& key) {
    const index_t all = all_ > 0 ? all_ : prompts_, width = extents_.size() / extents_[0];
    if (prompts_ == all) return fill_normal(context_, noise, key);
    for (index_t k = 0; k < copies; ++k)
      fill_normal(context_, noise.slice(0, k * prompts_, (k + 1) * prompts_), key,
                  static_cast<std::uint64_t>((k * all + first_) * width));
  }

  void advance(const GaussianStep& step, std::uint32_t counter) {
    const View<T, 4, Device> x = rows(latents_, prompts_), noise = rows(candidates_, prompts_);
    fill_noise(noise, 1, {options_.seed, random_operation::candidate_noise, counter});
    evaluate(&context_, x, step.next(x, rows(prediction_, prompts_), noise));
  }

  template <class Scorer, class Keep>
  void branch(const GaussianStep& step, int i, std::uint32_t counter, Scorer& scorer, const Keep& keep) {
    const index_t k_count = options_.candidates, width = extents_.size() / extents_[0];
    const View<T, 4, Device> x = rows(latents_, prompts_), all = rows(candidates_, k_count * prompts_);
    const View<T, 5, Device> by_candidate =
        all.reshape(Extents<5>{k_count, prompts_, extents_[1], extents_[2], extents_[3]});  // [k, b, h, w, c]
    fill_noise(all, k_count, {options_.seed, random_operation::candidate_noise, counter});
    evaluate(&context_, by_candidate, step.next(x, rows(prediction_, prompts_), by_candidate));

    const std::span<float> scores(scores_.data(), static_cast<std::size_t>(k_count * prompts_));
    if constexpr (TransitionScorer<Scorer, T, Device>) {
      scorer.score(View<const T, 4, Device>(all), step, scores);
    } else {
      const int told = options_.lrm_timestep == LrmTimestep::departure ? step.timestep : std::max(1, step.arrival);
      scorer.score(View<const T, 4, Device>(all), told, scores);
    }

    StepStatistics statistics;
    statistics.timestep = step.timestep;
    statistics.threshold = thresholds_[static_cast<std::size_t>(i)];
    for (const float score : scores) statistics.scores.add(static_cast<double>(score));
    for (index_t b = 0; b < prompts_; ++b)
      statistics.gaps.add(select_pair(scores, b, prompts_, options_.candidates).gap);
    statistics.kept = keep(StepCandidates<T, Device>{i, first_, x, rows(prediction_, prompts_), by_candidate, scores});
    statistics_.push_back(statistics);

    RandomStream choice(RandomKey{options_.seed, random_operation::continuation, counter});
    std::vector<int> chosen;
    for (index_t row = 0; row < first_ + prompts_; ++row) {
      const int k = static_cast<int>(choice.uniform_int(static_cast<std::uint32_t>(options_.candidates)));
      const index_t b = row - first_;
      if (b < 0) continue;
      chosen.push_back(k);
      kernel::CopyRows<Device>::run(context_, 1, width, static_cast<const T*>(candidate(k, b)), width,
                                    x.data + b * width, width, false);
    }
    if constexpr (requires { scorer.continue_with(std::span<const int>(chosen)); })
      scorer.continue_with(std::span<const int>(chosen));
  }

  T* candidate(int k, index_t b) {
    return candidates_.data() + (k * prompts_ + b) * (extents_.size() / extents_[0]);
  }

  /// Appends the pairs whose gap exceeds the step's threshold; returns their number.
  int keep_pairs(const StepCandidates<T, Device>& drawn) {
    const index_t width = extents_.size() / extents_[0];
    const auto i = static_cast<std::size_t>(drawn.step);
    int kept = 0;
    for (index_t b = 0; b < prompts_; ++b) {
      const CandidatePair pair = select_pair(drawn.scores, b, prompts_, options_.candidates);
      if (!pair.kept(thresholds_[i])) continue;
      pairs_.append(context_, {drawn.step, steps_[i].timestep, static_cast<int>(first_ + b), static_cast<float>(pair.gap)},
                    drawn.x_t.data + b * width, candidate(pair.win, b), candidate(pair.lose, b));
      ++kept;
    }
    return kept;
  }

  Context<Device>& context_;
  std::vector<GaussianStep> steps_;
  std::vector<double> thresholds_;
  RolloutOptions options_;
  Extents<4> extents_;
  index_t prompts_ = 0, first_ = 0, all_ = 0;
  Tensor<T, 4, Device> latents_, prediction_, candidates_;
  std::vector<float> scores_;
  PairStore<T, Device> pairs_;
  std::vector<StepStatistics> statistics_;
};

}  // namespace lpo::inline LPO_ABI
