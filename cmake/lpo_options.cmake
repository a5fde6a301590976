# SPDX-License-Identifier: MIT
# lpo_options: how lpo's own tests, benchmarks and examples are compiled. Never part of lpo::lpo, because the instruction
# set and the warnings of a program are its author's choice.
include(CheckCXXCompilerFlag)

add_library(lpo_options INTERFACE)
target_link_libraries(lpo_options INTERFACE lpo)
set(lpo_warnings -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion)
target_compile_options(lpo_options INTERFACE ${lpo_warnings} $<$<BOOL:${LPO_WERROR}>:-Werror>)

# Measured with g++ 12: false maybe-uninitialized warnings from its own AVX-512 intrinsics and from Eigen after inlining, false
# array-bounds warnings from std::shared_ptr, and false restrict warnings from std::string's operator+ (GCC bug 105651).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(lpo_options INTERFACE -Wno-maybe-uninitialized -Wno-restrict -Wno-array-bounds
                                               -Wno-error=stringop-overflow)
endif()

# Measured: the -mtune that -march=native implies on AMD's Zen makes g++ fold loads into Eigen's matrix kernel and costs it
# 17-30 %; generic tuning does not, and other machines lose nothing.
if(LPO_NATIVE)
  check_cxx_compiler_flag("-march=native -mtune=generic" lpo_accepts_march_native)
  if(lpo_accepts_march_native)
    # A target with the property LPO_BASELINE keeps the compiler's default instruction set.
    target_compile_options(lpo_options INTERFACE
      $<$<NOT:$<BOOL:$<TARGET_PROPERTY:LPO_BASELINE>>>:-march=native$<SEMICOLON>-mtune=generic>)
  endif()
endif()

# Libraries that only programs use, each where it is installed.
find_package(CLI11 QUIET)
find_package(tomlplusplus QUIET)
foreach(library IN ITEMS lpo::png lpo::jpeg CLI11::CLI11 tomlplusplus::tomlplusplus)
  if(TARGET ${library})
    target_link_libraries(lpo_options INTERFACE ${library})
  endif()
endforeach()
