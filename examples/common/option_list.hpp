// SPDX-License-Identifier: MIT
// OptionList: how the programs name their options.
#pragma once

#include <CLI/CLI.hpp>

#include "options.hpp"

namespace examples {

/// The check of a type that files are written in: what dtype_of knows, or "keep".
inline CLI::IsMember dtype_or_keep() {
  return CLI::IsMember({"keep", "float32", "float16", "bfloat16", "fp32", "fp16", "bf16"});
}

/// Adds options to a command line, each spelled with _ and with -.
struct OptionList {
  CLI::App& app;

  template <class T>
  CLI::Option* operator()(const char* name, T& value, const char* text) const {
    return app.add_option(both_spellings(name), value, text);
  }
  CLI::Option* flag(const char* name, bool& value, const char* text) const {
    return app.add_flag(both_spellings(name), value, text);
  }
};

}  // namespace examples
