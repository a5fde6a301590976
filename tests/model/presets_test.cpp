// SPDX-License-Identifier: MIT
// The presets of Stable Diffusion as unallocated types: sizes of UNets and of their LoRAs.
#include <doctest/doctest.h>

#include <memory>

#include <lpo/model/unet.hpp>

using namespace lpo;

namespace {

struct Sizes {
  index_t base = 0, lora = 0;
  int projections = 0;
};

template <UNetConfig C>
Sizes sizes_of(index_t rank) {
  auto unet = std::make_unique<UNet2DCondition<C, float, Reference>>();
  Sizes sizes;
  sizes.projections = enable_lora<float, Reference>(*unet, rank, static_cast<float>(rank));
  for_each_parameter<float, Reference>(*unet, [&](const std::string& name, AnyParameter<float, Reference>& p) {
    (is_lora_name(name) ? sizes.lora : sizes.base) += p.size();
  });
  return sizes;
}

}  // namespace

TEST_CASE("SD1.5: 859,520,964 weights, LoRA of rank 4 has 797,184") {
  const auto sizes = sizes_of<presets::sd15>(4);
  CHECK(sizes.base == 859'520'964);
  CHECK(sizes.lora == 797'184);
  CHECK(sizes.projections == 4 * 2 * 16);
}

TEST_CASE("SD2.1: 865,910,724 weights, LoRA of rank 4 has 829,952") {
  const auto sizes = sizes_of<presets::sd21>(4);
  CHECK(sizes.base == 865'910'724);
  CHECK(sizes.lora == 829'952);
}

TEST_CASE("SDXL: 2,567,463,684 weights, LoRA of rank 64 has 92,897,280") {
  const auto sizes = sizes_of<presets::sdxl>(64);
  CHECK(sizes.base == 2'567'463'684);
  CHECK(sizes.lora == 92'897'280);
  CHECK(sizes.projections == 4 * 2 * 70);
}

TEST_CASE("features that a reward model pools: SD1.5 4800 wide at 2, 5, 8, 11; SDXL 3520 at 2, 5, 8") {
  CHECK(presets::sd15.feature_width() == 4800);
  CHECK(presets::sdxl.feature_width() == 3520);
  for (int level = 0; level < 4; ++level) CHECK(presets::sd15.feature_index(level) == 2 + 3 * level);
  CHECK(presets::sd15.skips() == 12);
  CHECK(presets::sdxl.skips() == 9);
}
