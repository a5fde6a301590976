// SPDX-License-Identifier: MIT
// Errors of a device: what an allocation that does not fit says, launches and kernels that fail, and the device that is
// not there.
#include <doctest/doctest.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <string>

#include <lpo/backend/cuda/context.cuh>

#include "../../programs/program.hpp"

using lpo::Cuda;

namespace {

__global__ void store_kernel(float* to, float value) { *to = value; }

/// What a DeviceError of `call` says; empty without one.
template <class Call>
std::string device_error(const Call& call) {
  try {
    call();
  } catch (const lpo::DeviceError& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("memory that does not fit: the error names what was asked for, what is in use and what to do") {
  lpo::Context<Cuda> context;
  const std::size_t too_much = std::size_t{1} << 46;  // 64 TiB
  const std::string block = device_error([&] { lpo::detail::DeviceBlock unused(too_much); });
  CHECK(block.find("[cuda memory] 67108864 MiB were asked for") == 0);
  CHECK(block.find("are in use") != std::string::npos);
  CHECK(block.find("use a smaller batch") != std::string::npos);
  CHECK_THROWS_AS(context.activations().allocate(too_much), lpo::DeviceMemoryError);

  float number = 3, back = 0;
  auto* memory = context.activations().allocate(sizeof(float));
  context.copy_from_host(memory, &number, sizeof(number));
  context.copy_to_host(&back, memory, sizeof(back));
  CHECK(back == 3.0f);
}

TEST_CASE("no device, one that is not there, one without room, and code for another architecture") {
  CHECK(device_error([] { lpo::detail::cuda_check(cudaErrorNoDevice, "Context<Cuda>"); })
            .starts_with("[Context<Cuda>] no usable CUDA device: "));
  CHECK(device_error([] { lpo::Context<Cuda> context(lpo::CudaOptions{.device = 1000}); })
            .starts_with("[Context<Cuda>] device 1000 was asked for, this machine has "));
  CHECK(device_error([] { lpo::detail::cuda_check(cudaErrorMemoryAllocation, "Context<Cuda>"); })
            .starts_with("[Context<Cuda>] no room in the device's memory; use a smaller batch"));
  const auto architecture =
      device_error([] { lpo::detail::cuda_check(cudaErrorNoKernelImageForDevice, "some_kernel"); });
  CHECK(architecture.starts_with("[some_kernel] this program holds no code for the device's architecture"));
}

TEST_CASE("a launch that fails is an error with the kernel's name, and the context works on") {
  lpo::Context<Cuda> context;
  auto* const memory = reinterpret_cast<float*>(context.activations().allocate(sizeof(float)));
  const std::string error =
      device_error([&] { context.launch("store_kernel", {dim3(1), dim3(4096)}, store_kernel, memory, 1.0f); });
  CHECK(error.starts_with("[store_kernel] "));
  float value = 0;
  context.launch("store_kernel", {dim3(1), dim3(1)}, store_kernel, memory, 5.0f);
  context.copy_to_host(&value, memory, sizeof(value));
  CHECK(value == 5.0f);
}

/// Leaves the process without a usable device: for a process of its own.
TEST_CASE("child: a kernel that writes where nothing is" * doctest::skip()) {
  lpo::Context<Cuda> context(lpo::CudaOptions{.synchronize = true});
  float* const nowhere = nullptr;
  const std::string error =
      device_error([&] { context.launch("store_kernel", {dim3(1), dim3(1)}, store_kernel, nowhere, 1.0f); });
  std::printf("<%s>\n", error.c_str());
  std::fflush(stdout);
  std::_Exit(0);
}

TEST_CASE("a context that waits after every kernel names the one that failed") {
  const std::string self = std::filesystem::read_symlink("/proc/self/exe").string();
  const auto child = run_program(self, {"--no-skip", "--test-case=child: a kernel that writes where nothing is"});
  CHECK(child.printed.find("<[store_kernel] ") != std::string::npos);
  const auto without = run_program("CUDA_VISIBLE_DEVICES= " + self, {});
  CHECK(without.status == 77);  // skipped, not passed
}
