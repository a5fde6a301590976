// SPDX-License-Identifier: MIT
// Measures the model at its moments of a run's time and writes the run's JSON file.
#include "recorder.hpp"

#include <algorithm>
#include <array>
#include <cmath>

#include <lpo/io/file.hpp>

#include "../world/evaluate.hpp"

namespace compare {

namespace {

/// Shares of the training time after which the model is measured, besides its end.
constexpr std::array<double, 6> marks = {1.0 / 16, 1.0 / 8, 1.0 / 4, 3.0 / 8, 1.0 / 2, 3.0 / 4};

/// Four digits are enough for scores, and keep the files small.
std::vector<double> rounded(std::vector<double> values) {
  for (double& value : values) value = std::round(1e4 * value) / 1e4;
  return values;
}

double mean(const std::vector<double>& values) {
  double sum = 0;
  for (const double value : values) sum += value;
  return values.empty() ? 0.0 : sum / static_cast<double>(values.size());
}

}  // namespace

Recorder::Recorder(demo::Studio& studio, const Options& options)
    : studio_(studio),
      options_(options),
      captions_(demo::sample_captions(options.world.seed + 600, options.captions,
                                      options.tuning ? tw::Split::validation : tw::Split::evaluation)),
      begin_(cpu_seconds()) {}

Recorder::Scores Recorder::measure(index_t captions, bool adapters) {
  tw::GenerateOptions generate;
  generate.guidance_scale = options_.world.guidance_scale;
  generate.seed = options_.world.seed + 700;
  generate.adapters = adapters;
  const std::vector<std::string> some(captions_.begin(),
                                      captions_.begin() + std::min<index_t>(captions, options_.captions));
  const auto repeated = demo::repeat_captions(some, options_.pictures);
  const auto latents = studio_.generate(repeated, generate, [](index_t) { return examples::interrupted() == 0; });
  const auto images = studio_.decode(latents.view());
  Scores scores;
  for (const tw::Measurement& one : studio_.measure(images, repeated)) {
    scores.score.push_back(one.score);
    scores.aesthetic.push_back(one.aesthetic);
    scores.accuracy.push_back(one.accuracy);
  }
  for (auto first = images.begin(); first != images.end(); first += options_.pictures)
    scores.distance.push_back(tw::mean_pairwise_distance({first, first + options_.pictures}));
  return scores;
}

void Recorder::add_point(double trained, std::vector<double> scores) {
  points_.push_back({{"iteration", iteration_},
                     {"cpu_seconds", trained},
                     {"flops", work_.flops},
                     {"samples", work_.samples},
                     {"pictures", work_.pictures},
                     {"score", mean(scores)},
                     {"scores", rounded(std::move(scores))}});
}

bool Recorder::operator()(const lpo::Progress& progress) {
  if (examples::interrupted() != 0) return false;
  if (progress.step == iteration_ || progress.step == progress.first_step) return true;
  iteration_ = progress.step;
  const double share = trained_seconds() / options_.cpu_seconds;
  if (share >= 1) return false;  // finish() measures
  if (options_.curve_captions > 0 && mark_ < marks.size() && share >= marks[mark_]) {
    while (mark_ < marks.size() && share >= marks[mark_]) ++mark_;
    const double trained = trained_seconds(), begin = cpu_seconds();
    add_point(trained, measure(options_.curve_captions, true).score);
    write(false);
    paused_ += cpu_seconds() - begin;
  }
  return true;
}

void Recorder::finish(bool adapters) {
  const double trained = trained_seconds();
  const auto scores = measure(options_.captions, adapters);
  if (adapters && options_.curve_captions > 0) {  // the curve's captions are the first of all
    const auto count = std::min<index_t>(options_.curve_captions, options_.captions) * options_.pictures;
    add_point(trained, {scores.score.begin(), scores.score.begin() + count});
  }
  final_ = {{"iteration", iteration_},
            {"cpu_seconds", trained},
            {"flops", work_.flops},
            {"samples", work_.samples},
            {"score", mean(scores.score)},
            {"aesthetic", mean(scores.aesthetic)},
            {"accuracy", mean(scores.accuracy)},
            {"distance", mean(scores.distance)},
            {"scores", rounded(scores.score)},
            {"distances", rounded(scores.distance)}};
  write(true);
}

void Recorder::write(bool done) const {
  const Options& o = options_;
  lpo::OrderedJson json;
  json["method"] = o.method;
  json["seed"] = o.seed;
  json["tuning"] = o.tuning;
  json["learning_rate"] = o.learning_rate;
  json["beta"] = o.beta;
  json["batch"] = o.batch;
  json["prompts"] = o.prompts;
  json["reward_model"] = o.reward_model;
  json["divert_steps"] = {o.divert_start_step, o.divert_end_step};
  json["threshold"] = {o.threshold, o.threshold_min, o.threshold_max};
  json["cpu_limit"] = o.cpu_seconds;
  json["pictures_per_caption"] = o.pictures;
#if defined(__clang__)
  json["compiler"] = "clang " __clang_version__;
#else
  json["compiler"] = "g++ " __VERSION__;
#endif
  json["points"] = points_;
  json["final"] = final_;
  json["done"] = done;
  lpo::write_text_file(o.out, json.dump() + "\n");
}

}  // namespace compare
