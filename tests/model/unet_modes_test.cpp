// SPDX-License-Identifier: MIT
// One UNet in its many uses: with and without LoRA, as encoder half, under inference, checkpointed, at odd sizes.
#include <doctest/doctest.h>

#include <algorithm>
#include <memory>

#include <lpo/autograd/checkpoint.hpp>
#include <lpo/model/unet.hpp>

#include "golden_file.hpp"
#include "model_backends.hpp"
#include "model_goldens.hpp"

using namespace lpo;

namespace {

template <class T, int Rank, class Device, int C>
std::vector<T> values(const Var<T, Rank, Device, C>& v) {
  return std::vector<T>(v.data(), v.data() + v.size());
}

template <class T, class Device>
std::vector<T> trainable_gradients(ParameterStore<T, Device>& store) {
  return std::vector<T>(store.trainable_gradients(), store.trainable_gradients() + store.trainable_size());
}

/// A golden UNet, all weights trainable or only its LoRA.
template <UNetConfig C, class T, class Device>
struct Loaded {
  using Unet = UNet2DCondition<C, T, Device>;
  SafetensorsFile file;
  std::unique_ptr<Unet> unet = std::make_unique<Unet>();
  ParameterStore<T, Device> store;
  golden::UNetInputs<T, Device> inputs;
  Context<Device> context{2};

  explicit Loaded(const std::string& name, index_t rank = 0) : file(golden::open(name)), inputs(file) {
    if (rank > 0) enable_lora<T, Device>(*unet, rank, static_cast<float>(rank));
    store.add("unet", *unet);
    store.allocate([&](const std::string& weight) { return rank == 0 || is_lora_name(weight); });
    load_parameters(store, file, {.model_prefix = "unet", .file_prefix = "weights/"});
  }
};

}  // namespace

TEST_CASE("LoRA equals peft, forward and gradients; without adapters the UNet is the base model to the bit") {
  const auto lora = golden::open("unet_sd15_lora");
  Loaded<golden::sd15, float, Cpu> base("unet_sd15"), model("unet_sd15", 4);
  CHECK(load_parameters(model.store, lora,
                        {.model_prefix = "unet", .file_prefix = "weights/unet", .part = ParameterPart::lora})
            .unused.empty());
  Tape<Cpu> tape(model.context);
  {
    const auto in = model.inputs.on(tape);
    auto features = model.unet->encode(in.sample, in.condition);
    golden::check_value(lora, "out/mid", features.mid, 1e-5);
    const auto out = model.unet->decode(features, in.condition.context);
    golden::check_value(lora, "out/sample", out, 1e-5);
    const auto cotangent = golden::tensor<float, 4, Cpu>(model.file, "in/cotangent");
    model.store.reset_gradients();
    backward(out, cotangent.view());
    model.store.finish_gradients();
    golden::check_gradient(lora, "grad/in/sample", in.sample, 1e-5);
    golden::check_gradient(lora, "grad/in/context", in.condition.context, 1e-5);
    CHECK(golden::check_weight_gradients(lora, model.store, 1e-5) == 256);
    tape.clear();
  }
  const auto off = tape.without_adapters();
  const auto in = model.inputs.on(tape);
  Tape<Cpu> other(base.context);
  const auto base_in = base.inputs.on(other);
  CHECK(values((*model.unet)(in.sample, in.condition)) == values((*base.unet)(base_in.sample, base_in.condition)));
}

TEST_CASE("a fresh LoRA changes no bit") {
  Loaded<golden::sd21, float, Cpu> base("unet_sd21"), model("unet_sd21", 2);
  model.store.initialize(5);  // also gives A its random start
  load_parameters(model.store, model.file, {.model_prefix = "unet", .file_prefix = "weights/"});
  Tape<Cpu> tape(model.context), other(base.context);
  const auto in = model.inputs.on(tape);
  const auto base_in = base.inputs.on(other);
  CHECK(values((*model.unet)(in.sample, in.condition)) == values((*base.unet)(base_in.sample, base_in.condition)));
}

TEST_CASE("the encoder half has the full UNet's features to the bit") {
  Loaded<golden::sd21, float, Cpu> full("unet_sd21");
  auto half = std::make_unique<UNetEncoder<golden::sd21, float, Cpu>>();
  ParameterStore<float, Cpu> store;
  store.add("unet", *half);
  store.allocate_frozen();
  const auto report = load_parameters(store, full.file, {.model_prefix = "unet", .file_prefix = "weights/"});
  CHECK(std::all_of(report.unused.begin(), report.unused.end(), [](const std::string& key) {
    return key.starts_with("weights/up_blocks.") || key.starts_with("weights/conv_norm_out") ||
           key.starts_with("weights/conv_out");
  }));
  Tape<Cpu> tape(full.context);
  const auto in = full.inputs.on(tape);
  auto features = full.unet->encode(in.sample, in.condition);
  const auto mid = values(features.mid), second = values(features.skips[golden::sd21.feature_index(1)]);
  full.unet->decode(features, in.condition.context);
  const auto half_features = half->encode(in.sample, in.condition);
  CHECK(values(half_features.mid) == mid);
  CHECK(values(half_features.skips[golden::sd21.feature_index(1)]) == second);
  const auto guard = tape.inference();
  CHECK(values(half->encode(in.sample, in.condition).mid) == mid);
}

TEST_CASE("inference and checkpoints give the recorded run's bits") {
  Loaded<golden::sdxl, float, Cpu> model("unet_sdxl");
  const auto cotangent = golden::tensor<float, 4, Cpu>(model.file, "in/cotangent");
  Tape<Cpu> tape(model.context);
  std::vector<float> out, sample_gradient, gradients;
  {
    const auto in = model.inputs.on(tape);
    const auto y = (*model.unet)(in.sample, in.condition);
    out = values(y);
    model.store.reset_gradients();
    backward(y, cotangent.view());
    model.store.finish_gradients();
    const auto dx = read_gradient(in.sample);
    sample_gradient.assign(dx.data(), dx.data() + dx.size());
    gradients = trainable_gradients(model.store);
    tape.clear();
  }
  SUBCASE("inference") {
    const auto guard = tape.inference();
    const auto in = model.inputs.on(tape);
    CHECK(values((*model.unet)(in.sample, in.condition)) == out);
  }
  SUBCASE("checkpoint of the whole UNet") {
    const auto in = model.inputs.on(tape);
    auto* unet = model.unet.get();
    const auto y = checkpoint(
        tape, [unet, condition = in.condition](const Var<float, 4, Cpu>& x) { return (*unet)(x, condition); },
        in.sample);
    CHECK(values(y) == out);
    model.store.reset_gradients();
    backward(y, cotangent.view());
    model.store.finish_gradients();
    const auto dx = read_gradient(in.sample);
    CHECK(std::equal(sample_gradient.begin(), sample_gradient.end(), dx.data()));
    CHECK(trainable_gradients(model.store) == gradients);
  }
}

TEST_CASE("sizes that do not halve evenly") {
  // 7 x 5 -> 4 x 3 -> 2 x 2 on the way down; the way up must meet the same sizes. The oracle is the reference backend.
  Loaded<golden::sdxl, float, Cpu> model("unet_sdxl");
  Loaded<golden::sdxl, double, Reference> oracle("unet_sdxl");
  const auto run = [](auto& m, const auto& pixels) {
    using T = std::remove_cvref_t<decltype(m.inputs.sample(0, 0, 0, 0))>;
    using Device = typename std::remove_cvref_t<decltype(m.inputs.sample)>::device;
    m.inputs.sample = Tensor<T, 4, Device>::from(Extents<4>{2, 7, 5, 4}, pixels);
    Tape<Device> tape(m.context);
    const auto in = m.inputs.on(tape);
    const auto y = (*m.unet)(in.sample, in.condition);
    CHECK(to_string(y.extents()) == "[2, 7, 5, 4]");
    m.store.reset_gradients();
    const auto ones = Tensor<T, 4, Device>::full(y.extents(), 1.0);
    const auto out = values(y);
    backward(y, ones.view());
    m.store.finish_gradients();
    const auto dx = read_gradient(in.sample);
    return std::pair(out, std::vector<T>(dx.data(), dx.data() + dx.size()));
  };
  auto pixels = model.file.read_vector<double>("in/sample");
  pixels.resize(2 * 7 * 5 * 4);
  const auto [y, dx] = run(model, pixels);
  const auto [truth, dtruth] = run(oracle, pixels);
  CHECK(golden::relative_error(y.data(), truth.data(), 280) < 1e-5);
  CHECK(golden::relative_error(dx.data(), dtruth.data(), 280) < 1e-5);
}

TEST_CASE("latents under two texts each equal latents written twice, forward and gradients") {
  Loaded<golden::sd15, double, Reference> model("unet_sd15");
  Tape<Reference> tape(model.context);
  const auto run = [&](bool written_twice) {
    auto in = model.inputs.on(tape);
    const auto one = in.condition.context;
    in.condition.context = concat_batch(one, concat_batch(one.slice(0, 1, 2), one.slice(0, 0, 1)));
    std::vector<float> timesteps(in.condition.timesteps.begin(), in.condition.timesteps.end());
    if (written_twice) timesteps.insert(timesteps.end(), timesteps.begin(), timesteps.begin() + 2);
    in.condition.timesteps = timesteps;
    model.store.reset_gradients();
    const auto y = (*model.unet)(written_twice ? concat_batch(in.sample, in.sample) : in.sample, in.condition);
    const auto out = values(y);
    const auto ones = Tensor<double, 4, Reference>::full(y.extents(), 1.0);
    backward(y, ones.view());
    model.store.finish_gradients();
    const auto dx = read_gradient(in.sample);
    auto gradients = trainable_gradients(model.store);
    gradients.insert(gradients.end(), dx.data(), dx.data() + dx.size());
    tape.clear();
    return std::pair(out, gradients);
  };
  const auto [shared, shared_gradients] = run(false);
  const auto [plain, plain_gradients] = run(true);
  REQUIRE(shared.size() == plain.size());
  CHECK(golden::relative_error(shared.data(), plain.data(), static_cast<index_t>(plain.size())) < 1e-13);
  CHECK(golden::relative_error(shared_gradients.data(), plain_gradients.data(),
                               static_cast<index_t>(plain_gradients.size())) < 1e-12);
}

TEST_CASE("inputs that do not fit are named") {
  Loaded<golden::sdxl, float, Cpu> model("unet_sdxl");
  Tape<Cpu> tape(model.context);
  auto in = model.inputs.on(tape);

  // Time features on the device stand in for timesteps, and give the same bits.
  const auto features = sinusoidal_embedding<float>(tape, in.condition.timesteps, golden::sdxl.level_channels(0));
  const auto by_timesteps = values((*model.unet)(in.sample, in.condition));
  in.condition.timesteps = {};
  in.condition.time_features = features;
  CHECK(values((*model.unet)(in.sample, in.condition)) == by_timesteps);
  in.condition.time_features = features.slice(0, 0, 1);
  CHECK_THROWS_WITH_AS((*model.unet)(in.sample, in.condition),
                       doctest::Contains("[UNet] time features [1, "), ShapeError);
  in = model.inputs.on(tape);
  in.condition.timesteps = in.condition.timesteps.first(1);
  CHECK_THROWS_WITH_AS((*model.unet)(in.sample, in.condition), "[UNet] 2 latents need 2 timesteps, given 1",
                       ShapeError);
  in = model.inputs.on(tape);
  in.condition.time_ids = {};
  CHECK_THROWS_WITH_AS((*model.unet)(in.sample, in.condition),
                       "[UNet] this model needs pooled text [2, width] and 6 time ids per row", ShapeError);
  in = model.inputs.on(tape);
  in.condition.context = in.condition.context.slice(0, 0, 1);
  CHECK_THROWS_AS((*model.unet)(in.sample, in.condition), ShapeError);
}
