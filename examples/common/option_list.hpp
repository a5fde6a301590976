// SPDX-License-Identifier: MIT
// OptionList: how the programs name their options.
#pragma once

#include <cmath>
#include <cstdlib>
#include <string>

#include <CLI/CLI.hpp>

#include "device_options.hpp"
#include "options.hpp"

namespace examples {

/// The check of a type that files are written in: what dtype_of knows, or "keep".
inline CLI::IsMember dtype_or_keep() {
  return CLI::IsMember({"keep", "float32", "float16", "bfloat16", "fp32", "fp16", "bf16"});
}

/// Rejects "nan", "inf" and numbers beyond float's, which parsers read and ranges let through: every comparison with NaN
/// is false. Texts that are no numbers are left to the option.
inline CLI::Validator finite_number() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        char* end = nullptr;
        const double value = std::strtod(text.c_str(), &end);
        if (end == text.c_str() || std::isfinite(static_cast<float>(value))) return "";
        return text + " is not a finite number";
      },
      "");
}

/// Gives that check to every floating-point option of a program and of its subcommands. Call it when all are added.
inline void expect_finite_numbers(CLI::App& app) {
  for (CLI::Option* const option : app.get_options())
    if (option->get_type_name().starts_with("FLOAT")) option->check(finite_number());
  for (CLI::App* const command : app.get_subcommands([](CLI::App*) { return true; })) expect_finite_numbers(*command);
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

/// Programs for the CPU read these options, so that settings files are good for both, and do not show them.
inline void add_device_options(const OptionList& add, DeviceOptions& o, const Build& build = this_build) {
  const auto shown = [&](CLI::Option* option) {
    if (!build.cuda) option->group("");
    return option;
  };
  shown(add("cudnn", o.cudnn,
            build.cudnn ? "convolutions by cuDNN: never; same_bits: where it is faster and changes no bit; fastest: "
                          "wherever it is faster, for bits that two runs may not share"
                        : "convolutions by cuDNN: never, since this program is built without it"))
      ->check(CLI::IsMember({"never", "same_bits", "fastest"}))
      ->check(CLI::Validator(
          [build](std::string& use) -> std::string {
            if (build.cudnn || use == "never") return "";
            return "--cudnn " + use + " needs a program for GPUs that is built with cuDNN 9 (LPO_CUDNN), and this one "
                                      "is not; only never is possible";
          },
          ""));
  shown(add("time_products", o.time_products,
            "true or false: choose algorithms of large 16-bit matrix products by time, among those of the same bits"));
}

}  // namespace examples
