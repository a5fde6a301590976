// expect: lpo kernel: no gemm for this device; include <lpo/lpo.hpp> for Cpu
// SPDX-License-Identifier: MIT
// A kernel is used, but no backend was included.
#include <lpo/kernel/gemm.hpp>

void run(lpo::Context<lpo::Cpu>& context) { lpo::kernel::Gemm<lpo::Cpu>::run(context, lpo::kernel::GemmParams<float>{}); }
