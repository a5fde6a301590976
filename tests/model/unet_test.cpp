// SPDX-License-Identifier: MIT
// UNet2DCondition against diffusers: outputs, residuals and all gradients of three families; LoRA, half UNet, odd
// sizes.
#include <doctest/doctest.h>

#include <cstring>

#include "model_backends.hpp"
#include "model_goldens.hpp"

using namespace lpo;

namespace {

template <UNetConfig C, class T, class Device>
void check_family(const char* name, double tolerance) {
  const auto file = golden::open(name);
  auto unet = std::make_unique<UNet2DCondition<C, T, Device>>();
  ParameterStore<T, Device> store;
  store.add("", *unet);
  store.allocate_all_trainable();
  const auto report = load_parameters(store, file, {.file_prefix = "weights/"});
  CHECK(report.loaded == store.entries().size());
  CHECK(report.unused.empty());

  golden::UNetInputs<T, Device> inputs(file);
  const auto cotangent = golden::tensor<T, 4, Device>(file, "in/cotangent");
  Context<Device> context(2);
  Tape<Device> tape(context);
  const auto in = inputs.on(tape);
  auto features = unet->encode(in.sample, in.condition);
  for (std::size_t i = 0; i < features.skips.size(); ++i)
    golden::check_value(file, "out/down/" + std::to_string(i), features.skips[i], tolerance);
  golden::check_value(file, "out/mid", features.mid, tolerance);
  const auto out = unet->decode(features, in.condition.context);
  golden::check_value(file, "out/sample", out, tolerance);

  store.reset_gradients();
  backward(out, cotangent.view());
  store.finish_gradients();
  golden::check_gradient(file, "grad/in/sample", in.sample, tolerance);
  golden::check_gradient(file, "grad/in/context", in.condition.context, tolerance);
  if (C.addition_width > 0) golden::check_gradient(file, "grad/in/text_embeds", in.condition.text_embedding, tolerance);
  CHECK(golden::check_weight_gradients(file, store, tolerance) > 50);
  CHECK(golden::check_gradient_statistics(file, store, tolerance) == static_cast<int>(store.entries().size()));
}

}  // namespace

TEST_CASE("UNet of SD1.5's shape equals diffusers, forward and gradients") {
  check_family<golden::sd15, float, Cpu>("unet_sd15", 1e-5);
}
TEST_CASE("UNet of SD2.1's shape equals diffusers, forward and gradients") {
  check_family<golden::sd21, float, Cpu>("unet_sd21", 1e-5);
}
TEST_CASE("UNet of SDXL's shape equals diffusers, forward and gradients") {
  check_family<golden::sdxl, float, Cpu>("unet_sdxl", 1e-5);
}
TEST_CASE("in double the UNet equals diffusers to the rounding of the file") {
  // The files hold float64 results rounded to float32, and the timesteps' angles are exact on both sides.
  check_family<golden::sdxl, double, Reference>("unet_sdxl", 2e-7);
}
