// SPDX-License-Identifier: MIT
// What train_lrm can be told, and what the pipelines work from.
#pragma once

#include <string>
#include <vector>

#include <lpo/reward/mpcf.hpp>
#include <lpo/train/lrm_trainer.hpp>

#include "../common/encode_pictures.hpp"
#include "../common/ranks.hpp"

namespace train_lrm {

using examples::DataSet, examples::Device, lpo::index_t;

/// The command line; what is absent comes from the model.
struct Options {
  std::string model, variant, tokenizer, lrm, text_projection;
  std::string train_data, validation_data, cache_dir, output_dir = "lrm-out";
  std::string score_file;
  lpo::MpcfOptions mpcf;
  int resolution = 0, threads = 0;
  lpo::index_t validation_pairs = 0;
  lpo::index_t micro_batch_size = -1;
  std::vector<int> validation_timesteps;
  lpo::RewardFeatureOptions features;
  std::string loss = "pair", batch_unit = "pair", pair_noise = "independent", lr_scheduler = "log_warmup_decay",
              lr_first_step = "zero", save_dtype = "float32";
  bool freeze_text_encoder = false, single_scale = false, dry_run = false, encode_only = false;
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

  examples::PairSettings training_pairs() const { return {model, resolution, options.score_file, options.mpcf, true}; }
  examples::PairSettings validation_pairs() const { return {model, resolution, {}, {}, false}; }
};

/// Encodes what is not in a cache yet, trains, exports and reports; returns the program's exit status.
template <const examples::ModelFamily& F>
int train(const Job& job);

}  // namespace train_lrm
