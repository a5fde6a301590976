// SPDX-License-Identifier: MIT
// What a run puts into its folder once its trainer has begun: the settings, and the event file for TensorBoard.
#pragma once

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

}  // namespace examples
