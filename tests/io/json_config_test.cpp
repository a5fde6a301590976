// SPDX-License-Identifier: MIT
// Tests of config files: typed reading, messages, unknown keys, writing back.
#include <doctest/doctest.h>

#include <lpo/io/json_config.hpp>
#include <optional>

#include "temporary_directory.hpp"

using lpo::ConfigCheck;
using lpo::FileError;
using lpo::JsonConfig;

namespace {

constexpr const char* sample = R"({
  "_class_name": "UNet2DConditionModel",
  "sample_size": 64,
  "act_fn": "silu",
  "block_out_channels": [320, 640, 1280, 1280],
  "attention_head_dim": 8,
  "transformer_layers_per_block": [1, 2, 10],
  "norm_eps": 1e-05,
  "class_embed_type": null,
  "use_linear_projection": false,
  "new_option": {"a": [1]}
}
)";

}  // namespace

TEST_CASE("typed values") {
  const auto config = JsonConfig::from_text(sample, "unet/config.json");
  CHECK(config.get<int>("sample_size") == 64);
  CHECK(config.get<std::string>("act_fn") == "silu");
  CHECK(config.get<std::vector<lpo::index_t>>("block_out_channels") == std::vector<lpo::index_t>{320, 640, 1280, 1280});
  CHECK(config.get<double>("norm_eps") == 1e-5);
  CHECK(config.get<float>("sample_size") == 64.0f);
  CHECK(config.get<std::optional<std::string>>("class_embed_type") == std::nullopt);
  CHECK(config.get_or("class_embed_type", "none") == "none");
  CHECK(config.get_or("flip_sin_to_cos", true));
  CHECK_FALSE(config.get<bool>("use_linear_projection"));
  CHECK(config.get_per_level<int>("attention_head_dim", 3) == std::vector<int>{8, 8, 8});
  CHECK(config.get_per_level<int>("transformer_layers_per_block", 3) == std::vector<int>{1, 2, 10});
  CHECK(config.get_per_level_or<int>("layers_per_block", 2, 4) == std::vector<int>{4, 4});
  CHECK(config.child("new_option").get<std::vector<int>>("a") == std::vector<int>{1});
}

TEST_CASE("keys that nobody read are reported and written back") {
  const auto config = JsonConfig::from_text(sample, "c");
  config.get<int>("sample_size");
  config.has("act_fn");
  const auto unread = config.unread_keys();
  CHECK(unread.size() == 7);
  CHECK(unread.back() == "new_option");
  CHECK(JsonConfig::from_text(config.text(), "again").original() == config.original());
  CHECK(has_part(config.text(), "\"new_option\": {\n    \"a\": [\n      1"));
  CHECK(config.all_keys().front() == "_class_name");
}

TEST_CASE("messages name file, key, found and expected") {
  const auto config = JsonConfig::from_text(sample, "unet/config.json");
  const auto text = [&](auto action) { return message_of<FileError>(action); };
  CHECK(text([&] { config.get<int>("act_fn"); }) ==
        "[config] unet/config.json: key \"act_fn\" is \"silu\", expected an integer");
  CHECK(text([&] { config.get<int>("sample_sizes"); }) ==
        "[config] unet/config.json: no key \"sample_sizes\", expected an integer (did you mean \"sample_size\"?)");
  CHECK(text([&] { config.get<int>("norm_eps"); }) ==
        "[config] unet/config.json: key \"norm_eps\" is 1e-05, expected an integer");
  CHECK(has_part(text([&] { config.get<std::vector<std::string>>("block_out_channels"); }),
                 "is [320,640,1280,1280], expected an array, each element a string"));
  CHECK(has_part(text([&] { config.get_per_level<int>("transformer_layers_per_block", 4); }),
                 "has 3 values, expected one or 4"));
  CHECK(has_part(text([&] { config.child("act_fn"); }), "\"act_fn\" is a string, expected an object"));
  CHECK(has_part(text([] { JsonConfig::from_text("[1]", "c.json"); }), "c.json: is an array of 1, expected an object"));
  CHECK(has_part(text([] { JsonConfig::from_text("{\"a\":1,\"a\":2}", "c.json"); }), "key \"a\" occurs twice"));
  CHECK(has_part(text([] { JsonConfig::from_text("{\"a\":", "c.json"); }), "[config] c.json: not valid JSON: "));
  CHECK(has_part(text([] { JsonConfig::from_text(std::string(100000, '['), "c.json"); }), "nested deeper than 64"));
  CHECK(has_part(text([] { JsonConfig::from_text("{\"a\":4294967296}", "c").get<int>("a"); }), "expected an integer"));
  CHECK(has_part(text([] { JsonConfig::from_text("{\"a\":-1}", "c").get<unsigned>("a"); }), "a non-negative integer"));
}

TEST_CASE("a config that is made here is read back") {
  const TemporaryDirectory directory;
  JsonConfig config;
  config.set("_class_name", "DDIMScheduler");
  config.set("beta_start", 0.00085);
  config.set("levels", std::vector<lpo::index_t>{32, 64});
  config.set("clip_sample", false);
  config.set("class_embed_type", std::optional<int>{});
  JsonConfig inner;
  inner.set("rank", 4);
  config.set_child("lora", inner);
  config.write(directory.file("config.json"));
  const auto again = JsonConfig::from_file(directory.file("config.json"));
  CHECK(again.original() == config.original());
  CHECK(again.get<double>("beta_start") == 0.00085);
  CHECK(again.child("lora").get<int>("rank") == 4);
  CHECK(directory.read("config.json")
            .starts_with("{\n  \"_class_name\": \"DDIMScheduler\",\n  \"beta_start\": 0.00085,"));
}

TEST_CASE("all differences to the compiled model come in one message") {
  const auto config = JsonConfig::from_text(sample, "unet/config.json");
  ConfigCheck check(config);
  check.expect("sample_size", 64);
  check.expect("block_out_channels", std::vector<int>{320, 640});
  check.expect("use_linear_projection", true);
  check.expect("layers_per_block", 2, 2);
  CHECK(
      message_of<FileError>([&] { check.finish(); }) ==
      "[config] unet/config.json: does not match the compiled model: block_out_channels is [320,640,1280,1280] in the "
      "file, [320,640] in the model; use_linear_projection is false in the file, true in the model");
  ConfigCheck good(config);
  good.expect("attention_head_dim", 8);
  CHECK_NOTHROW(good.finish());
}
