// SPDX-License-Identifier: MIT
// The run itself: encode the pictures, read the model, train, draw now and then, log, write the result and its report.
#pragma once

#include <algorithm>
#include <cstdio>
#include <memory>
#include <optional>
#include <string>

#include "../common/train_policy.hpp"
#include "job.hpp"
#include "results.hpp"

namespace train_dpo {

using examples::Device;

template <const examples::ModelFamily& F, class T>
void align(const Job& job) {
  const Options& o = job.options;
  auto context = examples::make_context(o.threads, o.device, job.processes);
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
  const auto packed = examples::keep_packed(context, policy->store, o.device);
  const auto packed_reference = examples::keep_packed(context, policy->reference_store, o.device);
  const auto pairs = examples::load_pairs<F>(job.pairs(), job.data, o.cache_dir,
                                             [&](const std::string& caption) { return policy->text.ids(caption); });
  const auto preferences = std::count_if(pairs.labels.begin(), pairs.labels.end(), [](const auto& label) { return !label.tie(); });
  examples::note_large_step(job.trainer.train_batch_size, preferences, "--gradient_accumulation_steps");
  const auto validation = std::make_unique<examples::ValidationPictures<F, T>>(context, job.validation(), *policy);

  const lpo::NoiseSchedule schedule(job.schedule);
  // Pairs trained without their prompt have an encoded empty one, SDXL's too.
  auto text = policy->text.encoder("", lpo::EmptyPrompt::encoded, job.resolution, job.resolution);
  examples::train_policy(
      job.processes, o.output_dir, job.settings, *policy, *validation, pairs, results,
      [&](const auto& add_hooks) {
        auto options = job.trainer;
        add_hooks(options);
        return lpo::DpoTrainer(context, policy->unet, policy->store, text, schedule, options,
                               examples::make_ranks(context, job.processes));
      },
      [&](const lpo::Progress& p) {
        const bool due = p.step == 0 || p.step == p.total || (o.validation_steps > 0 && p.step % o.validation_steps == 0);
        return due ? std::optional(p.step) : std::nullopt;
      });
}

}  // namespace train_dpo
