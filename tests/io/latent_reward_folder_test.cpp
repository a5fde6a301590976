// SPDX-License-Identifier: MIT
// Folders of latent reward models that diffusers, transformers and torch wrote: their scores, and a round trip.
#include <lpo/io/latent_reward_folder.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include <lpo/autograd/concat.hpp>

#include "golden_file.hpp"
#include "model/model_backends.hpp"
#include "temporary_directory.hpp"

using namespace lpo;

namespace {

constexpr UNetConfig sd15{.levels = 2,
                          .channels = {4, 8},
                          .layers_per_block = 1,
                          .transformer_depth = {1, 0},
                          .heads = {2, 2},
                          .context_width = 8,
                          .groups = 2};
constexpr UNetConfig sdxl{.levels = 2,
                          .channels = {4, 8},
                          .layers_per_block = 1,
                          .transformer_depth = {0, 1},
                          .heads = {2, 4},
                          .context_width = 16,
                          .linear_projection = true,
                          .groups = 2,
                          .addition_time_width = 4,
                          .addition_width = 30};
constexpr ClipTextConfig text_config{
    .vocabulary = 48, .width = 8, .hidden = 16, .layers = 2, .heads = 2, .positions = 7};
constexpr ClipTextConfig text_2_config{.vocabulary = 48,
                                       .width = 8,
                                       .hidden = 16,
                                       .layers = 2,
                                       .heads = 2,
                                       .positions = 7,
                                       .quick_gelu = false,
                                       .projection = 6};

/// A reward model of the golden folders' size, with the encoders that its family has.
template <bool Xl>
struct Reward {
  using T = double;
  using Device = Reference;
  LatentRewardModel<Xl ? sdxl : sd15, Xl ? 6 : 8, 6, !Xl, T, Device> model;
  CLIPTextModel<text_config, T, Device> text;
  CLIPTextModel<text_2_config, T, Device> text_2;
  ParameterStore<T, Device> store;

  explicit Reward(const std::string& prefix = "", const RewardFeatureOptions& features = {}) {
    model.use_features(features);
    const std::string dotted = prefix.empty() ? "" : prefix + ".";
    store.add(prefix, model);
    store.add(dotted + "text_encoder", text);
    if (Xl) store.add(dotted + "text_encoder_2", text_2);
    store.allocate_frozen();
  }

  auto texts() {
    if constexpr (Xl)
      return std::tie(text, text_2);
    else
      return std::tie(text);
  }

  LatentRewardReport load(const std::string& directory, const std::string& prefix = "") {
    return load_latent_reward_model(directory, model, store, texts(), prefix);
  }
  void save(const std::string& directory, const std::string& prefix = "", DType dtype = DType::F32) {
    save_latent_reward_model(directory, model, store, texts(), prefix, dtype);
  }

  std::vector<double> values() { return {store.values().begin(), store.values().end()}; }

  /// The scores of a golden file's latents and prompts.
  std::vector<double> scores(const SafetensorsFile& golden) {
    Context<Device> context;
    Tape<Device> tape(context);
    const auto guard = tape.inference();
    auto ids = golden.read_vector<std::int32_t>("in/ids");
    const auto empty = golden.read_vector<std::int32_t>("in/ids_empty");
    for (int row = 0; row < 2; ++row) ids.insert(ids.end(), empty.begin(), empty.end());
    const auto out = text(tape, ids, 4);
    RewardPrompt<T, Device> prompt;
    std::vector<float> time_ids;
    Var<T, 2, Device> pooled;
    Var<T, 3, Device> states = out.last_hidden_state;
    if constexpr (Xl) {
      const auto out_2 = text_2(tape, ids, 4);
      states = concat_channels(out.penultimate, out_2.penultimate);
      pooled = out_2.text_embedding;
      prompt.text_embedding = pooled.slice(0, 0, 2);
      prompt.text_embedding_empty = pooled.slice(0, 2, 4);
      for (int row = 0; row < 2; ++row)
        for (const float id : golden.read_vector<float>("in/time_ids")) time_ids.push_back(id);
      prompt.time_ids = time_ids;
    } else {
      pooled = out.pooled;
    }
    prompt.context = states.slice(0, 0, 2);
    prompt.context_empty = states.slice(0, 2, 4);
    auto latents = golden::tensor<T, 4, Device>(golden, "in/latents");
    std::vector<float> timesteps;
    for (const int t : golden.read_vector<int>("in/timestep")) timesteps.push_back(static_cast<float>(t));
    const auto score = model.score(variable(tape, latents), timesteps, prompt, pooled.slice(0, 0, 2));
    return {score.data(), score.data() + 2};
  }
};

std::string folder(const char* name) { return std::string(LPO_TEST_GOLDEN_DIR) + "/lrm_folder_" + name; }

template <bool Xl>
void check_scores(Reward<Xl>& reward, const char* name) {
  const SafetensorsFile golden(folder(name) + "/expected.safetensors");
  const auto truth = golden.read_vector<double>("out/scores");
  const auto scores = reward.scores(golden);
  for (std::size_t i = 0; i < 2; ++i) CHECK(scores[i] == doctest::Approx(truth[i]).epsilon(1e-6));
}

}  // namespace

TEST_CASE("a folder as released for SD1.5 is read and scores as in PyTorch") {
  auto reward = std::make_unique<Reward<false>>();
  const auto report = reward->load(folder("sd15"));
  CHECK(report.unet.weights.loaded + report.text_encoders[0].weights.loaded + report.head.loaded ==
        reward->store.entries().size());
  CHECK(report.head.loaded == 3);
  CHECK(report.head.unused.empty());
  CHECK_FALSE(report.unet.weights.unused.empty());
  for (const std::string& key : report.unet.weights.unused)
    CHECK((key.starts_with("up_blocks.") || key.starts_with("conv_norm_out.") || key.starts_with("conv_out.")));
  CHECK(reward->text.end_token == 47);
  CHECK(*reward->model.logit_scale.data() == 2.65625);  // 2.6592 as a bfloat16
  check_scores(*reward, "sd15");
}

TEST_CASE("a folder as released for SDXL, in torch's files") {
  auto reward = std::make_unique<Reward<true>>();
  const auto report = reward->load(folder("sdxl"));
  CHECK(report.text_encoders.size() == 2);
  CHECK(report.head.loaded == 2);
  check_scores(*reward, "sdxl");
}

TEST_CASE_TEMPLATE("a folder that was written is read again, exactly or rounded", Xl, std::false_type, std::true_type) {
  const char* const family = Xl::value ? "sdxl" : "sd15";
  const TemporaryDirectory directory;
  auto reward = std::make_unique<Reward<Xl::value>>("reward");
  reward->load(folder(family), "reward");
  reward->save(directory.file("lrm"), "reward", DType::BF16);  // the released weights are bfloat16 already
  auto again = std::make_unique<Reward<Xl::value>>();
  const auto report = again->load(directory.file("lrm"));
  CHECK(report.unet.weights.unused.empty());
  CHECK(again->values() == reward->values());
  CHECK(again->text.end_token == 47);
  check_scores(*again, family);

  const TorchFile state(directory.file("lrm/state_dict.pt"));
  CHECK(state.info("visual_projection.weight").dtype == DType::BF16);
  CHECK(state.info("logit_scale").dtype == DType::F64);
  CHECK(state.contains("text_projection.weight") == !Xl::value);

  SUBCASE("either file of the head is enough") {
    for (const char* name : {"head.safetensors", "state_dict.pt"}) {
      CAPTURE(name);
      reward->save(directory.file("lrm"), "reward");
      REQUIRE(std::remove(directory.file(std::string("lrm/") + name).c_str()) == 0);
      std::fill(again->store.values().begin(), again->store.values().end(), 0.0);
      again->load(directory.file("lrm"));
      CHECK(again->values() == reward->values());
    }
  }
  SUBCASE("NaN is called NaN, and in which file") {
    reward->model.logit_scale.data()[0] = std::nan("");
    reward->save(directory.file("lrm"), "reward");
    CHECK(message_of<FileError>([&] { again->load(directory.file("lrm")); }) ==
          "[latent_reward] " + directory.file("lrm") +
              "/head.safetensors: \"logit_scale\" holds NaN; the training that wrote it diverged");
  }
  SUBCASE("two heads must agree") {
    TorchWriter other;
    other.add_number("", "logit_scale", 3.0);
    other.write(directory.file("lrm/state_dict.pt"));
    CHECK(message_of<FileError>([&] { again->load(directory.file("lrm")); }) ==
          "[latent_reward] " + directory.file("lrm") +
              ": head.safetensors and state_dict.pt have different values of \"logit_scale\"; remove the one that is "
              "out of date");
  }
}

TEST_CASE("a folder keeps the features that its model was trained with") {
  const TemporaryDirectory directory;
  const auto released = read_reward_features(folder("sd15"));
  CHECK_FALSE(released.stored);
  CHECK(released.options == RewardFeatureOptions{});
  const RewardFeatureOptions single{.guidance = 3.3f, .multi_scale = false, .multi_scale_cfg = true};
  auto reward = std::make_unique<Reward<false>>("", single);
  reward->store.initialize(3);
  reward->text.end_token = 47;
  reward->save(directory.path());
  const auto stored = read_reward_features(directory.path());
  CHECK(stored.stored);
  CHECK(stored.options == single);
  CHECK(has_part(directory.read("lrm_config.json"), "\"guidance\": 3.3,"));
  auto again = std::make_unique<Reward<false>>("", stored.options);
  again->load(directory.path());
  const SafetensorsFile golden(folder("sd15") + "/expected.safetensors");
  for (std::size_t i = 0; i < 2; ++i)
    CHECK(again->scores(golden)[i] == doctest::Approx(reward->scores(golden)[i]).epsilon(1e-5));

  // Without the settings, the head's width tells of the levels.
  REQUIRE(std::remove(directory.file("lrm_config.json").c_str()) == 0);
  const auto told = read_reward_features(directory.path());
  CHECK_FALSE(told.stored);
  CHECK(told.options == RewardFeatureOptions{.multi_scale = false});
  directory.write("lrm_config.json", "{\"guidance\": \"much\", \"multi_scale\": true, \"multi_scale_cfg\": false}");
  CHECK(has_part(message_of<FileError>([&] { read_reward_features(directory.path()); }),
                 "lrm_config.json: key \"guidance\" is \"much\", expected a number"));
}

TEST_CASE("without text encoders only the model is read") {
  auto reward = std::make_unique<Reward<false>>();
  const auto report = load_latent_reward_model(folder("sd15"), reward->model, reward->store);
  CHECK(report.text_encoders.empty());
  CHECK(reward->text.end_token == -1);
  CHECK(*reward->model.logit_scale.data() == 2.65625);
}

TEST_CASE("a folder that does not fit changes nothing") {
  const TemporaryDirectory directory;
  auto reward = std::make_unique<Reward<false>>();
  reward->load(folder("sd15"));
  reward->save(directory.path());
  const auto before = reward->values();
  std::remove(directory.file("head.safetensors").c_str());
  const auto reason = [&] {
    std::fill(reward->store.values().begin(), reward->store.values().end(), 0.0);
    const std::string text = message_of<FileError>([&] { reward->load(directory.path()); });
    const auto values = reward->values();
    CHECK(std::all_of(values.begin(), values.end(), [](double value) { return value == 0; }));
    return text;
  };
  SUBCASE("no head") {
    std::remove(directory.file("state_dict.pt").c_str());
    CHECK(reason() == "[latent_reward] " + directory.path() + ": no head; tried head.safetensors, state_dict.pt");
  }
  SUBCASE("a head for another width, without logit_scale") {
    const std::vector<float> zeros(48 * 3, 0.0f);
    TorchWriter head;
    head.add("visual_projection", "weight", DType::F32, {6, 16}, zeros.data());
    head.add("text_projection", "weight", DType::F32, {6, 8}, zeros.data());
    head.write(directory.file("state_dict.pt"));
    CHECK(reason() == "[load_parameters] " + directory.file("state_dict.pt") +
                          " does not fit the model: 1 weight is missing: \"logit_scale\"; 1 has another shape or type: "
                          "\"visual_projection.weight\" is [6, 16], expected [6, 20]");
  }
  SUBCASE("no text encoder") {
    std::remove(directory.file("text_encoder/model.safetensors").c_str());
    CHECK(has_part(reason(), "text_encoder: no weights; tried model.safetensors"));
  }
  SUBCASE("another UNet") {
    JsonConfig::from_file(folder("sdxl") + "/unet/config.json").write(directory.file("unet/config.json"));
    CHECK(has_part(reason(), "unet/config.json: does not match the compiled model"));
  }
}
