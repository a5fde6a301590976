// SPDX-License-Identifier: MIT
// The `convert` program's plans: both directions on small pipelines, options, refusals, and a cancelled run.
#include "convert/conversion.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <filesystem>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "io/bare_clip_text.hpp"
#include "io/single_file_goldens.hpp"
#include "io/temporary_directory.hpp"
#include "stored_models.hpp"

using namespace lpo;
using conversion::Options;

namespace {

std::string golden_path(const std::string& family) {
  return std::string(LPO_TEST_GOLDEN_DIR) + "/single_file_" + family + ".safetensors";
}

/// The config.json files of a small golden pipeline, with the heads and groups that shapes do not tell.
void write_configs(const golden::SinglePipeline& p, const std::string& folder) {
  UNetConfig unet = p.unet;
  unet.groups = 2;
  for (std::size_t i = 0; i < unet.heads.size(); ++i) unet.heads[i] = std::max(1, unet.channels[i] / 4);
  VaeConfig vae = p.vae;
  vae.groups = 2;
  make_directories(folder + "/unet");
  make_directories(folder + "/vae");
  unet_json(unet).write(folder + "/unet/config.json");
  vae_json(vae, 0.5).write(folder + "/vae/config.json");
  for (std::size_t i = 0; i < p.text_encoders.size(); ++i) {
    ClipTextConfig text = p.text_encoders[i];
    text.heads = 2;
    make_directories(folder + "/" + golden::text_encoder_name(i));
    clip_text_json(text).write(folder + "/" + golden::text_encoder_name(i) + "/config.json");
  }
}

void convert(const Options& o) { conversion::execute(conversion::make_plan(o)); }

std::size_t files_below(const std::string& folder) {
  const std::filesystem::recursive_directory_iterator all(folder);
  return static_cast<std::size_t>(
      std::count_if(begin(all), end(all), [](const auto& e) { return e.is_regular_file(); }));
}

}  // namespace

TEST_CASE("single file to folder and back: every weight, for each family") {
  for (const golden::SinglePipeline& p : golden::single_pipelines()) {
    CAPTURE(p.name);
    const TemporaryDirectory directory;
    const std::string folder = directory.file("folder"), again = directory.file("again.safetensors");
    write_configs(p, directory.file("configs"));
    convert({.from = golden_path(p.name), .to = folder, .config = directory.file("configs")});
    CHECK(directory.read("folder/unet/config.json") == directory.read("configs/unet/config.json"));
    CHECK(load_model_index(folder).components.contains("text_encoder_2") == (p.family == CheckpointFamily::xl));
    const auto schedule = load_scheduler(folder + "/scheduler");
    CHECK((schedule.prediction_type == PredictionType::v_prediction) == (p.family == CheckpointFamily::v2));
    const SingleFile before(golden_path(p.name));
    for (const auto& [component, weights] : golden::components_of(before)) {
      const bool text = component.starts_with("text_encoder");
      const auto file = open_checkpoint(folder + "/" + component, text ? "model" : "diffusion_pytorch_model");
      CHECK(file.keys() == weights.keys());
      for (const std::string& name : file.keys()) {
        const auto values = file.read_vector<float>(name);
        if (values != golden::single_file_value(component + "." + name, values.size())) FAIL_CHECK(name);
      }
    }

    convert({.from = folder, .to = again});
    const SingleFile after(again);
    CHECK(after.family() == p.family);
    CHECK(after.metadata().at("modelspec.prediction_type") == (p.family == CheckpointFamily::v2 ? "v" : "epsilon"));
    for (const std::string& key : after.keys()) {
      const TensorInfo &mine = after.info(key), &theirs = before.info(key);
      if (mine.shape != theirs.shape || mine.dtype != theirs.dtype ||
          !std::equal(mine.data, mine.data + mine.bytes, theirs.data))
        FAIL_CHECK(key);
    }
    // What a file says about its predictions is kept on the way back.
    const Options back{.from = again, .to = directory.file("back"), .config = directory.file("configs")};
    CHECK(conversion::make_plan(back).notes.size() == 1);  // about the tokenizer
    convert(back);
    CHECK(directory.read("back/scheduler/scheduler_config.json") ==
          directory.read("folder/scheduler/scheduler_config.json"));
  }
}

TEST_CASE("a model that lpo wrote, wide enough that shapes tell all: configs and weights come back") {
  static constexpr UNetConfig unet_config{.levels = 2,
                                          .channels = {32, 64, 0, 0},
                                          .layers_per_block = 1,
                                          .transformer_depth = {1, 0, 0, 0},
                                          .heads = {8, 8, 0, 0},
                                          .context_width = 64};
  static constexpr VaeConfig vae_config{.levels = 2, .channels = {32, 64, 0, 0}, .layers_per_block = 1};
  static constexpr ClipTextConfig text_config{
      .vocabulary = 20, .width = 64, .hidden = 32, .layers = 2, .heads = 1, .positions = 7};
  StoredPipeline<unet_config, vae_config, text_config> pipeline(5);
  auto& [unet, vae, text, store] = pipeline;
  vae->scaling_factor = 0.7123f;  // not the family's: files carry it
  ComponentOptions options;
  options.config.set("sample_size", 24);
  const auto before = pipeline.values();
  const TemporaryDirectory directory;
  save_unet(directory.file("a/unet"), *unet, store, "unet", options);
  save_vae(directory.file("a/vae"), *vae, store);
  save_text_encoder(directory.file("a/text_encoder"), *text, store);
  convert({.from = directory.file("a"), .to = directory.file("one.safetensors")});
  convert({.from = directory.file("one.safetensors"), .to = directory.file("b")});

  pipeline.clear();
  vae->scaling_factor = 0;
  const auto unet_report = load_unet(directory.file("b/unet"), *unet, store);  // compares every setting
  CHECK(unet_report.config.get<int>("sample_size") == 24);
  load_vae(directory.file("b/vae"), *vae, store);
  load_text_encoder(directory.file("b/text_encoder"), *text, store);
  CHECK(pipeline.values() == before);
  CHECK(vae->scaling_factor == 0.7123f);
  pipeline.clear();
  vae->scaling_factor = 0;
  const SingleFile file(directory.file("one.safetensors"));
  load_unet(file, *unet, store);
  load_vae(file, *vae, store);
  CHECK(vae->scaling_factor == 0.7123f);
  CHECK(resolution_of(file, PredictionType::epsilon) == 48);
  load_text_encoder(file, *text, store);
  CHECK(pipeline.values() == before);

  bare_clip_text(directory.file("a/text_encoder/model.safetensors"));
  convert({.from = directory.file("a"), .to = directory.file("again.safetensors")});
  CHECK(directory.read("again.safetensors") == directory.read("one.safetensors"));
}

TEST_CASE("a schedule with zero terminal SNR has its mark in the single file; what has none is refused") {
  const golden::SinglePipeline p = golden::single_pipelines()[0];
  const TemporaryDirectory directory;
  const std::string folder = directory.file("folder"), path = folder + "/scheduler/scheduler_config.json";
  write_configs(p, directory.file("configs"));
  convert({.from = golden_path(p.name), .to = folder, .config = directory.file("configs")});
  convert({.from = folder, .to = directory.file("plain.safetensors")});
  CHECK_FALSE(SingleFile(directory.file("plain.safetensors")).contains("ztsnr"));

  JsonConfig scheduler = JsonConfig::from_file(path);
  scheduler.set("rescale_betas_zero_snr", true);
  scheduler.set("prediction_type", "v_prediction");
  scheduler.write(path);
  convert({.from = folder, .to = directory.file("one.safetensors")});
  const SingleFile file(directory.file("one.safetensors"));
  CHECK(file.other_keys().empty());
  CHECK(load_scheduler(file).rescale_betas_zero_snr);
  CHECK(load_scheduler(file).prediction_type == PredictionType::v_prediction);
  convert({.from = file.path(), .to = directory.file("back"), .config = directory.file("configs")});
  CHECK(load_scheduler(directory.file("back/scheduler")).rescale_betas_zero_snr);
  convert({.from = folder, .to = directory.file("vae.safetensors"), .component = "vae"});
  CHECK_FALSE(SingleFile(directory.file("vae.safetensors")).contains("ztsnr"));

  scheduler.set("prediction_type", "sample");
  scheduler.write(path);
  CHECK(has_part(message_of<FileError>([&] { conversion::make_plan({.from = folder, .to = "x.safetensors"}); }),
                 path + ": prediction_type is sample, which a single file cannot say"));
}

TEST_CASE("types, variants, single components and tokenizers") {
  const golden::SinglePipeline p = golden::single_pipelines()[2];  // XL
  const TemporaryDirectory directory;
  write_configs(p, directory.file("configs"));
  const std::string folder = directory.file("folder"),
                    words = std::string(LPO_TEST_SOURCE_DIR) + "/examples/tinyworld/model/tokenizer";
  Options o{.from = golden_path(p.name),
            .to = folder,
            .dtype = DType::F32,
            .variant = "fp16",
            .tokenizer = words,
            .config = directory.file("configs"),
            .prediction_type = "v_prediction"};
  const auto plan = conversion::make_plan(o);
  CHECK(plan.data_bytes() == 2 * conversion::make_plan({.from = o.from, .to = o.to, .config = o.config}).data_bytes());
  conversion::execute(plan);
  const auto unet = open_checkpoint(folder + "/unet", "diffusion_pytorch_model", "fp16");
  CHECK(unet.info("conv_in.weight").dtype == DType::F32);
  CHECK(read_clip_vocabulary(folder + "/tokenizer").pad_token == "<|endoftext|>");
  CHECK(file_exists(folder + "/tokenizer_2/vocab.json"));
  CHECK(load_model_index(folder).components.size() == 7);
  CHECK(load_scheduler(folder + "/scheduler").prediction_type == PredictionType::v_prediction);

  SUBCASE("one component of a folder, converted") {
    const std::string one = directory.file("text.safetensors");
    convert({.from = folder, .to = one, .dtype = DType::BF16, .variant = "fp16", .component = "text_encoder_2"});
    const SingleFile file(one);
    CHECK_FALSE(file.has_unet());
    CHECK(file.text_encoders() == 1);
    CHECK(file.info("conditioner.embedders.1.model.ln_final.bias").dtype == DType::BF16);
  }
  SUBCASE("one component of a single file") {
    o.to = directory.file("part");
    o.component = "vae";
    convert(o);
    CHECK(files_below(o.to) == 2);
    o.from = directory.file("configs");  // a folder without weights
    o.to = directory.file("vae.safetensors");
    CHECK_THROWS_AS(conversion::make_plan(o), FileError);
  }
  SUBCASE("nothing is overwritten unasked") {
    const auto error = message_of<FileError>([&] { conversion::make_plan(o); });
    CHECK(has_part(error, "/unet/diffusion_pytorch_model.fp16.safetensors exists; give another target or --overwrite"));
    o.overwrite = true;
    CHECK_NOTHROW(convert(o));
  }
  SUBCASE("a cancelled run leaves whole files only, and no model index") {
    o.to = directory.file("stopped");
    const auto stopping = conversion::make_plan(o);
    int calls = 0;
    CHECK_THROWS_AS(conversion::execute(stopping, [&](const Progress&) { return ++calls < 3; }), CancelledError);
    CHECK(files_below(o.to) == 2);  // the UNet and the autoencoder
    CHECK(file_exists(stopping.weights[1].path));
  }
}

TEST_CASE("what cannot be converted is refused with a remedy") {
  const TemporaryDirectory directory;
  const std::string one = golden_path("sd15"), folder = directory.path();
  const auto refusal = [](const Options& o) { return message_of<Error>([&] { conversion::make_plan(o); }); };
  CHECK(
      has_part(refusal({.from = one, .to = folder}), "give a diffusers folder with the same architecture as --config"));
  CHECK(refusal({.from = one, .to = "x.safetensors"}) ==
        "[convert] " + one + " is a single file, so x.safetensors must be a folder, not a file");
  CHECK(refusal({.from = folder, .to = "x"}) ==
        "[convert] " + folder + " is a folder, so x must be the name of a single file, *.safetensors");
  CHECK(refusal({.from = folder, .to = "x.safetensors"}) ==
        "[convert] " + folder + ": has no unet, vae or text_encoder with a config.json; expected a diffusers folder");
  CHECK(refusal({.from = one, .to = folder, .component = "text_encoder_2"}) ==
        "[convert] " + one + ": has no text_encoder_2");
  CHECK(has_part(refusal({.from = folder + "/none", .to = folder}), "no such file or folder"));

  golden::SinglePipeline other = golden::single_pipelines()[0];
  other.unet.context_width = 10;
  write_configs(other, directory.file("configs"));
  CHECK(refusal({.from = one, .to = folder, .config = directory.file("configs")}) ==
        "[config] " + directory.file("configs/unet/config.json") +
            ": does not match the weights: cross_attention_dim is 10 in the file, 6 in the model");
}
