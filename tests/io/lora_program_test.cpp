// SPDX-License-Identifier: MIT
// The parts of the `lora` program: what it tells about a file, and folders that are merged entirely or not at all.
#include "lora/inspect.hpp"
#include "lora/merge_folder.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "golden_file.hpp"
#include "temporary_directory.hpp"

using namespace lpo;

namespace {

/// One adapter of rank 2, alpha 4: scale 2 times up [3, 2] * down [2, 2].
void write_lora(const std::string& path, const std::vector<float>& up, const std::string& module = "a.to_q") {
  SafetensorsWriter writer;
  writer.set_metadata("note", "x");
  const std::string base = "lora_unet_" + detail::with_underscores(module);
  writer.add_owned(base + ".lora_down.weight", DType::F32, {2, 2}, std::vector<float>{1, 2, 3, 4});
  writer.add_owned(base + ".lora_up.weight", DType::F32, {3, 2}, up);
  writer.add_owned(base + ".alpha", DType::F32, {}, std::vector<float>{4});
  writer.write(path);
}
const std::vector<float> ordinary = {1, 0, 0, 1, 1, -1};

void write_base(const std::string& path, std::vector<index_t> shape = {3, 2}) {
  SafetensorsWriter writer;
  const auto count = static_cast<std::size_t>(shape[0] * shape[1]);
  writer.add_owned("a.to_q.weight", DType::F32, std::move(shape), std::vector<float>(count));
  writer.write(path);
}

}  // namespace

TEST_CASE("a file's adapters are told with their norms") {
  TemporaryDirectory directory;
  write_lora(directory.file("lora"), ordinary);
  const LoraFile file(directory.file("lora"));
  const auto modules = lora_tool::modules_of(file);
  REQUIRE(modules.size() == 1);
  CHECK(modules[0].scale == 2.0);
  CHECK(modules[0].delta == std::vector<index_t>{3, 2});
  // up * down = [[1, 2], [3, 4], [-2, -2]], squares 1 + 4 + 9 + 16 + 4 + 4 = 38.
  CHECK(modules[0].norm == doctest::Approx(2.0 * std::sqrt(38.0)));
  const auto json = lora_tool::inspect_json(file);
  CHECK(json.at("formats") == OrderedJson({"kohya"}));
  CHECK(json.at("components").at("unet").at("ranks").at("2") == 1);
  CHECK(json.at("components").at("unet").at("targets").at("to_q") == 1);
  CHECK(json.at("modules").at(0).at("alpha") == 4.0);
  CHECK(json.at("metadata").at("note") == "x");
  const std::string text = lora_tool::inspect_text(file, true);
  CHECK(has_part(text, "unet: 1 adapters\n  rank      2\n  alpha     4\n  targets   to_q\n"));
  CHECK(has_part(text, "unet.a.to_q  [3, 2]  2  4  12.3288\n"));
  CHECK_FALSE(has_part(lora_tool::inspect_text(file, false), "12.3288"));
}

TEST_CASE("targets are what trainers call them") {
  CHECK(lora_tool::target_of("mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0") == "to_out.0");
  CHECK(lora_tool::target_of("mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj") == "ff.net.0.proj");
  CHECK(lora_tool::target_of("text_model.encoder.layers.0.self_attn.q_proj") == "q_proj");
  CHECK(lora_tool::target_of("conv_in") == "conv_in");
}

TEST_CASE("norms of every golden adapter are those of its product") {
  const auto golden_file = golden::open("lora_kohya");
  const std::string bytes = golden::part_of(golden_file, "kohya/").bytes();
  const LoraFile file(SafetensorsFile::from_memory(bytes.data(), bytes.size(), "lora"));
  for (const auto& module : lora_tool::modules_of(file)) {
    const auto* adapter = file.find(module.component, module.path);
    const auto up = file.file().read_vector<double>(adapter->up), down = file.file().read_vector<double>(adapter->down);
    const auto rank = static_cast<std::size_t>(adapter->rank);
    double square = 0;
    for (std::size_t o = 0; o < up.size() / rank; ++o)
      for (std::size_t c = 0; c < down.size() / rank; ++c) {
        double value = 0;
        for (std::size_t r = 0; r < rank; ++r) value += up[o * rank + r] * down[r * (down.size() / rank) + c];
        square += value * value;
      }
    CHECK(module.norm == doctest::Approx(module.scale * std::sqrt(square)).epsilon(1e-12));
  }
}

TEST_CASE("a check fails for keys without weights, other shapes, zeros and values that are no numbers") {
  TemporaryDirectory directory;
  write_base(directory.file("base"));
  const auto base = open_base(directory.file("base"));
  const auto check = [&] { return lora_tool::check_lora(LoraFile(directory.file("lora")), base); };
  write_lora(directory.file("lora"), ordinary);
  CHECK(check().good());
  CHECK(check().matched_in.at("unet") == 1);
  CHECK(has_part(lora_tool::check_text(check(), 1), "1 of 1 adapters match, 1 in unet\ngood\n"));
  CHECK(lora_tool::check_json(check()).at("good") == true);

  write_lora(directory.file("lora"), ordinary, "b.to_q");
  CHECK_FALSE(check().good());
  CHECK(check().unmatched == std::vector<std::string>{"lora_unet_b_to_q.alpha", "lora_unet_b_to_q.lora_down.weight",
                                                      "lora_unet_b_to_q.lora_up.weight"});
  CHECK(has_part(lora_tool::check_text(check(), 1), "0 of 1 adapters match\nkeys that the base has no weight for\n"));

  write_lora(directory.file("lora"), std::vector<float>(6));
  CHECK(has_part(detail::listed(check().problems), "all adapters are zero"));
  write_lora(directory.file("lora"), std::vector<float>(6, std::numeric_limits<float>::quiet_NaN()));
  CHECK(has_part(detail::listed(check().problems), "\"a.to_q\" of unet has values that are not finite"));

  write_lora(directory.file("lora"), ordinary);
  write_base(directory.file("other"), {2, 3});
  const auto other = lora_tool::check_lora(LoraFile(directory.file("lora")), open_base(directory.file("other")));
  CHECK_FALSE(other.good());
  REQUIRE(other.mismatched.size() == 1);
  CHECK(has_part(other.mismatched[0], "make [3, 2], \"a.to_q.weight\" is [2, 3]"));

  SafetensorsWriter loha;
  for (const char* name : {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
    loha.add_owned(std::string("lora_unet_a_to_q.") + name, DType::F32, {2, 2}, std::vector<float>(4, 1.0f));
  loha.add_owned("lora_unet_a_to_q.alpha", DType::F32, {}, std::vector<float>{1});
  loha.write(directory.file("lora"));
  CHECK(check().problems.size() == 4);
  CHECK(has_part(check().problems[0], "(LoHa)"));
  CHECK(
      has_part(lora_tool::inspect_text(LoraFile(directory.file("lora")), true), "lora_unet_a_to_q.hada_w1_a  (LoHa)"));
}

TEST_CASE("NaN is not merged unless it is wanted, and the file and the key are named") {
  TemporaryDirectory directory;
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::string out = directory.file("out");
  const auto merge = [&](const LoraMergeOptions& options) {
    const auto base = open_base(directory.file("base"));
    const LoraFile file(directory.file("lora"));
    merge_lora_file(file, base, fit_lora(file, base), base.front(), out, options);
  };
  write_base(directory.file("base"));
  write_lora(directory.file("lora"), {1, 0, 0, nan, 1, -1});
  CHECK(message_of<FileError>([&] { merge({}); }) ==
        "[lora] " + directory.file("lora") +
            ": \"lora_unet_a_to_q.lora_up.weight\" holds NaN; such a model draws nothing");
  CHECK_FALSE(file_exists(out));
  merge({.allow_non_finite = true});
  CHECK(file_exists(out));

  write_lora(directory.file("lora"), ordinary);
  SafetensorsWriter writer;
  writer.add_owned("a.to_q.weight", DType::F32, {3, 2}, std::vector<float>(6));
  writer.add_owned("b.weight", DType::F32, {2}, std::vector<float>{1, -std::numeric_limits<float>::infinity()});
  writer.write(directory.file("base"));
  CHECK(message_of<FileError>([&] { merge({}); }) ==
        "[lora] " + directory.file("base") + ": \"b.weight\" holds an infinity; such a model draws nothing");
}

TEST_CASE("a merged folder is a whole pipeline, or is not there") {
  TemporaryDirectory directory;
  const std::string base_path = directory.file("base"), out = directory.file("out");
  for (const char* folder : {"/unet", "/text_encoder", "/tokenizer"}) make_directories(base_path + folder);
  write_base(base_path + "/unet/diffusion_pytorch_model.safetensors");
  write_base(base_path + "/text_encoder/model.safetensors");
  write_text_file(base_path + "/unet/diffusion_pytorch_model.bin", "old");
  write_text_file(base_path + "/unet/config.json", "{}");
  write_text_file(base_path + "/tokenizer/vocab.json", "{}");
  write_text_file(base_path + "/model_index.json", "{}");
  write_lora(directory.file("lora"), ordinary);
  const LoraFile lora(directory.file("lora"));
  const auto base = open_base(base_path);
  const auto silent = [](const BaseComponent&) { return WriteCallback{}; };
  lora_tool::merge_folder(lora, base_path, base, out + "/", {.strength = 0.5}, silent);
  CHECK(file_exists(out + "/model_index.json"));
  CHECK(file_exists(out + "/unet/config.json"));
  CHECK(file_exists(out + "/tokenizer/vocab.json"));
  CHECK_FALSE(file_exists(out + "/unet/diffusion_pytorch_model.bin"));
  CHECK(SafetensorsFile(out + "/unet/diffusion_pytorch_model.safetensors").read_vector<float>("a.to_q.weight") ==
        std::vector<float>{1, 2, 3, 4, -2, -2});
  CHECK(read_text_file(out + "/text_encoder/model.safetensors") ==
        read_text_file(base_path + "/text_encoder/model.safetensors"));

  // A type is for all parts that a LoRA could adapt.
  lora_tool::merge_folder(lora, base_path, base, directory.file("half"), {.dtype = DType::F16}, silent);
  CHECK(SafetensorsFile(directory.file("half/text_encoder/model.safetensors")).info("a.to_q.weight").dtype ==
        DType::F16);

  const auto entries = directory.entries();
  CHECK(has_part(message_of<FileError>([&] { lora_tool::merge_folder(lora, base_path, base, out, {}, silent); }),
                 "exists; give the name of a new folder"));
  const auto stop = [](const BaseComponent&) {
    return [](const std::string&, std::size_t, std::size_t) { return false; };
  };
  CHECK_THROWS_AS(lora_tool::merge_folder(lora, base_path, base, directory.file("new"), {}, stop), CancelledError);
  write_lora(directory.file("wrong"), ordinary, "b.to_q");
  const LoraFile wrong(directory.file("wrong"));
  CHECK_THROWS_AS(lora_tool::merge_folder(wrong, base_path, base, directory.file("new"), {}, silent), FileError);
  auto after = directory.entries();
  std::erase(after, "wrong");
  CHECK(after == entries);
}
