// SPDX-License-Identifier: MIT
// The exceptions lpo throws, each with a stable id, and the cold function that words them.
#pragma once

#include <charconv>
#include <concepts>
#include <exception>
#include <string>
#include <string_view>
#include <utility>

#include <lpo/base/config.hpp>

namespace lpo::inline LPO_ABI {

/// Root of everything lpo throws. `what()` reads `[operation] what differs; what to do`; `id()` names the page in
/// docs/errors.md, for example "lpo.shape".
class Error : public std::exception {
 public:
  Error(const char* id, std::string text) : id_(id), text_(std::move(text)) {}
  const char* what() const noexcept override { return text_.c_str(); }
  const char* id() const noexcept { return id_; }

 private:
  const char* id_;
  std::string text_;
};

/// Extents that do not fit together.
class ShapeError : public Error {
 public:
  explicit ShapeError(std::string text) : Error("lpo.shape", std::move(text)) {}
};

/// An argument or option outside its range.
class ValueError : public Error {
 public:
  explicit ValueError(std::string text) : Error("lpo.value", std::move(text)) {}
};

/// No device, wrong architecture, out of memory, failed launch.
class DeviceError : public Error {
 public:
  explicit DeviceError(std::string text) : Error("lpo.device", std::move(text)) {}
};

/// The DeviceError of memory that ran out.
class DeviceMemoryError : public DeviceError {
 public:
  using DeviceError::DeviceError;
};

/// A file that cannot be read or written, or whose content is not what it should be.
class FileError : public Error {
 public:
  explicit FileError(std::string text) : Error("lpo.file", std::move(text)) {}
};

/// A progress callback asked long work to stop; what was complete is saved.
class CancelledError : public Error {
 public:
  explicit CancelledError(std::string text) : Error("lpo.cancelled", std::move(text)) {}
};

namespace detail {

inline std::string text_of(std::string_view part) { return std::string(part); }
inline std::string text_of(const char* part) { return part; }
inline std::string text_of(const std::string& part) { return part; }
inline std::string text_of(char part) { return std::string(1, part); }
inline std::string text_of(bool part) { return part ? "true" : "false"; }
/// The shortest digits that give the number back: 1e-07, 0.25, 5.
template <std::floating_point Number>
std::string text_of(Number number) {
  char digits[64];
  return std::string(digits, std::to_chars(digits, digits + sizeof digits, number).ptr);
}
using std::to_string;
/// Whole numbers, and lpo types with a `to_string` of their own, such as Extents.
template <class Part>
std::string text_of(const Part& part)
  requires(!std::floating_point<Part> && requires { to_string(part); })
{
  return to_string(part);
}

}  // namespace detail

/// Joins strings, numbers and extents into one message: `message("expects ", 4, " channels")`.
template <class... Parts>
LPO_COLD std::string message(const Parts&... parts) {
  std::string text;
  ((text += detail::text_of(parts)), ...);
  return text;
}

}  // namespace lpo::inline LPO_ABI
