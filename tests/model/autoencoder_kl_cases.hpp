// SPDX-License-Identifier: MIT
// AutoencoderKL on any device against diffusers: posterior, decoded image and gradients of both.
#pragma once

#include <memory>

#include <lpo/autograd/reduce.hpp>
#include <lpo/model/autoencoder_kl.hpp>

#include "model_goldens.hpp"

namespace autoencoder_kl_cases {

using namespace lpo;

template <class T, class Device>
struct Small {
  SafetensorsFile file = golden::open("vae");
  std::unique_ptr<AutoencoderKL<golden::vae, T, Device>> vae = std::make_unique<AutoencoderKL<golden::vae, T, Device>>();
  ParameterStore<T, Device> store;
  LoadReport report;

  Small() {
    store.add("vae", *vae);
    store.allocate_all_trainable();
    report = load_parameters(store, file, {.model_prefix = "vae", .file_prefix = "weights/"});
  }
};

template <class T, class Device>
void check_against_diffusers(double tolerance) {
  Small<T, Device> model;
  const auto& file = model.file;
  CHECK(model.report.unused.empty());
  auto image = golden::tensor<T, 4, Device>(file, "in/image");
  auto latent = golden::tensor<T, 4, Device>(file, "in/latent");
  const auto cotangent = [&](const char* name) {
    return golden::tensor<T, 4, Device>(file, std::string("in/cotangent/") + name);
  };
  const auto to_mean = cotangent("mean"), to_logvar = cotangent("logvar"), to_decoded = cotangent("decoded");
  auto context = testing::test_context<Device>(2);
  Tape<Device> tape(context);
  model.store.reset_gradients();

  const auto image_var = variable(tape, image);
  const auto posterior = model.vae->encode(image_var);
  golden::check_value(file, "out/mean", posterior.mean, tolerance);
  golden::check_value(file, "out/logvar", posterior.log_variance, tolerance);
  const auto latent_var = variable(tape, latent);
  const auto decoded = model.vae->decode(latent_var);
  golden::check_value(file, "out/decoded", decoded, tolerance);
  const Var posterior_part = posterior.mean * to_mean + posterior.log_variance * to_logvar;
  const Var decoded_part = decoded * to_decoded;
  const Var loss = sum(posterior_part) + sum(decoded_part);
  backward(loss);
  model.store.finish_gradients();
  golden::check_gradient(file, "grad/in/image", image_var, tolerance);
  golden::check_gradient(file, "grad/in/latent", latent_var, tolerance);
  CHECK(golden::check_weight_gradients(file, model.store, tolerance, "grad/", "vae.") > 50);
  CHECK(golden::check_gradient_statistics(file, model.store, tolerance, "vae.") + 2 ==
        static_cast<int>(model.store.entries().size()));  // the two key biases have no gradient
}

}  // namespace autoencoder_kl_cases
