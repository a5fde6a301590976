// SPDX-License-Identifier: MIT
// DeviceOptions: how the programs compute, where a device leaves a choice.
#pragma once

#include <cstdio>
#include <string>

namespace examples {

struct DeviceOptions {
  std::string cudnn = "never";  ///< of a GPU; programs for the CPU take no other value
  bool time_products = true;    ///< of a GPU
  bool keep_packed = false;     ///< of the CPU
};

/// What a program is compiled with. CMake says so in every source of the program, also in those that are C++.
struct Build {
  bool cuda = false, cudnn = false;
};
inline constexpr Build this_build{
#if defined(LPO_PROGRAM_WITH_CUDA)
    .cuda = true,
#endif
#if defined(LPO_HAS_CUDNN)
    .cudnn = true,
#endif
};

/// Their line of a plan.
inline void print_device_options(const DeviceOptions& o, const Build& build = this_build) {
  if (!build.cuda) {
    if (o.keep_packed) std::printf("device       frozen weights stay packed\n");
    return;
  }
  std::printf("device       cuDNN %s, algorithms of products %s\n", o.cudnn.c_str(),
              o.time_products ? "by time" : "by cuBLASLt's guess");
}

}  // namespace examples
