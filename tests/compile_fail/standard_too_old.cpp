// expect: lpo needs C++20: compile with -std=c++20, or link lpo::lpo in CMake; the errors below follow from this
// flags: -std=c++17 -Wfatal-errors
// SPDX-License-Identifier: MIT
// An older standard: the first error says so. Of those that follow, compilers have their own numbers.
#include <lpo/lpo.hpp>
