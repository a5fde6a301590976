// SPDX-License-Identifier: MIT
// The earlier name of Checkpoint, from when it read safetensors alone.
#pragma once

#include <lpo/io/checkpoint.hpp>

namespace lpo::inline LPO_ABI {

using SafetensorsDirectory = Checkpoint;

}  // namespace lpo::inline LPO_ABI
