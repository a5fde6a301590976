// SPDX-License-Identifier: MIT
// Device memory: what an allocation that does not fit says, and that the device works on.
#include <doctest/doctest.h>

#include <lpo/backend/cuda/context.cuh>

using lpo::Cuda;

TEST_CASE("memory that does not fit: the error names what was asked for, what is in use and what to do") {
  lpo::Context<Cuda> context;
  const auto message = [&](auto&& allocate) -> std::string {
    try {
      allocate();
    } catch (const lpo::DeviceError& error) {
      return error.what();
    }
    return "";
  };
  const std::size_t too_much = std::size_t{1} << 46;  // 64 TiB
  const std::string block = message([&] { lpo::detail::DeviceBlock unused(too_much); });
  CHECK(block.find("[cuda memory] 67108864 MiB were asked for") == 0);
  CHECK(block.find("are in use") != std::string::npos);
  CHECK(block.find("use a smaller batch") != std::string::npos);
  CHECK(message([&] { context.activations().allocate(too_much); }) != "");

  float number = 3, back = 0;
  auto* memory = context.activations().allocate(sizeof(float));
  context.copy_from_host(memory, &number, sizeof(number));
  context.copy_to_host(&back, memory, sizeof(back));
  CHECK(back == 3.0f);
}
