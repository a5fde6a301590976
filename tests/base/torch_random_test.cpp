// SPDX-License-Identifier: MIT
// TorchGenerator against what torch 2.11 draws, bit for bit.
#include <lpo/base/torch_random.hpp>

#include <doctest/doctest.h>

#include <cmath>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include <lpo/io/safetensors.hpp>

using lpo::TorchGenerator;

namespace {

constexpr std::uint64_t seeds[] = {0, 42, (std::uint64_t{1} << 32) + 42, 3'000'000'000, ~std::uint64_t{0}};
constexpr std::size_t sizes[] = {48, 5,  120, 2,
                                 16, 17, 15,  676};  // the calls of tests/reference/goldens/torch_random.py

lpo::SafetensorsFile golden_file() {
  return lpo::SafetensorsFile(std::string(LPO_TEST_GOLDEN_DIR) + "/torch_random.safetensors");
}

/// Draws as the golden file did. The largest difference from it, and how many numbers differ at all.
template <class T>
std::pair<double, int> difference_from_torch(const std::string& type, std::uint64_t seed) {
  const auto golden = golden_file().read_vector<double>("randn/" + type + "/" + std::to_string(seed));
  TorchGenerator generator(seed);
  double worst = 0;
  int differing = 0;
  std::size_t at = 0;
  for (const std::size_t size : sizes) {
    std::vector<T> drawn(size);
    generator.randn(std::span<T>(drawn));
    for (const T value : drawn) {
      const double difference = std::fabs(static_cast<double>(static_cast<lpo::compute_t<T>>(value)) - golden.at(at++));
      worst = std::max(worst, difference);
      differing += difference > 0 ? 1 : 0;
    }
  }
  CHECK(at == golden.size());
  return {worst, differing};
}

}  // namespace

TEST_CASE("the generator is MT19937: its 10000th number with seed 5489") {
  TorchGenerator generator(5489);
  for (int i = 1; i < 10000; ++i) generator.bits();
  CHECK(generator.bits() == 4123659995u);
}

TEST_CASE("torch.rand, bit for bit") {
  for (const auto seed : seeds) {
    TorchGenerator generator(seed);
    for (const float value : golden_file().read_vector<float>("rand/" + std::to_string(seed)))
      CHECK(generator.uniform<float>() == value);
  }
}

TEST_CASE("torch.randn in float: blocks of sixteen, tails and short tensors, call after call") {
  for (const auto seed : seeds) {
    CAPTURE(seed);
    const auto [worst, differing] = difference_from_torch<float>("float32", seed);
    CHECK(differing == 0);
    CHECK(worst == 0);
  }
}

TEST_CASE("torch.randn in the other types") {
  CHECK(difference_from_torch<double>("float64", 42).first < 1e-14);
  CHECK(difference_from_torch<lpo::half>("float16", 42).second == 0);
  CHECK(difference_from_torch<lpo::bfloat16>("bfloat16", 42).second == 0);
}

TEST_CASE("drawing nothing changes nothing") {
  TorchGenerator generator(1), untouched(1);
  generator.randn(std::span<float>());
  CHECK(generator.bits() == untouched.bits());
}
