// SPDX-License-Identifier: MIT
// Compares the model before and after alignment on captions that no training saw.
#include "stages.hpp"

namespace demo {

void evaluate_model(Studio& studio, const Options& o, tw::DemoReport& report) {
  const auto captions = sample_captions(o.seed + 600, o.captions, tw::Split::evaluation);
  const auto repeated = repeat_captions(captions, o.seeds);
  tw::GenerateOptions options;
  options.guidance_scale = o.guidance_scale;
  options.seed = o.seed + 700;
  std::vector<std::vector<tw::Image>> images;
  std::vector<std::vector<tw::Measurement>> measured;
  for (const bool adapters : {false, true}) {
    options.adapters = adapters;
    lpo::ProgressReporter reporter(adapters ? "eval aligned" : "eval base", 0, static_cast<index_t>(repeated.size()), std::ref(studio.bar));
    const auto latents = studio.generate(repeated, options, [&](index_t done) { return reporter.report(done); });
    images.push_back(studio.decode(latents.view()));
    measured.push_back(studio.measure(images.back(), repeated));
  }
  std::vector<tw::CaptionOutcome> outcomes;
  for (std::size_t i = 0; i < captions.size(); ++i) {
    const auto begin = static_cast<std::ptrdiff_t>(i) * o.seeds, end = begin + o.seeds;
    const auto part = [&](const auto& all) { return std::vector(all.begin() + begin, all.begin() + end); };
    tw::CaptionOutcome outcome;
    outcome.caption = captions[i];
    outcome.before = part(measured[0]);
    outcome.after = part(measured[1]);
    outcome.diversity_before = tw::mean_pairwise_distance(part(images[0]));
    outcome.diversity_after = tw::mean_pairwise_distance(part(images[1]));
    if (report.grid.size() < 16)
      report.grid.push_back({captions[i], part(images[0]).front(), part(images[1]).front(),
                             static_cast<double>(outcome.before.front().score), static_cast<double>(outcome.after.front().score)});
    outcomes.push_back(std::move(outcome));
  }
  tw::EvaluationOptions evaluation;
  evaluation.seed = o.seed;
  report.evaluation = tw::evaluate(outcomes, evaluation);
}

}  // namespace demo
