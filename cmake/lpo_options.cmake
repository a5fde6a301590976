# SPDX-License-Identifier: MIT
# lpo_options: how lpo's own tests, benchmarks and examples are compiled. Never part of lpo::lpo, because the instruction
# set and the warnings of a program are its author's choice.
include(CheckCXXCompilerFlag)

add_library(lpo_options INTERFACE)
target_link_libraries(lpo_options INTERFACE lpo)
set(lpo_warnings -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Wno-sign-conversion)
target_compile_options(lpo_options INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${lpo_warnings};$<$<BOOL:${LPO_WERROR}>:-Werror>>")

# Measured with g++ 12: false maybe-uninitialized warnings from its own AVX-512 intrinsics and from Eigen after inlining, false
# array-bounds warnings from std::shared_ptr, and false restrict warnings from std::string's operator+ (GCC bug 105651).
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  target_compile_options(lpo_options INTERFACE
    "$<$<COMPILE_LANGUAGE:CXX>:-Wno-maybe-uninitialized;-Wno-restrict;-Wno-array-bounds;-Wno-error=stringop-overflow>")
endif()

# Measured: the -mtune that -march=native implies on AMD's Zen makes g++ fold loads into Eigen's matrix kernel and costs it
# 17-30 %; generic tuning does not, and other machines lose nothing.
if(LPO_NATIVE)
  check_cxx_compiler_flag("-march=native -mtune=generic" lpo_accepts_march_native)
  if(lpo_accepts_march_native)
    # A target with the property LPO_BASELINE keeps the compiler's default instruction set.
    target_compile_options(lpo_options INTERFACE
      "$<$<AND:$<COMPILE_LANGUAGE:CXX>,$<NOT:$<BOOL:$<TARGET_PROPERTY:LPO_BASELINE>>>>:-march=native;-mtune=generic>")
  endif()
endif()

# What continuous integration builds on two cores: inner loops for one instruction set, except in targets with the property
# LPO_ALL_ISAS, whose tests choose among several; no optimiser for targets with LPO_ONLY_STARTED, which compute little in tests.
if(LPO_QUICK_BUILD)
  target_compile_definitions(lpo_options INTERFACE "$<$<NOT:$<BOOL:$<TARGET_PROPERTY:LPO_ALL_ISAS>>>:LPO_ONE_ISA>")
  target_compile_options(lpo_options INTERFACE
    "$<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:$<TARGET_PROPERTY:LPO_ONLY_STARTED>>>:-O0>")
endif()

# Libraries that only programs use, each where it is installed.
find_package(CLI11 QUIET)
find_package(tomlplusplus QUIET)
find_package(LibArchive QUIET)
foreach(library IN ITEMS lpo::png lpo::jpeg CLI11::CLI11 LibArchive::LibArchive)
  if(TARGET ${library})
    target_link_libraries(lpo_options INTERFACE ${library})
  endif()
endforeach()

# lpo_cuda_options: the same for .cu files. -Wpedantic is left out, because the files that nvcc hands to the host compiler are
# not its author's code.
if(LPO_CUDA)
  add_library(lpo_cuda_options INTERFACE)
  target_link_libraries(lpo_cuda_options INTERFACE lpo_cuda $<TARGET_NAME_IF_EXISTS:lpo_cudnn>)
  set(lpo_host_warnings -Wall,-Wextra,-Wshadow,-Wconversion,-Wno-sign-conversion,-Wno-array-bounds,-Wno-restrict)
  target_compile_options(lpo_cuda_options INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=${lpo_host_warnings}>"
    "$<$<COMPILE_LANGUAGE:CUDA>:-std=c++20>"  # CMake 3.25 does not know the dialects of newer toolkits
    "$<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${LPO_WERROR}>>:-Werror=all-warnings>")
endif()
