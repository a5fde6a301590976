// SPDX-License-Identifier: MIT
// OptionList: how the programs name their options.
#pragma once

#include <cerrno>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <type_traits>

#include <CLI/CLI.hpp>

#include <lpo/base/config.hpp>

#include "device_options.hpp"
#include "options.hpp"

namespace examples {

namespace detail {

/// The number that is all of `text`, or nothing.
inline std::optional<double> number_of(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  return end == text.c_str() || *end != '\0' ? std::nullopt : std::optional(value);
}

/// A check that says what is wrong in words; CLI11's own names the largest double. `label` stands in the help.
inline CLI::Validator number_check(const char* label, const char* expected, bool (*holds)(double)) {
  return CLI::Validator(
      [=](std::string& text) -> std::string {
        const auto value = number_of(text);
        if (value && !std::isfinite(*value)) return text + " is not a finite number";
        return value && holds(*value) ? "" : text + " is not " + expected;
      },
      label);
}

}  // namespace detail

/// Checks of options that are numbers.
inline const CLI::Validator positive = detail::number_check("POSITIVE", "a number above 0", [](double x) { return x > 0; });
inline const CLI::Validator not_negative =
    detail::number_check("NONNEGATIVE", "a number of at least 0", [](double x) { return x >= 0; });
inline const CLI::Validator power_of_two = detail::number_check("POWER OF TWO", "a power of two, such as 1024", [](double x) {
  int exponent = 0;
  return x > 0 && std::frexp(x, &exponent) == 0.5;
});

/// The check of a seed: CLI11 takes -1 as 2^64 - 1.
inline const CLI::Validator seed_range(
    [](std::string& text) -> std::string {
      errno = 0;
      char* end = nullptr;
      std::strtoull(text.c_str(), &end, 0);
      if (text.find('-') == text.npos && errno == 0 && end != text.c_str() && *end == '\0') return "";
      return text + " is not a whole number from 0 to 18446744073709551615";
    },
    "");

/// Adds `--version`: of the library that the program is made of.
inline void add_version_option(CLI::App& app, const std::string& program) {
  app.set_version_flag("--version", program + " of lpo " LPO_VERSION_STRING, "print the version and stop");
}

/// The check of a type that files are written in: what dtype_of knows, or "keep".
inline CLI::IsMember dtype_or_keep() {
  return CLI::IsMember({"keep", "float32", "float16", "bfloat16", "fp32", "fp16", "bf16"});
}

/// Rejects "nan", "inf" and numbers beyond float's, which parsers read and ranges let through: every comparison with NaN
/// is false. Texts that are no numbers are left to the option.
inline CLI::Validator finite_number() {
  return CLI::Validator(
      [](std::string& text) -> std::string {
        const auto value = detail::number_of(text);
        if (!value || std::isfinite(static_cast<float>(*value))) return "";
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
    CLI::Option* const option = app.add_option(both_spellings(name), value, text);
    if constexpr (std::is_same_v<T, std::uint64_t>) option->check(seed_range);  // seeds are the only options of this type
    return option;
  }
  CLI::Option* flag(const char* name, bool& value, const char* text) const {
    return app.add_flag(both_spellings(name), value, text);
  }
};

/// Programs read all of these options, so that settings files are good for every device, and show those of their own.
inline void add_device_options(const OptionList& add, DeviceOptions& o, const Build& build = this_build) {
  const auto shown_if = [](bool own, CLI::Option* option) {
    if (!own) option->group("");
    return option;
  };
  const auto shown = [&](CLI::Option* option) { return shown_if(build.cuda, option); };
  shown_if(!build.cuda, add("keep_packed", o.keep_packed,
                            "true or false: pack frozen weights for matrix products once and keep that copy, for speed; --dry_run "
                            "says what memory it takes"));
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
