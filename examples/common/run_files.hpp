// SPDX-License-Identifier: MIT
// What a run puts into its folder once its trainer has begun: the settings, and the event file for TensorBoard.
#pragma once

#include <cstdio>
#include <memory>
#include <string>

#include <lpo/base/extents.hpp>
#include <lpo/io/file.hpp>

#include "tensorboard.hpp"

namespace examples {

/// For the first call of a trainer's progress: by then it has refused settings that a resumed run may not have, and the
/// folder still holds those of the run before.
inline std::unique_ptr<EventWriter> begin_run_files(const std::string& folder, const std::string& settings,
                                                    lpo::index_t first_step) {
  lpo::write_text_file(folder + "/config.toml", settings);
  return std::make_unique<EventWriter>(folder, first_step);
}

/// Says on stderr that a step takes more pairs than there are, so that some are in it several times; `remedy` names options.
inline void note_large_step(lpo::index_t pairs_of_step, lpo::index_t pairs, const char* remedy) {
  if (pairs_of_step <= pairs) return;
  std::fprintf(stderr,
               "note: an optimizer step takes %lld pairs, and there are %lld: they come several times in it; %s makes it "
               "smaller\n",
               static_cast<long long>(pairs_of_step), static_cast<long long>(pairs), remedy);
}

}  // namespace examples
