// SPDX-License-Identifier: MIT
// Single-file checkpoints: names of the published models, small pipelines that diffusers converted, what files may
// lack.
#include <lpo/io/load_single_file.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <map>
#include <memory>
#include <set>
#include <tuple>
#include <vector>

#include <lpo/io/gzip.hpp>

#include "golden_file.hpp"
#include "io/single_file_goldens.hpp"
#include "io/temporary_directory.hpp"
#include "mapped_memory.hpp"
#include "stored_models.hpp"

using namespace lpo;

namespace {

std::string golden_path(const std::string& family) {
  return std::string(LPO_TEST_GOLDEN_DIR) + "/single_file_" + family + ".safetensors";
}

/// family, component, name, stored name
using Line = std::tuple<std::string, std::string, std::string, std::string>;

void add_lines(std::set<Line>& lines, const char* family, const char* component, const std::string& prefix,
               const std::vector<StoredWeight>& weights) {
  for (const StoredWeight& w : weights) CHECK(lines.emplace(family, component, w.name, prefix + w.stored).second);
}

/// A file in memory with some tensors of another one; `rename` gives the new key, or "" to leave the tensor out.
template <class Rename>
SafetensorsFile changed(const SafetensorsFile& file, std::string& bytes, const Rename& rename) {
  SafetensorsWriter writer;
  for (const std::string& key : file.keys()) {
    const TensorInfo& info = file.info(key);
    const std::string name = rename(key);
    if (!name.empty()) writer.add(name, info.dtype, info.shape, info.data);
  }
  bytes = writer.bytes();
  return SafetensorsFile::from_memory(bytes.data(), bytes.size(), "changed.safetensors");
}

}  // namespace

TEST_CASE("the names of SD1.5, SD2.1 and SDXL are those of diffusers' converters") {
  std::set<Line> expected;
  const std::string text = read_gzip_file(std::string(LPO_TEST_GOLDEN_DIR) + "/single_file_names.txt.gz");
  for (std::size_t at = 0; at < text.size();) {
    std::string field[4];
    for (int i = 0; i < 4; ++i) {
      const std::size_t end = text.find(i < 3 ? ' ' : '\n', at);
      REQUIRE(end != std::string::npos);
      field[i] = text.substr(at, end - at);
      at = end + 1;
    }
    expected.emplace(field[0], field[1], field[2], field[3]);
  }
  CHECK(expected.size() == 5077);

  std::set<Line> lines;
  add_lines(lines, "sd15", "unet", "model.diffusion_model.", ldm_unet_weights(presets::sd15));
  add_lines(lines, "sd21", "unet", "model.diffusion_model.", ldm_unet_weights(presets::sd21));
  add_lines(lines, "sdxl", "unet", "model.diffusion_model.", ldm_unet_weights(presets::sdxl));
  for (const char* family : {"sd15", "sd21", "sdxl"})
    add_lines(lines, family, "vae", "first_stage_model.", ldm_vae_weights(presets::sd_vae));
  add_lines(lines, "sd15", "text_encoder", "cond_stage_model.transformer.", ldm_clip_weights(presets::clip_l));
  add_lines(lines, "sd21", "text_encoder", "cond_stage_model.model.", open_clip_weights(presets::clip_h));
  add_lines(lines, "sdxl", "text_encoder", "conditioner.embedders.0.transformer.", ldm_clip_weights(presets::clip_l));
  add_lines(lines, "sdxl", "text_encoder_2", "conditioner.embedders.1.model.", open_clip_weights(presets::clip_bigg));
  CHECK(lines == expected);
}

TEST_CASE("small pipelines: family, architecture and every weight") {
  for (const golden::SinglePipeline& pipeline : golden::single_pipelines()) {
    CAPTURE(pipeline.name);
    const SingleFile file(golden_path(pipeline.name));
    CHECK(file.family() == pipeline.family);
    CHECK(file.unet_config() == pipeline.unet);
    CHECK(file.vae_config() == pipeline.vae);
    REQUIRE(file.text_encoders() == pipeline.text_encoders.size());
    for (std::size_t i = 0; i < file.text_encoders(); ++i)
      CHECK(file.text_encoder_config(i) == pipeline.text_encoders[i]);
    CHECK(file.other_keys().empty());
    for (const auto& [component, weights] : golden::components_of(file)) {
      CHECK(!weights.keys().empty());
      for (const std::string& name : weights.keys()) {
        const auto values = weights.read_vector<float>(name);
        if (values != golden::single_file_value(component + "." + name, values.size())) FAIL_CHECK(name);
      }
    }
  }
}

TEST_CASE("components written as a single file are the file that they came from") {
  for (const golden::SinglePipeline& pipeline : golden::single_pipelines()) {
    CAPTURE(pipeline.name);
    const SingleFile file(golden_path(pipeline.name));
    const auto components = golden::components_of(file);
    const auto places = ldm_text_encoder_places(pipeline.family);
    SafetensorsWriter writer;
    add_stored_weights(writer, components[0].second, ldm_unet_prefix, ldm_unet_weights(pipeline.unet));
    add_stored_weights(writer, components[1].second, ldm_vae_prefix, ldm_vae_weights(pipeline.vae));
    for (std::size_t i = 0; i < places.size(); ++i)
      add_stored_weights(writer, components[2 + i].second, places[i].prefix,
                         text_encoder_weights(places[i], pipeline.text_encoders[i]));
    const std::string bytes = writer.bytes();
    const auto written = SafetensorsFile::from_memory(bytes.data(), bytes.size(), "written");
    for (const std::string& key : written.keys()) {
      const TensorInfo &mine = written.info(key), &theirs = file.info(key);
      if (mine.shape != theirs.shape || mine.dtype != theirs.dtype ||
          !std::equal(mine.data, mine.data + mine.bytes, theirs.data, theirs.data + theirs.bytes))
        FAIL_CHECK(key);
    }
    // The rest: averages, a table, position numbers, SD2's last layer.
    const std::size_t extra = file.keys().size() - written.keys().size();
    CHECK(extra == std::map<std::string, std::size_t>{{"sd15", 4}, {"sd21", 3 + 14}, {"sdxl", 4}}.at(pipeline.name));
  }
}

TEST_CASE("compiled models load from a single file") {
  static constexpr UNetConfig unet_config{.levels = 3,
                                          .channels = {4, 8, 8, 0},
                                          .transformer_depth = {0, 1, 2, 0},
                                          .heads = {1, 2, 2, 0},
                                          .mid_depth = 2,
                                          .context_width = 14,
                                          .linear_projection = true,
                                          .groups = 2,
                                          .addition_time_width = 3,
                                          .addition_width = 26};
  static constexpr VaeConfig vae_config{.levels = 2, .channels = {4, 4, 0, 0}, .layers_per_block = 1, .groups = 2};
  static constexpr ClipTextConfig text_config{.vocabulary = 12,
                                              .width = 8,
                                              .hidden = 10,
                                              .layers = 3,
                                              .heads = 2,
                                              .positions = 5,
                                              .quick_gelu = false,
                                              .projection = 8};
  const SingleFile file(golden_path("sdxl"));
  StoredPipeline<unet_config, vae_config, text_config> pipeline(1, "text_encoder_2");
  auto& [unet, vae, text, store] = pipeline;
  vae->scaling_factor = 0;
  std::size_t loaded = load_unet(file, *unet, store).loaded + load_vae(file, *vae, store).loaded;
  loaded += load_text_encoder(file, *text, store, "text_encoder_2", 1).loaded;
  CHECK(loaded == store.entries().size());
  CHECK(vae->scaling_factor == 0.13025f);
  for (const auto& entry : store.entries()) {
    const auto oihw = golden::single_file_value(entry.name, static_cast<std::size_t>(entry.parameter->size()));
    std::vector<float> mine(entry.parameter->data(), entry.parameter->data() + entry.parameter->size());
    if (detail::needs_permutation(*entry.parameter)) {
      std::vector<float> permuted(mine.size());
      detail::permute_convolution(static_cast<const float*>(mine.data()), permuted.data(), entry.parameter->extents,
                                  true);
      mine = permuted;
    }
    if (mine != oihw) FAIL_CHECK(entry.name);
  }

  SUBCASE("the encoder half too") {
    const StoredModel<UNetEncoder<unet_config, float, Reference>> half("unet");
    CHECK(load_unet(file, *half, half.store).loaded == half.store.entries().size());
  }
  SUBCASE("another architecture is refused with a list, and nothing changes") {
    const auto before = pipeline.values();
    const auto error =
        message_of<FileError>([&] { load_unet(SingleFile(golden_path("sd15")), *pipeline.unet, pipeline.store); });
    CHECK(has_part(error, "single_file_sd15.safetensors does not fit the architecture: "));
    CHECK(has_part(error, " are missing: model.diffusion_model.label_emb.0.0.weight, "));
    CHECK(has_part(error, " tensors under \"model.diffusion_model.\" are not part of it: "));
    CHECK(pipeline.values() == before);
  }
}

TEST_CASE("files with one component, other prefixes, or wrapped keys") {
  const SafetensorsFile whole(golden_path("sd15"));
  std::string bytes;
  const auto below = [](const std::string& prefix, const std::string& as) {
    return [=](const std::string& key) { return key.starts_with(prefix) ? as + key.substr(prefix.size()) : ""; };
  };
  SUBCASE("a UNet, with and without its prefix") {
    for (const char* prefix : {"model.diffusion_model.", ""}) {
      const SingleFile file(changed(whole, bytes, below("model.diffusion_model.", prefix)));
      CHECK(file.has_unet());
      CHECK_FALSE(file.has_vae());
      CHECK(file.text_encoders() == 0);
      CHECK(file.family() == CheckpointFamily::v1);
      CHECK(file.unet(file.unet_config()).keys().size() == file.keys().size());
      CHECK_THROWS_WITH_AS(file.vae_config(), "[checkpoint] changed.safetensors: has no autoencoder", FileError);
      CHECK_THROWS_WITH_AS(file.text_encoder_config(),
                           "[checkpoint] changed.safetensors: has 0 text encoders, asked for number 0", FileError);
    }
  }
  SUBCASE("a UNet alone tells XL by its added conditioning") {
    const SafetensorsFile xl(golden_path("sdxl"));
    CHECK(SingleFile(changed(xl, bytes, below("model.diffusion_model.", ""))).family() == CheckpointFamily::xl);
  }
  SUBCASE("an autoencoder, under each of its prefixes") {
    for (const char* prefix : {"first_stage_model.", "vae.", ""}) {
      const SingleFile file(changed(whole, bytes, below("first_stage_model.", prefix)));
      CHECK(file.has_vae());
      CHECK_FALSE(file.has_unet());
      CHECK(file.vae(file.vae_config()).keys().size() == file.keys().size());
    }
  }
  SUBCASE("everything below state_dict, beside the state of a training program") {
    const SingleFile file(changed(whole, bytes, [](const std::string& key) {
      return key == "betas" ? std::string("global_step") : "state_dict." + key;
    }));
    CHECK(file.keys().size() == whole.keys().size() - 1);
    CHECK(golden::components_of(file).size() == 3);
  }
  SUBCASE("averaged weights alone are no checkpoint") {
    const auto error =
        message_of<FileError>([&] { SingleFile(changed(whole, bytes, below("model_ema.", "model_ema."))); });
    CHECK(error ==
          "[checkpoint] changed.safetensors: has no UNet, autoencoder or text encoder in the layout of single "
          "files; its first keys: model_ema.decay, model_ema.diffusion_modelout2bias");
  }
  SUBCASE("a component of a diffusers folder is recognised") {
    SafetensorsWriter writer;
    const SingleFile file(golden_path("sd15"));
    const RenamedWeights unet = file.unet(file.unet_config());
    add_weights(writer, unet);
    bytes = writer.bytes();
    const auto error = message_of<FileError>(
        [&] { SingleFile(SafetensorsFile::from_memory(bytes.data(), bytes.size(), "unet.safetensors")); });
    CHECK(has_part(error, "it looks like a component of a diffusers folder: give the folder"));
  }
}

TEST_CASE("missing and foreign tensors are listed in one error") {
  const SafetensorsFile whole(golden_path("sd15"));
  std::string bytes;
  const std::string unet = "model.diffusion_model.";
  const SingleFile file(changed(whole, bytes, [&](const std::string& key) {
    if (key == unet + "input_blocks.0.0.bias" || key == unet + "middle_block.1.norm.bias") return std::string();
    return key == unet + "out.2.bias" ? unet + "control.bias" : key;
  }));
  CHECK_THROWS_WITH_AS(file.unet(file.unet_config()),
                       "[checkpoint] changed.safetensors does not fit the architecture: 3 tensors are missing: "
                       "model.diffusion_model.input_blocks.0.0.bias, model.diffusion_model.middle_block.1.norm.bias, "
                       "model.diffusion_model.out.2.bias; 1 tensor under \"model.diffusion_model.\" is not part of it: "
                       "model.diffusion_model.control.bias",
                       FileError);
  CHECK_NOTHROW(file.vae(file.vae_config()));
}

TEST_CASE("settings: what the metadata says, else what is usual") {
  const SafetensorsFile whole(golden_path("sd21"));
  std::string bytes;
  const auto with = [&](const std::map<std::string, std::string>& metadata) {
    SafetensorsWriter writer;
    for (const auto& [key, value] : metadata) writer.set_metadata(key, value);
    add_weights(writer, whole);
    bytes = writer.bytes();
    return SingleFile(SafetensorsFile::from_memory(bytes.data(), bytes.size(), "file"));
  };
  const SingleFile usual = with({});
  CHECK_FALSE(usual.prediction_type());
  CHECK(prediction_type_of(usual) == PredictionType::v_prediction);
  CHECK(resolution_of(usual, PredictionType::v_prediction) == 768);
  CHECK(resolution_of(usual, PredictionType::epsilon) == 512);
  CHECK(scaling_factor_of(usual) == 0.18215f);
  CHECK(load_scheduler(usual).prediction_type == PredictionType::v_prediction);
  const auto asked = load_scheduler(usual, SamplerKind::euler, PredictionType::epsilon);
  CHECK(asked.sampler == SamplerKind::euler);
  CHECK(asked.prediction_type == PredictionType::epsilon);

  const SingleFile said = with(
      {{"modelspec.prediction_type", "epsilon"}, {"modelspec.resolution", "640x960"}, {"lpo.scaling_factor", "0.75"}});
  CHECK(prediction_type_of(said) == PredictionType::epsilon);
  CHECK(resolution_of(said, PredictionType::epsilon) == 960);
  CHECK(scaling_factor_of(said) == 0.75f);
  for (const char* wrong : {"", "x", "512x", "512x512x", "-3", "512 x 512 pixels"})
    CHECK(message_of<FileError>([&] {
            resolution_of(with({{"modelspec.resolution", wrong}}), PredictionType::epsilon);
          }) == "[checkpoint] file: metadata \"modelspec.resolution\" is \"" + std::string(wrong) +
                    "\", expected like \"512x512\"");
  for (const char* wrong : {"", "one", "0", "-1", "0.5x", "nan"})
    CHECK(message_of<FileError>([&] {
            scaling_factor_of(with({{"lpo.scaling_factor", wrong}}));
          }) == "[checkpoint] file: metadata \"lpo.scaling_factor\" is \"" + std::string(wrong) +
                    "\", expected a positive number");
}

TEST_CASE("a component is read in parts, and its pages are given back") {
  struct Module {
    std::array<Linear<1024, 1024, float, Reference, false>, 3> projections;
    void visit(ParameterVisitor<float, Reference>& v) { v("to", projections); }
  };
  const TemporaryDirectory directory;
  {
    SafetensorsWriter writer;  // 12 MiB
    std::vector<float> values(3 * 1024 * 1024);
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
    writer.add_owned("joined", DType::F32, {3 * 1024, 1024}, std::move(values));
    writer.write(directory.file("one"));
  }
  const long before = mapped_kilobytes();
  REQUIRE(before >= 0);
  const RenamedWeights weights(SafetensorsFile(directory.file("one")), "",
                               {{"to.0.weight", "joined", WeightPacking::query},
                                {"to.1.weight", "joined", WeightPacking::key},
                                {"to.2.weight", "joined", WeightPacking::value}});
  float part[2];
  weights.read_part("to.1.weight", 5, 2, part);
  CHECK(part[0] == 1024.0f * 1024.0f + 5.0f);
  CHECK(part[1] == 1024.0f * 1024.0f + 6.0f);
  CHECK_THROWS_AS(weights.read_part("to.1.weight", 1024 * 1024 - 1, 2, part), FileError);

  const auto module = std::make_unique<Module>();
  ParameterStore<float, Reference> store;
  store.add("", *module);
  store.allocate_frozen();
  CHECK(load_parameters(store, weights).loaded == 3);
  CHECK(module->projections[2].weight.data()[7] == 2.0f * 1024.0f * 1024.0f + 7.0f);
  CHECK(mapped_kilobytes() < before + 4096);
}

TEST_CASE("tensors that cannot be unpacked are named") {
  const std::vector<float> values(16, 0.0f);
  SafetensorsWriter writer;
  writer.add("joined", DType::F32, {4, 2}, values.data());
  writer.add("vector", DType::F32, {4}, values.data());
  writer.add("window", DType::F32, {1, 1, 3, 3}, values.data());
  const std::string bytes = writer.bytes();
  const auto file = SafetensorsFile::from_memory(bytes.data(), bytes.size(), "file");
  const auto open = [&](const char* key, WeightPacking packing) {
    return message_of<FileError>([&] {
      RenamedWeights(file, "", {{"weight", key, packing}}, [](auto) { return true; });
    });
  };
  CHECK(open("joined", WeightPacking::key) ==
        "[checkpoint] file: tensor \"joined\" has shape [4, 2], expected three equal parts along the first axis");
  CHECK(open("vector", WeightPacking::transposed) ==
        "[checkpoint] file: tensor \"vector\" has shape [4], expected a matrix");
  CHECK(open("window", WeightPacking::pointwise) ==
        "[checkpoint] file: tensor \"window\" has shape [1, 1, 3, 3], expected a matrix or a 1x1 convolution");
}

TEST_CASE("UNets that no lpo config describes are refused") {
  const SafetensorsFile whole(golden_path("sd15"));
  std::string bytes;
  const std::string unet = "model.diffusion_model.";
  // Without the second layer of level 1, its transformer and all.
  const SingleFile file(changed(whole, bytes, [&](const std::string& key) {
    if (key.starts_with(unet + "input_blocks.5.")) return std::string();
    return key.starts_with(unet + "input_blocks.6.") ? unet + "input_blocks.5." + key.substr(unet.size() + 15) : key;
  }));
  CHECK_THROWS_WITH_AS(file.unet_config(),
                       "[checkpoint] changed.safetensors: level 1 of the UNet has 1 layers, expected 2", FileError);
}

TEST_CASE("no shape makes a file do anything but load or be refused") {
  /// A table in which one tensor lies about its shape.
  struct Altered : TensorTable {
    Altered(const TensorTable& whole, const std::string& key, const std::vector<index_t>& shape) : TensorTable(whole) {
      TensorInfo& tensor = tensors_.at(key);
      tensor.shape = shape;
      tensor.bytes = dtype_size(tensor.dtype);
      for (const index_t extent : shape) tensor.bytes *= static_cast<std::size_t>(extent);
    }
  };
  const SafetensorsFile whole(golden_path("sdxl"));
  const auto keys = whole.keys();
  int refused = 0, loaded = 0;
  for (std::size_t at = 0; at < keys.size(); at += 29) {
    const TensorInfo& original = whole.info(keys[at]);
    const std::vector<std::vector<index_t>> shapes = {
        {}, {0}, {original.count()}, {original.count(), 1}, {1, 1, 1, original.count()}};
    for (const auto& shape : shapes) {
      CAPTURE(keys[at]);
      try {
        const SingleFile file(Altered(whole, keys[at], shape));
        for (const auto& [component, weights] : golden::components_of(file))
          for (const std::string& name : weights.keys()) loaded += weights.read_vector<float>(name).empty() ? 0 : 1;
      } catch (const FileError&) {
        ++refused;
      }
    }
  }
  CHECK(refused > 0);
  CHECK(loaded > 0);
}
