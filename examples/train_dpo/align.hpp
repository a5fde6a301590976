// SPDX-License-Identifier: MIT
// The run itself: encode the pictures, read the model, train, draw now and then, log, write the result and its report.
#pragma once

#include <cstdio>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>

#include "../common/console.hpp"
#include "../common/tensorboard.hpp"
#include "job.hpp"
#include "results.hpp"

namespace train_dpo {

using examples::Device;

template <const examples::ModelFamily& F, class T>
void align(const Job& job) {
  const Options& o = job.options;
  const std::string& folder = o.output_dir;
  auto context = examples::make_context(o.threads, job.processes);
  // The model is compared with what this program is compiled for before pictures are encoded.
  const auto policy = std::make_unique<examples::Policy<F, T>>(job.policy());
  Results results(job);
  if (job.data.has_pictures())
    examples::on_first(job.processes, [&] {
      lpo::Tape<Device> tape(context);
      const auto report = examples::encode_data_set<F>(job.pairs(), tape, job.data, o.cache_dir);
      examples::print_counts(report, job.pairs());
      results.encoded(report);
    });
  if (o.encode_only) return;
  std::fprintf(stderr, "reading %s\n", job.model.path().c_str());
  policy->read();
  const auto pairs = examples::load_pairs<F>(job.pairs(), job.data, o.cache_dir,
                                             [&](const std::string& caption) { return policy->text.ids(caption); });
  const auto validation = std::make_unique<examples::ValidationPictures<F, T>>(context, job.validation(), *policy);

  const lpo::NoiseSchedule schedule(job.schedule);
  // Pairs trained without their prompt have an encoded empty one, SDXL's too.
  auto text = policy->text.encoder("", lpo::EmptyPrompt::encoded, job.resolution, job.resolution);
  std::unique_ptr<examples::EventWriter> events;
  std::function<void(const std::string&)> save_checkpoint;  // the trainer that it needs comes later
  lpo::DpoTrainerOptions options = job.trainer;
  options.on_metrics = [&](index_t step, const lpo::MetricValues& values) { events->scalars(step, values); };
  options.checkpoint_files = [&](const std::string& into) { save_checkpoint(into); };
  lpo::DpoTrainer trainer(context, policy->unet, policy->store, text, schedule, options,
                          examples::make_ranks(context, job.processes));
  if (policy->reference) trainer.set_reference(*policy->reference);
  using Averages = examples::WithAverages<std::remove_pointer_t<decltype(trainer.ema())>>;
  save_checkpoint = [&](const std::string& into) { examples::save_checkpoint_policy(*policy, trainer.ema(), into); };

  examples::ProgressBar bar;
  index_t drawn_at = -1;
  const auto progress = [&](const lpo::Progress& p) {
    if (!job.processes.first()) return bar(p);
    if (!events) events = std::make_unique<examples::EventWriter>(folder, p.first_step);
    const bool go_on = bar(p);
    const bool due = p.step == 0 || p.step == p.total || (o.validation_steps > 0 && p.step % o.validation_steps == 0);
    if (!go_on || !due || drawn_at == p.step || !validation->wanted()) return go_on;
    drawn_at = p.step;
    const Averages averages(trainer.ema());
    try {
      for (const auto& picture : validation->draw(p.step))
        events->picture(p.step, picture.tag, picture.height, picture.width, picture.png);
    } catch (const lpo::CancelledError&) {
      return false;
    }
    return true;
  };

  try {
    results.finish(trainer.train(pairs, progress));
  } catch (...) {
    if (job.processes.first()) try {
        results.write("stopped");
      } catch (const lpo::FileError& error) {  // why it stopped matters more
        std::fprintf(stderr, "\nno report: %s\n", error.what());
      }
    throw;
  }
  if (!job.processes.first()) return;
  std::string saved;
  {
    const Averages averages(trainer.ema());
    saved = policy->save(folder);
  }
  results.write("finished");
  std::printf("%s\n%s/report.html\n", saved.c_str(), folder.c_str());
}

}  // namespace train_dpo
