// SPDX-License-Identifier: MIT
// AutoencoderKL against diffusers: posterior, decoded image and gradients of both; sampling; inference equals
// recording.
#include <doctest/doctest.h>

#include <cstring>
#include <memory>

#include <lpo/autograd/reduce.hpp>
#include <lpo/model/autoencoder_kl.hpp>

#include "model_backends.hpp"
#include "model_goldens.hpp"

using namespace lpo;

namespace {

template <class T, class Device>
struct Small {
  SafetensorsFile file = golden::open("vae");
  std::unique_ptr<AutoencoderKL<golden::vae, T, Device>> vae =
      std::make_unique<AutoencoderKL<golden::vae, T, Device>>();
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
  Context<Device> context(2);
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

}  // namespace

TEST_CASE("AutoencoderKL equals diffusers, forward and gradients") { check_against_diffusers<float, Cpu>(1e-5); }
TEST_CASE("in double AutoencoderKL equals diffusers to the rounding of the file") {
  check_against_diffusers<double, Reference>(2e-7);
}

TEST_CASE("inference frees temporaries and returns the same bits") {
  Small<float, Cpu> model;
  auto image = golden::tensor<float, 4, Cpu>(model.file, "in/image");
  Context<Cpu> context(2);
  Tape<Cpu> tape(context);
  const auto recorded = model.vae->encode(constant(tape, image));
  const auto mean = Tensor<float, 4, Cpu>::copy_of(recorded.mean.view());
  const auto decoded = model.vae->decode(recorded.mean);
  const auto picture = Tensor<float, 4, Cpu>::copy_of(decoded.view());
  tape.clear();
  const auto guard = tape.inference();
  const auto again = model.vae->encode(constant(tape, image));
  CHECK(std::memcmp(again.mean.data(), mean.data(), static_cast<std::size_t>(mean.size()) * sizeof(float)) == 0);
  const auto drawn = model.vae->decode(again.mean);
  CHECK(std::memcmp(drawn.data(), picture.data(), static_cast<std::size_t>(picture.size()) * sizeof(float)) == 0);
}

TEST_CASE("a posterior sample is mean + deviation * noise") {
  Context<Cpu> context(1);
  Tape<Cpu> tape(context);
  const auto mean = Tensor<float, 4, Cpu>::full(Extents<4>{1, 1, 2, 2}, 0.5);
  const auto log_variance = Tensor<float, 4, Cpu>::full(Extents<4>{1, 1, 2, 2}, 1.3862944);  // deviation 2
  const auto noise = Tensor<float, 4, Cpu>::from(Extents<4>{1, 1, 2, 2}, std::vector<float>{0, 1, -1, 2});
  const LatentPosterior<float, Cpu> posterior{constant(tape, mean), constant(tape, log_variance)};
  const auto sample = posterior.sample(noise.view());
  const float expected[] = {0.5f, 2.5f, -1.5f, 4.5f};
  for (int i = 0; i < 4; ++i) CHECK(sample.data()[i] == doctest::Approx(expected[i]).epsilon(1e-6));
}

TEST_CASE("presets have the published sizes") {
  // 83,653,863 weights: AutoencoderKL of SD1.5 as diffusers counts them.
  auto vae = std::make_unique<AutoencoderKL<presets::sd_vae, float, Cpu>>();
  index_t count = 0;
  for_each_parameter<float, Cpu>(*vae, [&](const std::string&, AnyParameter<float, Cpu>& p) { count += p.size(); });
  CHECK(count == 83'653'863);
  CHECK(presets::sd_vae.factor() == 8);
}
