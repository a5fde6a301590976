// SPDX-License-Identifier: MIT
// Settings of a run as a TOML file: read with --config, and written back as they came out.
#pragma once

#include <string>

#include <CLI/CLI.hpp>

#include <lpo/io/file.hpp>

namespace examples {

/// `--config FILE`: a TOML file of the program's options, which the command line overrides. Keys that are no options
/// are an error.
inline void add_config_option(CLI::App& app) {
  app.set_config("--config", "", "TOML file of these options; the command line wins");
  app.allow_config_extras(CLI::config_extras_mode::error);
}

/// Writes every option as it is in effect, with its description; `--config` reads the file back. Options without a
/// value are comments: an empty text is not always one that an option takes.
inline void save_resolved_config(const CLI::App& app, const std::string& path) {
  std::string text = app.config_to_str(true, true);
  for (const std::string empty : {"=\"\"\n", "=\"[]\"\n"})
    for (std::size_t at = 0; (at = text.find(empty, at)) != std::string::npos;) {
      const std::size_t line = text.rfind('\n', at) + 1;
      text.replace(line, text.find('\n', at) - line, "# " + text.substr(line, at - line) + " =");
    }
  lpo::write_text_file(path, text);
}

}  // namespace examples
