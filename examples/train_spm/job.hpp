// SPDX-License-Identifier: MIT
// What train_spm can be told, and what the pipelines work from.
#pragma once

#include <string>
#include <vector>

#include <lpo/train/lrm_trainer.hpp>

#include "../common/encode_pictures.hpp"
#include "../common/ranks.hpp"

namespace train_spm {

using examples::DataSet, examples::Device, lpo::index_t;

/// The command line; what is absent comes from the model. Values are those of SPO for SD1.5 (arXiv 2406.04314).
struct Options {
  std::string model, variant, tokenizer, clip_model, preference_model;
  std::string train_data, validation_data, cache_dir, output_dir = "spm-out";
  std::string save_dtype = "float32", lr_scheduler = "constant_with_warmup";
  int resolution = 0, threads = 0;
  index_t validation_pairs = 0;
  double guidance_scale = 5;
  bool freeze_text_model = false, dry_run = false;
  std::vector<int> validation_timesteps;
  lpo::LrmTrainerOptions training;
  examples::DeviceOptions device;
};

/// Everything decided.
struct Job {
  examples::Processes processes;
  Options options;
  examples::ModelSource model;
  DataSet train, validation;  ///< validation may have no kind: there is none
  int resolution = 512;
  std::string command, settings;  ///< how it was called; the resolved settings as TOML

  examples::PairSettings training_pairs() const { return {model, resolution, {}, {}, true}; }
  examples::PairSettings validation_pairs() const { return {model, resolution, {}, {}, false}; }
};

/// Encodes what is not in a cache yet, trains, exports and reports; returns the program's exit status.
template <const examples::ModelFamily& F>
int train(const Job& job);

}  // namespace train_spm
