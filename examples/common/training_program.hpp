// SPDX-License-Identifier: MIT
// What programs that train do before they train: read their model's size and names of options, keep to one run a
// folder, leave the settings in it.
#pragma once

#include <cstdio>
#include <optional>
#include <string>

#include <lpo/io/file.hpp>
#include <lpo/io/folder_lock.hpp>
#include <lpo/optim/schedule.hpp>
#include <lpo/train/training_checkpoint.hpp>

#include "config_file.hpp"
#include "console.hpp"
#include "model_source.hpp"
#include "option_list.hpp"
#include "ranks.hpp"

namespace examples {

/// How the program was called, under its own name.
inline std::string command_line(const std::string& program, int argc, char** argv) {
  std::string text = program;
  for (int i = 1; i < argc; ++i) text += std::string(" ") + argv[i];
  return text;
}

/// Adds the options that name a model: its files, and what they may leave open.
template <class Options>
void add_model_options(CLI::App& app, Options& o) {
  const OptionList add{app};
  add("pretrained_model_name_or_path", o.model, "model: a diffusers folder, or a single .safetensors or .ckpt file")
      ->required();
  add("variant", o.variant, "weights ….VARIANT.safetensors, for example fp16");
  add("tokenizer", o.tokenizer,
      "for single files, which have none: a pipeline's or tokenizer's folder, or a tokenizer's file");
  add("prediction_type", o.prediction_type, "epsilon or v_prediction, where the model does not say [the model's]")
      ->check(CLI::IsMember({"epsilon", "v_prediction"}));
}

/// A learning rate's course by the name that --lr_scheduler has for it.
inline lpo::LearningRateKind learning_rate_kind(const std::string& name) {
  using Kind = lpo::LearningRateKind;
  if (name == "constant_with_warmup") return Kind::constant_with_warmup;
  if (name == "linear") return Kind::linear;
  if (name == "cosine") return Kind::cosine;
  return name == "log_warmup_decay" ? Kind::log_warmup_decay : Kind::constant;
}

/// Says on stderr that --lr_warmup_steps was given for nothing.
inline void note_unused_warmup(const CLI::App& app, const std::string& lr_scheduler, lpo::index_t lr_warmup_steps) {
  if (lr_scheduler == "constant" && lr_warmup_steps > 0 && app.get_option("--lr_warmup_steps")->count() > 0)
    std::fprintf(stderr, "note: --lr_warmup_steps %lld has no effect with --lr_scheduler constant; constant_with_warmup has it\n",
                 static_cast<long long>(lr_warmup_steps));
}

/// Height and width of the pictures: `asked`, or the model's for 0. ValueError where the UNet cannot halve their
/// latents.
inline int training_resolution(const std::string& program, int asked, const ModelSource& model,
                               const ModelFamily& family, std::optional<lpo::PredictionType> predicted = {}) {
  const int resolution = asked > 0 ? asked : model.resolution(family, predicted);
  const int multiple = family.vae.factor() << (family.unet.levels - 1);
  if (resolution % multiple != 0)
    throw lpo::ValueError(
        lpo::message("[", program, "] --resolution is ", resolution, "; this model draws multiples of ", multiple));
  return resolution;
}

/// ValueError if `folder` has checkpoints, which those of another run would replace.
inline void refuse_earlier_run(const std::string& program, const std::string& folder) {
  if (!lpo::CheckpointFolder(folder, 0).steps().empty())
    throw lpo::ValueError("[" + program + "] --output_dir " + folder +
                          " has checkpoints of an earlier run; go on with it with --resume, or name another folder");
}

/// The options that are in effect, as config.toml has them. A new run's are written to `folder` at once; a run that has
/// checkpoints keeps its own until its trainer has taken these (begin_run_files).
inline std::string keep_settings(const CLI::App& app, const std::string& folder) {
  lpo::make_directories(folder);
  const std::string settings = resolved_config(app);
  if (lpo::CheckpointFolder(folder, 0).steps().empty()) lpo::write_text_file(folder + "/config.toml", settings);
  return settings;
}

/// A run's folder, in which no other run writes while this lives, and the settings in it. Of ranks, which are one run, the
/// first holds it; where it cannot, all throw.
class RunFolder {
 public:
  RunFolder(const CLI::App& app, const std::string& folder, const Processes& processes) {
    on_first(processes, [&] {
      lpo::make_directories(folder);
      lock_.emplace(folder);
      settings_ = keep_settings(app, folder);
    });
  }
  /// As config.toml has them; empty on other ranks.
  const std::string& settings() const { return settings_; }

 private:
  std::optional<lpo::FolderLock> lock_;
  std::string settings_;
};

/// Trains a policy of the model's family F in the type T of --dtype, or prints what that needs. `make_job(o, model,
/// family)` decides everything else; `align` and `print_plan` are called as operator()<F, T>(job).
template <class Options, class MakeJob, class Align, class PrintPlan>
void run_policy_program(const Options& o, const CLI::App& app, const std::string& command, const Processes& processes,
                        const MakeJob& make_job, const Align& align, const PrintPlan& print_plan) {
  note_unused_warmup(app, o.lr_scheduler, o.lr_warmup_steps);
  const ModelSource model(o.model, o.variant, o.tokenizer);
  with_family(
      model.path(), [&](const ModelFamily& family) { return model.differences(family); },
      [&]<const ModelFamily & F>() {
        auto job = make_job(o, model, F);
        job.command = command;
        job.processes = processes;
        with_storage(o.dtype, [&]<class T>() {
          const auto plan = [&] { print_plan.template operator()<F, T>(job); };
          if (o.dry_run) return plan();
          const RunFolder folder(app, o.output_dir, processes);
          job.settings = folder.settings();
          run_within_memory([&] { align.template operator()<F, T>(job); }, plan);
        });
      });
}

}  // namespace examples
