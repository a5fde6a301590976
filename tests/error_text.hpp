// SPDX-License-Identifier: MIT
// The text of the exception that a call throws.
#pragma once

#include <doctest/doctest.h>

#include <string>

/// Runs `call`, which must throw an `Exception`, and returns its message.
template <class Exception, class Call>
std::string error_text(Call&& call) {
  try {
    call();
  } catch (const Exception& error) {
    return error.what();
  } catch (...) {
    FAIL("another exception was thrown");
  }
  FAIL("nothing was thrown");
  return "";
}
