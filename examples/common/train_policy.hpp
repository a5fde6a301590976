// SPDX-License-Identifier: MIT
// A policy's training, whatever the method: log, pictures now and then, checkpoints, the weights and the report at the end.
#pragma once

#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>

#include "console.hpp"
#include "ranks.hpp"
#include "run_files.hpp"
#include "validation_pictures.hpp"

namespace examples {

/// Everything goes to `folder`, by rank 0; `settings` are its config.toml. What differs between the programs:
///   - `make(add_hooks)` gives the trainer, after it has called `add_hooks(options)`;
///   - `data` is what the trainer trains on;
///   - `picture_count(progress)` is the number under which pictures are drawn now, or none when they are not due;
///   - `results` makes the report of `finish(trainer's report)`, also of a run that stopped.
template <const ModelFamily& F, class T, class Data, class Results, class Make, class PictureCount>
void train_policy(const Processes& processes, const std::string& folder, const std::string& settings,
                  Policy<F, T>& policy, ValidationPictures<F, T>& validation, const Data& data, Results& results,
                  const Make& make, const PictureCount& picture_count) {
  std::unique_ptr<EventWriter> events;
  std::function<void(const std::string&)> save_checkpoint;  // the trainer that it needs comes later
  auto trainer = make([&](auto& options) {
    options.on_metrics = [&](lpo::index_t step, const lpo::MetricValues& values) { events->scalars(step, values); };
    options.checkpoint_files = [&](const std::string& into) { save_checkpoint(into); };
    options.more_settings.merge(policy.resume_settings());
  });
  if (policy.reference) trainer.set_reference(*policy.reference);
  using Averages = WithAverages<std::remove_pointer_t<decltype(trainer.ema())>>;
  save_checkpoint = [&](const std::string& into) { save_checkpoint_policy(policy, trainer.ema(), into); };

  ProgressBar bar;
  lpo::index_t drawn_at = -1;
  const auto progress = [&](const lpo::Progress& p) {
    if (!processes.first() || p.preparing) return bar(p);
    if (!events) events = begin_run_files(folder, settings, p.first_step);
    const bool go_on = bar(p);
    const std::optional<lpo::index_t> count = picture_count(p);
    if (!go_on || !count || drawn_at == p.step || !validation.wanted()) return go_on;
    drawn_at = p.step;
    const Averages averages(trainer.ema());
    try {
      for (const auto& picture : validation.draw(*count, p.first_step > 0))
        events->picture(p.step, picture.tag, picture.height, picture.width, picture.png);
    } catch (const lpo::CancelledError&) {
      return false;
    }
    return true;
  };

  try {
    results.finish(trainer.train(data, progress));
  } catch (...) {
    if (events) try {  // a run that did not begin leaves the report of the one before
        results.write("stopped");
      } catch (const lpo::FileError& error) {  // why it stopped matters more
        std::fprintf(stderr, "\nno report: %s\n", error.what());
      }
    throw;
  }
  if (!processes.first()) return;
  if (const std::string name = lpo::first_non_finite_weight(policy.store, true); !name.empty()) {
    results.write("stopped");
    throw lpo::ValueError(lpo::message("[train] the trained weight \"", name, "\" holds NaN or an infinity; nothing was "
                                       "exported, lower learning_rate"));
  }
  std::string saved;
  {
    const Averages averages(trainer.ema());
    saved = policy.save(folder);
  }
  results.write("finished");
  std::printf("%s\n%s/report.html\n", saved.c_str(), folder.c_str());
}

}  // namespace examples
