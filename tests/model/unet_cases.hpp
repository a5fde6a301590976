// SPDX-License-Identifier: MIT
// A small UNet on any device against diffusers: outputs, residuals and all gradients.
#pragma once

#include "model_goldens.hpp"

namespace unet_cases {

using namespace lpo;

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
  auto context = testing::test_context<Device>(2);
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

}  // namespace unet_cases
