// SPDX-License-Identifier: MIT
// What programs that train do before they train: name the model, keep to one run a folder, leave the settings in it.
#pragma once

#include <string>

#include <lpo/io/file.hpp>
#include <lpo/train/training_checkpoint.hpp>

#include "config_file.hpp"
#include "option_list.hpp"

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

/// ValueError if `folder` has checkpoints, which those of another run would replace.
inline void refuse_earlier_run(const std::string& program, const std::string& folder) {
  if (!lpo::CheckpointFolder(folder, 0).steps().empty())
    throw lpo::ValueError("[" + program + "] --output_dir " + folder +
                          " has checkpoints of an earlier run; go on with it with --resume, or name another folder");
}

/// Writes the options that are in effect to `folder`/config.toml, and returns what it wrote.
inline std::string keep_settings(const CLI::App& app, const std::string& folder) {
  lpo::make_directories(folder);
  save_resolved_config(app, folder + "/config.toml");
  return lpo::read_text_file(folder + "/config.toml");
}

}  // namespace examples
