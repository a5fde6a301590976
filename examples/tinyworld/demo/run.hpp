// SPDX-License-Identifier: MIT
// The whole demo as one call: what main() sees, without a network or a device in it.
#pragma once

#include <string>

#include "options.hpp"

namespace demo {

/// All stages, then the report into o.out and its summary on stdout. `command` is what the report says it was made by.
void run_stages(const Options& o, const std::string& command);

}  // namespace demo
