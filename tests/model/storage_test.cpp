// SPDX-License-Identifier: MIT
// Models whose weights and activations are stored in 16 bits: against the models that such weights define, and to files
// and back.
#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "model_backends.hpp"
#include "model_goldens.hpp"
#include "stored_models.hpp"

using namespace lpo;

namespace {

/// How far outputs may be from those that the rounded weights and inputs have in float64: what storing activations
/// costs. (Rounding the weights and inputs alone moves these outputs by up to 7.4e-3 and 9e-4.)
template <class T>
constexpr double tolerance = std::is_same_v<T, half> ? 1.5e-3 : 1e-2;

const ParameterNames golden_weights{.file_prefix = "weights/"};

template <class T, int Rank, int Channels>
void check(const std::string& name, const Var<T, Rank, Cpu, Channels>& value) {
  const std::string key = (std::is_same_v<T, half> ? "float16/" : "bfloat16/") + name;
  const auto file = golden::open("storage");
  const auto truth = golden::tensor<float, Rank, Cpu>(file, key);
  // One output is more sensitive: there PyTorch, storing the same activations, is 1.13e-2 away.
  const double torch_error =
      parse_json<SortedJson>(file.metadata().at("torch_error"), "test", key).at(key).template get<double>();
  std::vector<float> mine;
  for (index_t i = 0; i < value.size(); ++i) mine.push_back(static_cast<float>(value.data()[i]));
  CAPTURE(key);
  REQUIRE(to_string(truth.extents()) == to_string(value.extents()));
  CHECK(golden::relative_error(mine.data(), truth.data(), truth.size()) <= std::max(tolerance<T>, torch_error));
}

template <UNetConfig C, class T>
void check_unet(const std::string& name) {
  const auto file = golden::open(name);
  const StoredModel<UNet2DCondition<C, T, Cpu>> unet(file, golden_weights);
  golden::UNetInputs<T, Cpu> inputs(file);
  Context<Cpu> context(2);
  Tape<Cpu> tape(context);
  const auto guard = tape.inference();
  const auto in = inputs.on(tape);
  check(name + "/sample", (*unet.model)(in.sample, in.condition));
}

template <class T>
void check_all_models() {
  check_unet<golden::sd15, T>("unet_sd15");
  check_unet<golden::sd21, T>("unet_sd21");
  check_unet<golden::sdxl, T>("unet_sdxl");

  Context<Cpu> context(2);
  Tape<Cpu> tape(context);
  const auto guard = tape.inference();
  const auto vae_file = golden::open("vae");
  const StoredModel<AutoencoderKL<golden::vae, T, Cpu>> vae(vae_file, golden_weights);
  const auto image = golden::tensor<T, 4, Cpu>(vae_file, "in/image");
  const auto latent = golden::tensor<T, 4, Cpu>(vae_file, "in/latent");
  const auto posterior = vae.model->encode(constant(tape, image));
  check("vae/mean", posterior.mean);
  check("vae/logvar", posterior.log_variance);
  check("vae/decoded", vae.model->decode(constant(tape, latent)));

  const auto text_file = golden::open("clip_text");
  const StoredModel<CLIPTextModel<golden::gelu_text, T, Cpu>> text(text_file, {.file_prefix = "gelu/weights/"});
  text.model->end_token = 47;
  const auto out = (*text.model)(tape, text_file.read_vector<std::int32_t>("gelu/in/input_ids"), 3);
  check("clip_text/last_hidden_state", out.last_hidden_state);
  check("clip_text/penultimate", out.penultimate);
  check("clip_text/text_embeds", out.text_embedding);
}

}  // namespace

TEST_CASE("models stored in bfloat16 compute what their weights define, to bfloat16's rounding") {
  check_all_models<bfloat16>();
}
TEST_CASE("models stored in half compute what their weights define, to half's rounding") { check_all_models<half>(); }

TEST_CASE("an fp16 file goes into bfloat16 weights and back: each weight is rounded once, then kept") {
  using Model = AutoencoderKL<golden::vae, bfloat16, Cpu>;
  const auto truth = golden::open("vae");
  const StoredModel<AutoencoderKL<golden::vae, half, Cpu>> halves(truth, golden_weights);
  const auto bytes_of = [](const auto& store, DType dtype) {
    SafetensorsWriter writer;
    add_parameters(writer, store, dtype, golden_weights);
    return writer.bytes();
  };
  const std::string fp16 = bytes_of(halves.store, DType::F16);
  const auto fp16_file = SafetensorsFile::from_memory(fp16.data(), fp16.size(), "fp16");
  const StoredModel<Model> brain(fp16_file, golden_weights);

  const std::string back = bytes_of(brain.store, DType::F16), bf16 = bytes_of(brain.store, DType::BF16);
  const auto back_file = SafetensorsFile::from_memory(back.data(), back.size(), "back");
  const auto bf16_file = SafetensorsFile::from_memory(bf16.data(), bf16.size(), "bf16");
  for (const std::string& key : fp16_file.keys()) {
    const auto from = fp16_file.read_vector<float>(key), to = back_file.read_vector<float>(key);
    const auto stored = bf16_file.read_vector<bfloat16>(key);
    CAPTURE(key);
    bool rounded_once = from.size() == to.size() && from.size() == stored.size();
    for (std::size_t i = 0; rounded_once && i < from.size(); ++i)
      rounded_once =
          stored[i].bits == bfloat16(from[i]).bits && to[i] == static_cast<float>(half(static_cast<float>(stored[i])));
    CHECK(rounded_once);
  }
}
