// SPDX-License-Identifier: MIT
// The demo's studio: the generator and what is done with it at every stage — draw, decode, measure.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "../../common/console.hpp"
#include "../tiny_files.hpp"
#include "../tiny_pipeline.hpp"
#include "../world/caption.hpp"
#include "../world/scorer.hpp"
#include "options.hpp"

namespace demo {

namespace tw = tinyworld;

/// Captions number 0 to count - 1 of the set `seed`.
std::vector<std::string> sample_captions(std::uint64_t seed, index_t count, tw::Split split);

/// Every caption `copies` times in a row.
std::vector<std::string> repeat_captions(const std::vector<std::string>& captions, index_t copies);

/// Everything that stays in memory through the run.
struct Studio {
  explicit Studio(const Options& options);

  /// One latent per caption [n, 8, 8, 4]; `progress(done)` returns false to cancel.
  lpo::Tensor<float, 4> generate(const std::vector<std::string>& captions, const tw::GenerateOptions& options,
                                 const std::function<bool(index_t)>& progress);

  std::vector<tw::Image> decode(const lpo::View<const float, 4, lpo::Cpu>& latents);

  std::vector<tw::Measurement> measure(std::span<const tw::Image> images, std::span<const std::string> captions);

  /// Scores of the decoded pictures, a few at a time: thousands of pictures need not be in memory together.
  std::vector<tw::Measurement> measure(const lpo::Tensor<float, 4>& latents, const std::vector<std::string>& captions);

  lpo::Executor executor;  ///< for what runs on the host whatever the device
  lpo::Context<tw::Device> context;
  lpo::Tape<tw::Device> tape;
  tw::Generator generator;
  examples::ProgressBar bar;
};

}  // namespace demo
