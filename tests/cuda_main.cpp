// SPDX-License-Identifier: MIT
// The entry point of test programs that need a CUDA device, or LPO_TEST_DEVICES of them: without these they are skipped
// (exit code 77), never passed.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <cstdio>

#include <cuda_runtime.h>

#if !defined(LPO_TEST_DEVICES)
#define LPO_TEST_DEVICES 1
#endif

int main(int argc, char** argv) {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices < LPO_TEST_DEVICES) {
    std::printf("skipped: %d CUDA devices, %d needed\n", devices, LPO_TEST_DEVICES);
    return 77;
  }
  return doctest::Context(argc, argv).run();
}
