// SPDX-License-Identifier: MIT
// The demo: trains a latent reward model on simulated ratings, aligns the tiny world's generator with LPO, and measures it.
#include <sys/resource.h>

#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include <lpo/train/lpo_trainer.hpp>
#include <lpo/train/lrm_trainer.hpp>

#include "../common/console.hpp"
#include "report.hpp"
#include "tiny_files.hpp"
#include "tiny_pipeline.hpp"
#include "world/caption.hpp"
#include "world/flaws.hpp"
#include "world/rater.hpp"

using lpo::index_t;
namespace tw = tinyworld;

namespace {

struct Options {
  std::string model = "examples/tinyworld/model", out = "demo-out";
  std::uint64_t seed = 1;
  int threads = 0;
  double guidance_scale = 2.0;
  // rated pairs: captions with four pictures each, six pairs a caption
  index_t rated_captions = 4000, held_out_captions = 200, sketches = 0;
  int mpcf_strategy = 2;
  double rater_temperature = 0.035;  ///< raters then agree with the scorer on 86 % of the pairs that are no ties (seed 1)
  // reward model
  index_t lrm_steps = 1200, lrm_batch = 64;
  double lrm_rate = 3e-4, lrm_guidance = 1.0;
  // LPO
  index_t iterations = 60, prompts_per_iteration = 32, train_batch = 64, lora_rank = 8;
  double lpo_rate = 3e-4, beta = 500, threshold_quantile = 0.6;
  // evaluation
  index_t captions = 200, seeds = 4;
};

/// Seconds of each stage, and the clock of the whole run.
class Stopwatch {
 public:
  void finish(const std::string& stage, tw::DemoReport& report) {
    const auto now = std::chrono::steady_clock::now();
    report.seconds.emplace_back(stage, std::chrono::duration<double>(now - last_).count());
    last_ = now;
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
};

double peak_rss_mb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<double>(usage.ru_maxrss) / 1024.0;
}

std::vector<std::string> sample_captions(std::uint64_t seed, index_t count, tw::Split split) {
  std::vector<std::string> captions;
  for (index_t i = 0; i < count; ++i) captions.push_back(tw::sample_captioned(seed, static_cast<std::uint64_t>(i), split).caption);
  return captions;
}

/// Everything that stays in memory through the run.
struct Studio {
  lpo::Context<tw::Device> context;
  lpo::Tape<tw::Device> tape;
  tw::Generator generator;
  examples::ProgressBar bar;

  Studio(const Options& o) : context(o.threads), tape(context), generator(o.model, o.lora_rank, o.seed) {}

  /// `copies` pictures per caption: latents, and the decoded pictures.
  lpo::Tensor<float, 4> generate(const std::vector<std::string>& captions, const tw::GenerateOptions& options, const std::string& stage) {
    lpo::ProgressReporter reporter(stage, 0, static_cast<index_t>(captions.size()), std::ref(bar));
    return tw::generate_latents(context, tape, generator.unet, generator.text_encoder, generator.tokenizer, generator.schedule, captions,
                                options, [&](index_t done, index_t) { return reporter.report(done); });
  }

  /// Scores of the decoded pictures, a few at a time: thousands of pictures need not be in memory together.
  std::vector<tw::Measurement> measure(const lpo::Tensor<float, 4>& latents, const std::vector<std::string>& captions) {
    std::vector<tw::Measurement> measured(captions.size());
    constexpr index_t chunk = 64;
    for (index_t begin = 0; begin < latents.extent(0); begin += chunk) {
      const index_t end = std::min(latents.extent(0), begin + chunk);
      const auto images = tw::decode_latents(tape, generator.vae, latents.view().slice(0, begin, end));
      context.executor().parallel_for(end - begin, 4, [&](index_t first, index_t last) {
        for (index_t i = first; i < last; ++i)
          measured[static_cast<std::size_t>(begin + i)] = tw::score_image(images[static_cast<std::size_t>(i)], captions[static_cast<std::size_t>(begin + i)]);
      });
    }
    return measured;
  }

  std::vector<tw::Image> decode(const lpo::Tensor<float, 4>& latents) {
    std::vector<tw::Image> images;
    for (index_t begin = 0; begin < latents.extent(0); begin += 64) {
      auto part = tw::decode_latents(tape, generator.vae, latents.view().slice(0, begin, std::min(latents.extent(0), begin + 64)));
      std::move(part.begin(), part.end(), std::back_inserter(images));
    }
    return images;
  }
};

std::vector<tw::Measurement> measure_all(const std::vector<tw::Image>& images, const std::vector<std::string>& captions) {
  std::vector<tw::Measurement> measured;
  for (std::size_t i = 0; i < images.size(); ++i) measured.push_back(tw::score_image(images[i], captions[i]));
  return measured;
}

struct RatedPairs {
  lpo::LatentPairs latents;
  index_t rated = 0;
  index_t decided = 0, agreed = 0;  ///< ratings that are no ties; those that prefer the picture with the higher score
};

/// Adds one rated pair of clean latents [2, 8, 8, 4] and, for encoded pictures, their deviations. MPCF decides when `filter`
/// is set; held-out pairs are kept unless they are ties.
void add_pair(RatedPairs& result, const Options& o, const tw::RatedPair& rating, const tw::Measurement& first,
              const tw::Measurement& second, bool filter, const float* mean, const float* deviation, const std::vector<std::int32_t>& ids) {
  const bool tie = rating.is_tie();
  ++result.rated;
  if (!tie) {
    ++result.decided;
    result.agreed += (first.score > second.score) == (rating.label_0 > rating.label_1) ? 1 : 0;
  }
  const lpo::PreferenceGaps gaps{rating.aesthetic_gap, rating.clipscore_gap, rating.vqascore_gap};
  if (filter ? !lpo::mpcf_keeps(gaps, tie, {.strategy = o.mpcf_strategy}) : tie) return;
  auto& pairs = result.latents;
  pairs.height = tw::latent_size, pairs.width = tw::latent_size, pairs.channels = tw::latent_channels;
  pairs.tokens = tw::text_config.positions;
  const auto size = static_cast<std::size_t>(2 * tw::latent_extents.size());
  pairs.mean.insert(pairs.mean.end(), mean, mean + size);
  if (deviation != nullptr)
    pairs.deviation.insert(pairs.deviation.end(), deviation, deviation + size);
  else if (o.sketches > 0)
    pairs.deviation.insert(pairs.deviation.end(), size, 0.0f);
  pairs.token_ids.insert(pairs.token_ids.end(), ids.begin(), ids.end());
  pairs.labels.push_back({rating.label_0, rating.label_1, 1.0f, false});
}

/// Rates all pairs among the `copies` pictures of each caption. Row i * copies + k of `mean` is picture k of caption i.
void add_group_pairs(const Studio& studio, const Options& o, RatedPairs& result, const std::vector<std::string>& captions,
                     std::size_t copies, const std::vector<tw::Measurement>& measured, const lpo::Tensor<float, 4>& mean,
                     const lpo::Tensor<float, 4>* deviation, std::uint64_t seed, bool filter, std::uint64_t first_caption = 0) {
  const auto size = static_cast<std::size_t>(tw::latent_extents.size());
  std::vector<float> two(2 * size), spread(2 * size);
  for (std::size_t i = 0; i < captions.size(); ++i) {
    const auto ids = studio.generator.tokenizer.encode(captions[i]);
    for (std::size_t a = 0; a < copies; ++a) {
      for (std::size_t b = a + 1; b < copies; ++b) {
        const std::size_t row_a = i * copies + a, row_b = i * copies + b;
        std::copy_n(mean.data() + row_a * size, size, two.begin());
        std::copy_n(mean.data() + row_b * size, size, two.begin() + static_cast<std::ptrdiff_t>(size));
        if (deviation != nullptr) {
          std::copy_n(deviation->data() + row_a * size, size, spread.begin());
          std::copy_n(deviation->data() + row_b * size, size, spread.begin() + static_cast<std::ptrdiff_t>(size));
        }
        const auto rating = tw::rate_pair(measured[row_a], measured[row_b], seed, ((first_caption + i) * copies + a) * copies + b,
                                          {.temperature = static_cast<float>(o.rater_temperature)});
        add_pair(result, o, rating, measured[row_a], measured[row_b], filter, two.data(), deviation != nullptr ? spread.data() : nullptr, ids);
      }
    }
  }
}

/// Pairs by a second, much cheaper generator: it draws the caption with random mistakes, blur and stains. Preference data sets
/// mix generators too, and a sketch costs a hundredth of a sampled picture.
void add_sketches(Studio& studio, const Options& o, RatedPairs& result) {
  lpo::ProgressReporter reporter("sketches", 0, o.sketches, std::ref(studio.bar));
  constexpr index_t chunk = 32, copies = 4;
  const auto guard = studio.tape.inference();
  for (index_t begin = 0; begin < o.sketches; begin += chunk) {
    const index_t count = std::min(chunk, o.sketches - begin);
    std::vector<tw::Image> images(static_cast<std::size_t>(copies * count));
    std::vector<tw::Measurement> measured(images.size());
    std::vector<std::string> captions(static_cast<std::size_t>(count));
    studio.context.executor().parallel_for(count, 2, [&](index_t first, index_t last) {
      for (index_t i = first; i < last; ++i) {
        const auto at = static_cast<std::size_t>(i);
        const auto sample = tw::sample_captioned(o.seed + 150, static_cast<std::uint64_t>(begin + i), tw::Split::train);
        captions[at] = sample.caption;
        for (std::size_t k = 0; k < copies; ++k) {
          lpo::RandomStream random(o.seed + 151, static_cast<std::uint32_t>(begin + i), static_cast<std::uint32_t>(k));
          images[copies * at + k] = tw::attempt(random, sample.scene);
          measured[copies * at + k] = tw::score_image(images[copies * at + k], sample.caption);
        }
      }
    });
    const auto pixels = tw::to_tensor(images);
    const auto posterior = studio.generator.vae.encode(lpo::constant(studio.tape, pixels));
    const double scale = static_cast<double>(studio.generator.vae.scaling_factor);
    const lpo::Tensor<float, 4> mean = scale * posterior.mean.view();
    const lpo::Tensor<float, 4> deviation = scale * exp(0.5 * posterior.log_variance.view());
    add_group_pairs(studio, o, result, captions, copies, measured, mean, &deviation, o.seed + 450, true, static_cast<std::uint64_t>(begin));
    studio.tape.clear();
    if (!reporter.report(begin + count)) throw lpo::CancelledError("[demo] cancelled");
  }
}

/// How a picture of a rated set is sampled. Preference data comes from many settings of a model; the spread of quality within a
/// caption is what a reward model learns from.
struct SamplerSetting {
  std::vector<double> guidance;  ///< caption i takes entry i modulo their number
  double eta;
  int steps;
};

/// Four pictures per caption by the base model, each under another setting; all six pairs are rated. `filter` applies MPCF.
RatedPairs rate_pairs(Studio& studio, const Options& o, index_t count, tw::Split split, bool filter, const std::string& stage) {
  static const std::vector<SamplerSetting> settings{
      {{0.5, 1, 1.5, 2}, 0.0, 10}, {{3, 4, 5}, 1.0, 20}, {{3, 4, 5}, 0.0, 10}, {{1.5, 3, 8}, 0.0, 5}};
  const auto captions = sample_captions(o.seed + 100, count, split);
  const std::size_t copies = settings.size();
  lpo::Tensor<float, 4> latents(lpo::Extents<4>{count * static_cast<index_t>(copies), tw::latent_size, tw::latent_size, tw::latent_channels});
  const index_t size = tw::latent_extents.size();
  lpo::ProgressReporter reporter(stage, 0, count * static_cast<index_t>(copies), std::ref(studio.bar));
  index_t done = 0;
  for (std::size_t k = 0; k < copies; ++k) {
    const auto& setting = settings[k];
    for (std::size_t j = 0; j < setting.guidance.size(); ++j) {
      std::vector<std::string> part;
      for (std::size_t i = j; i < captions.size(); i += setting.guidance.size()) part.push_back(captions[i]);
      tw::GenerateOptions options;
      options.guidance_scale = setting.guidance[j];
      options.eta = setting.eta;
      options.steps = setting.steps;
      options.adapters = false;
      options.seed = o.seed + (split == tw::Split::train ? 200 : 300) + 16 * k + j;
      const auto made = tw::generate_latents(studio.context, studio.tape, studio.generator.unet, studio.generator.text_encoder,
                                             studio.generator.tokenizer, studio.generator.schedule, part, options,
                                             [&](index_t n, index_t) { return reporter.report(done + n); });
      done += static_cast<index_t>(part.size());
      for (std::size_t i = 0; i < part.size(); ++i)
        std::copy_n(made.data() + static_cast<index_t>(i) * size, size,
                    latents.data() + static_cast<index_t>((j + i * setting.guidance.size()) * copies + k) * size);
    }
  }
  std::vector<std::string> repeated;
  for (const auto& caption : captions) repeated.insert(repeated.end(), copies, caption);
  const auto measured = studio.measure(latents, repeated);
  RatedPairs result;
  add_group_pairs(studio, o, result, captions, copies, measured, latents, nullptr, o.seed + 400, filter);
  return result;
}

/// Reads one column of a metrics.jsonl.
tw::Curve read_curve(const std::string& path, const std::string& name) {
  tw::Curve curve;
  const std::string text = lpo::read_text_file(path);
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.size(), text.find('\n', begin));
    const auto line = nlohmann::json::parse(text.substr(begin, end - begin), nullptr, false);
    if (line.is_object() && line.contains(name) && line[name].is_number()) {
      curve.x.push_back(line["step"].get<double>());
      curve.y.push_back(line[name].get<double>());
    }
    begin = end + 1;
  }
  return curve;
}

void train_reward_model(Studio& studio, const Options& o, tw::RewardModel& reward, const RatedPairs& train, const RatedPairs& held_out,
                        tw::DemoReport& report) {
  lpo::LrmTrainerOptions options;
  options.max_train_steps = o.lrm_steps;
  options.train_batch_size = o.lrm_batch;
  options.learning_rate = o.lrm_rate;
  options.lr_scheduler = lpo::LearningRateKind::linear;
  options.lr_warmup_steps = o.lrm_steps / 20;
  options.optimizer.weight_decay = 0.05;
  options.ema_decay = 0.99;
  options.validation_steps = std::max<index_t>(1, o.lrm_steps / 12);
  options.seed = o.seed;
  options.output_dir = o.out + "/lrm";
  lpo::LrmTrainer trainer(studio.context, reward.lrm, reward.text_encoder, reward.store, studio.generator.schedule, options);
  trainer.train(train.latents, held_out.latents, std::ref(studio.bar));
  for (const int timestep : {1, 101, 201, 301, 401, 501, 601, 701, 801, 901})
    report.lrm_accuracy_by_timestep.emplace_back(timestep, trainer.accuracy(held_out.latents, timestep));
  report.lrm_accuracy = report.lrm_accuracy_by_timestep.front().second;
  report.lrm_loss = read_curve(options.output_dir + "/metrics.jsonl", "train_loss");
  report.lrm_validation = read_curve(options.output_dir + "/metrics.jsonl", "validation_accuracy");
  report.pairs_rated = train.rated;
  report.pairs_kept = train.latents.size();
  for (const auto& label : train.latents.labels) report.pairs_tied += label.tie() ? 1 : 0;
  report.rater_ceiling = held_out.decided > 0 ? static_cast<double>(held_out.agreed) / static_cast<double>(held_out.decided) : 0.0;
}

void align(Studio& studio, const Options& o, tw::RewardModel& reward, tw::DemoReport& report) {
  lpo::LpoTrainerOptions options;
  options.max_train_iterations = o.iterations;
  options.sample_batch_size = o.prompts_per_iteration;
  options.train_batch_size = o.train_batch;
  options.guidance_scale = o.guidance_scale;
  options.learning_rate = o.lpo_rate;
  options.lr_scheduler = lpo::LearningRateKind::constant_with_warmup;
  options.lr_warmup_steps = 10;
  options.rollout.lrm_timestep = lpo::LrmTimestep::arrival;  // where the reward model saw such latents in training
  options.threshold_quantile = o.threshold_quantile;
  options.loss.beta = o.beta;
  options.max_grad_norm = 1.0;
  options.seed = o.seed;
  options.output_dir = o.out + "/lpo";

  lpo::PromptTokens prompts;
  prompts.tokens = prompts.reward_tokens = tw::text_config.positions;
  for (const auto& caption : sample_captions(o.seed + 500, o.iterations * o.prompts_per_iteration, tw::Split::train)) {
    const auto ids = studio.generator.tokenizer.encode(caption);
    prompts.ids.insert(prompts.ids.end(), ids.begin(), ids.end());
  }
  prompts.reward_ids = prompts.ids;

  auto& g = studio.generator;
  lpo::LpoTrainer trainer(studio.context, g.unet, g.store, g.text_encoder, reward.lrm, reward.text_encoder, g.schedule,
                          tw::latent_extents, options);
  const auto result = trainer.train(prompts, std::ref(studio.bar));
  const std::string log = options.output_dir + "/metrics.jsonl";
  report.lpo_loss = read_curve(log, "train_loss");
  report.implicit_accuracy = read_curve(log, "implicit_acc");
  report.margin = read_curve(log, "train_margin");
  report.reward = read_curve(log, "reward_mean");
  report.kept = read_curve(log, "kept");
  report.timesteps = result.timesteps;
  report.thresholds = result.thresholds;
  for (std::size_t i = 0; i < result.kept_per_step.size(); ++i)
    report.kept_share.push_back(result.drawn_per_step[i] > 0 ? result.kept_per_step[i] / result.drawn_per_step[i] : 0.0);
  report.lpo_iterations = result.iterations;
  report.lpo_optimizer_steps = result.optimizer_steps;
  report.lpo_pairs = result.pairs;
}

/// Pictures of captions never trained on, `seeds` each, from the same noise under the base and the aligned model.
void evaluate_model(Studio& studio, const Options& o, tw::DemoReport& report) {
  const auto captions = sample_captions(o.seed + 600, o.captions, tw::Split::evaluation);
  std::vector<std::string> repeated;
  for (const auto& caption : captions) repeated.insert(repeated.end(), static_cast<std::size_t>(o.seeds), caption);
  tw::GenerateOptions options;
  options.guidance_scale = o.guidance_scale;
  options.seed = o.seed + 700;
  std::vector<std::vector<tw::Image>> images;
  for (const bool adapters : {false, true}) {
    options.adapters = adapters;
    images.push_back(studio.decode(studio.generate(repeated, options, adapters ? "eval aligned" : "eval base")));
  }
  const auto before = measure_all(images[0], repeated), after = measure_all(images[1], repeated);
  std::vector<tw::CaptionOutcome> outcomes;
  for (std::size_t i = 0; i < captions.size(); ++i) {
    const auto begin = static_cast<std::ptrdiff_t>(i * static_cast<std::size_t>(o.seeds)), end = begin + o.seeds;
    tw::CaptionOutcome outcome;
    outcome.caption = captions[i];
    outcome.before.assign(before.begin() + begin, before.begin() + end);
    outcome.after.assign(after.begin() + begin, after.begin() + end);
    outcome.diversity_before = tw::mean_pairwise_distance({images[0].begin() + begin, images[0].begin() + end});
    outcome.diversity_after = tw::mean_pairwise_distance({images[1].begin() + begin, images[1].begin() + end});
    outcomes.push_back(std::move(outcome));
    if (report.grid.size() < 16)
      report.grid.push_back({captions[i], images[0][static_cast<std::size_t>(begin)], images[1][static_cast<std::size_t>(begin)],
                             static_cast<double>(before[static_cast<std::size_t>(begin)].score),
                             static_cast<double>(after[static_cast<std::size_t>(begin)].score)});
  }
  tw::EvaluationOptions evaluation;
  evaluation.seed = o.seed;
  report.evaluation = tw::evaluate(outcomes, evaluation);
}

void program(const Options& o, const std::string& command) {
  lpo::make_directories(o.out);
  tw::DemoReport report;
  report.seed = o.seed;
  report.command = command;
  report.lpo_version = LPO_VERSION_STRING;
#if defined(__clang__)
  report.compiler = "clang " __clang_version__;
#else
  report.compiler = "g++ " __VERSION__;
#endif
  Stopwatch watch;
  Studio studio(o);
  report.threads = studio.context.executor().threads();

  auto train = rate_pairs(studio, o, o.rated_captions, tw::Split::train, true, "rated pairs");
  if (o.sketches > 0) add_sketches(studio, o, train);
  const auto held_out = rate_pairs(studio, o, o.held_out_captions, tw::Split::validation, false, "held-out pairs");
  watch.finish("rated pairs", report);

  tw::RewardModel reward(o.model, studio.generator.tokenizer, static_cast<float>(o.lrm_guidance), o.seed + 1);
  train_reward_model(studio, o, reward, train, held_out, report);
  watch.finish("reward model", report);

  align(studio, o, reward, report);
  lpo::save_lora(o.out + "/pytorch_lora_weights.safetensors", studio.generator.unet);
  watch.finish("LPO", report);

  evaluate_model(studio, o, report);
  watch.finish("evaluation", report);

  report.peak_rss_mb = peak_rss_mb();
  report.settings = {{"guidance_scale", o.guidance_scale}, {"rater_temperature", o.rater_temperature},
                     {"lrm_steps", static_cast<double>(o.lrm_steps)},
                     {"lrm_batch (pairs)", static_cast<double>(o.lrm_batch)}, {"lrm_learning_rate", o.lrm_rate},
                     {"lrm_guidance", o.lrm_guidance}, {"lpo_iterations", static_cast<double>(o.iterations)},
                     {"prompts_per_iteration", static_cast<double>(o.prompts_per_iteration)},
                     {"train_batch (pairs)", static_cast<double>(o.train_batch)}, {"lora_rank", static_cast<double>(o.lora_rank)},
                     {"lpo_learning_rate", o.lpo_rate}, {"beta", o.beta}, {"threshold_quantile", o.threshold_quantile},
                     {"threshold_min", report.thresholds.empty() ? 0.0 : report.thresholds.back()},
                     {"threshold_max", report.thresholds.empty() ? 0.0 : report.thresholds.front()}};
  tw::write_report(o.out, report);
  tw::print_summary(report, o.out);
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app{"Align a small diffusion model with latent preference optimization, and show that it worked."};
  app.option_defaults()->always_capture_default();
  app.add_option("--model", o.model, "base model: a folder written by train_base");
  app.add_option("--out", o.out, "where the report is written");
  app.add_option("--seed", o.seed, "seed of everything");
  app.add_option("--threads", o.threads, "threads; 0 takes all");
  app.add_option("--guidance-scale,--guidance_scale", o.guidance_scale, "classifier-free guidance");
  app.add_option("--rated-captions", o.rated_captions, "captions drawn by the base model for the raters, 4 pictures each")->check(CLI::PositiveNumber);
  app.add_option("--sketches", o.sketches, "captions sketched by the cheap second generator, 4 pictures each")->check(CLI::NonNegativeNumber);
  app.add_option("--held-out-captions", o.held_out_captions, "captions whose pairs measure the reward model")->check(CLI::PositiveNumber);
  app.add_option("--rater-temperature", o.rater_temperature, "score difference that shifts a rater's log-odds by one")->check(CLI::PositiveNumber);
  app.add_option("--mpcf-strategy", o.mpcf_strategy, "consistency filter: 0 (off), 1, 2 or 3")->check(CLI::Range(0, 3));
  app.add_option("--lrm-steps", o.lrm_steps, "reward model steps")->check(CLI::PositiveNumber);
  app.add_option("--lrm-batch", o.lrm_batch, "pairs per reward model step")->check(CLI::PositiveNumber);
  app.add_option("--lrm-learning-rate", o.lrm_rate, "reward model learning rate");
  app.add_option("--lrm-guidance", o.lrm_guidance, "visual feature enhancement g; 1 = off");
  app.add_option("--iterations", o.iterations, "LPO roll-outs")->check(CLI::PositiveNumber);
  app.add_option("--prompts", o.prompts_per_iteration, "prompts per roll-out")->check(CLI::PositiveNumber);
  app.add_option("--train-batch-size", o.train_batch, "pairs per LPO optimiser step")->check(CLI::PositiveNumber);
  app.add_option("--rank", o.lora_rank, "LoRA rank")->check(CLI::Range(1, 32));
  app.add_option("--learning-rate", o.lpo_rate, "LPO learning rate");
  app.add_option("--beta", o.beta, "LPO beta");
  app.add_option("--threshold-quantile", o.threshold_quantile, "share of the pairs that thresholds reject")->check(CLI::Range(0.01, 0.99));
  app.add_option("--captions", o.captions, "captions of the evaluation")->check(CLI::PositiveNumber);
  app.add_option("--seeds", o.seeds, "pictures per caption of the evaluation")->check(CLI::PositiveNumber);
  CLI11_PARSE(app, argc, argv);
  std::string command = "demo";
  for (int i = 1; i < argc; ++i) command += std::string(" ") + argv[i];
  return examples::run("demo", [&] { program(o, command); });
}
