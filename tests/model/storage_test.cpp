// SPDX-License-Identifier: MIT
// Models whose weights and activations are stored in 16 bits against the goldens, and such weights to files and back.
#include <doctest/doctest.h>

#include <memory>
#include <vector>

#include <lpo/model/autoencoder_kl.hpp>
#include <lpo/model/clip_text.hpp>

#include "model_backends.hpp"
#include "unet_goldens.hpp"

using namespace lpo;

namespace {

constexpr VaeConfig small_vae{.levels = 3, .channels = {8, 16, 16, 0}, .layers_per_block = 1, .groups = 4};
constexpr ClipTextConfig projected{.vocabulary = 48,
                                   .width = 16,
                                   .hidden = 40,
                                   .layers = 2,
                                   .heads = 4,
                                   .positions = 11,
                                   .quick_gelu = false,
                                   .projection = 12};

/// What the storage type may cost. PyTorch, with the same types for weights and activations, is 1.0 to 1.3e-2 away from
/// these UNets' float64 truth in bfloat16, 1.3 to 1.6e-3 in half.
template <class T>
constexpr double tolerance = std::is_same_v<T, half> ? 2e-3 : 1.5e-2;

template <class Model>
struct Loaded {
  using T = typename Model::value_type;
  std::unique_ptr<Model> model = std::make_unique<Model>();
  ParameterStore<T, Cpu> store;

  explicit Loaded(const SafetensorsFile& file, const std::string& prefix = "weights/") {
    store.add("", *model);
    store.allocate_frozen();
    load_parameters(store, file, {.file_prefix = prefix});
  }
};

template <class T, int Rank, int Channels>
void check(const SafetensorsFile& file, const std::string& key, const Var<T, Rank, Cpu, Channels>& value) {
  const auto truth = golden::tensor<float, Rank, Cpu>(file, key);
  std::vector<float> mine;
  for (index_t i = 0; i < value.size(); ++i) mine.push_back(static_cast<float>(value.data()[i]));
  CAPTURE(key);
  REQUIRE(to_string(truth.extents()) == to_string(value.extents()));
  CHECK(golden::relative_error(mine.data(), truth.data(), truth.size()) <= tolerance<T>);
}

template <UNetConfig C, class T>
void check_unet(const char* name) {
  const auto file = golden::open(name);
  const Loaded<UNet2DCondition<C, T, Cpu>> unet(file);
  golden::UNetInputs<T, Cpu> inputs(file);
  Context<Cpu> context(2);
  Tape<Cpu> tape(context);
  const auto guard = tape.inference();
  const auto in = inputs.on(tape);
  check(file, "out/sample", (*unet.model)(in.sample, in.condition));
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
  const Loaded<AutoencoderKL<small_vae, T, Cpu>> vae(vae_file);
  const auto image = golden::tensor<T, 4, Cpu>(vae_file, "in/image");
  const auto latent = golden::tensor<T, 4, Cpu>(vae_file, "in/latent");
  const auto posterior = vae.model->encode(constant(tape, image));
  check(vae_file, "out/mean", posterior.mean);
  check(vae_file, "out/logvar", posterior.log_variance);
  check(vae_file, "out/decoded", vae.model->decode(constant(tape, latent)));

  const auto text_file = golden::open("clip_text");
  const Loaded<CLIPTextModel<projected, T, Cpu>> text(text_file, "gelu/weights/");
  text.model->end_token = 47;
  const auto out = (*text.model)(tape, text_file.read_vector<std::int32_t>("gelu/in/input_ids"), 3);
  check(text_file, "gelu/out/last_hidden_state", out.last_hidden_state);
  check(text_file, "gelu/out/penultimate", out.penultimate);
  check(text_file, "gelu/out/text_embeds", out.text_embedding);
}

}  // namespace

TEST_CASE("models stored in bfloat16 equal diffusers and transformers to bfloat16's rounding") {
  check_all_models<bfloat16>();
}
TEST_CASE("models stored in half equal diffusers and transformers to half's rounding") { check_all_models<half>(); }

TEST_CASE("an fp16 file goes into bfloat16 weights and back: each weight is rounded once, then kept") {
  using Model = AutoencoderKL<small_vae, bfloat16, Cpu>;
  const auto truth = golden::open("vae");
  Loaded<AutoencoderKL<small_vae, half, Cpu>> halves(truth);
  const auto bytes_of = [](const auto& store, DType dtype) {
    SafetensorsWriter writer;
    add_parameters(writer, store, dtype, {.file_prefix = "weights"});
    return writer.bytes();
  };
  const std::string fp16 = bytes_of(halves.store, DType::F16);
  const auto fp16_file = SafetensorsFile::from_memory(fp16.data(), fp16.size(), "fp16");
  const Loaded<Model> brain(fp16_file, "weights");

  const std::string back = bytes_of(brain.store, DType::F16), bf16 = bytes_of(brain.store, DType::BF16);
  const auto back_file = SafetensorsFile::from_memory(back.data(), back.size(), "back");
  const auto bf16_file = SafetensorsFile::from_memory(bf16.data(), bf16.size(), "bf16");
  for (const std::string& key : fp16_file.keys()) {
    const auto from = fp16_file.read_vector<float>(key), to = back_file.read_vector<float>(key);
    const auto stored = bf16_file.read_vector<bfloat16>(key);
    CAPTURE(key);
    bool rounded_once = from.size() == to.size() && from.size() == stored.size();
    for (std::size_t i = 0; rounded_once && i < from.size(); ++i)
      rounded_once = stored[i].bits == bfloat16(from[i]).bits &&
                     to[i] == static_cast<float>(half(static_cast<float>(stored[i])));
    CHECK(rounded_once);
  }
}
