// SPDX-License-Identifier: MIT
// LoRA from file to file: merging, converting and extracting, against diffusers and numpy, without any model.
#include <lpo/io/lora_convert.hpp>
#include <lpo/io/lora_extract.hpp>
#include <lpo/io/lora_merge.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include <lpo/backend/cpu/truncated_svd.hpp>

#include "bare_clip_text.hpp"
#include "golden_file.hpp"
#include "temporary_directory.hpp"

using namespace lpo;

namespace {

/// A pipeline's folder with the golden UNet and text encoder.
struct Pipeline {
  TemporaryDirectory directory;

  Pipeline() {
    make_directories(path() + "/unet");
    make_directories(path() + "/text_encoder");
    golden::part_of(golden::open("unet_sd15"), "weights/").write(path() + "/unet/diffusion_pytorch_model.safetensors");
    golden::part_of(golden::open("clip_text"), "quick/weights/").write(path() + "/text_encoder/model.safetensors");
    golden::part_of(golden::open("lora_kohya"), "kohya/").write(directory.file("lora.safetensors"));
  }
  std::string path() const { return directory.file("base"); }
  std::string lora() const { return directory.file("lora.safetensors"); }
};

double difference(const std::vector<float>& a, const std::vector<float>& b) {
  REQUIRE(a.size() == b.size());
  return golden::relative_error(a.data(), b.data(), static_cast<index_t>(a.size()));
}

const auto cpu_svd = [](const double* a, index_t rows, index_t columns, index_t rank) {
  return truncated_svd(a, rows, columns, rank);
};

/// up * down of an adapter, times its scale.
std::vector<double> delta_of(const LoraFile& file, const LoraFile::Adapter& adapter) {
  const auto up = file.file().read_vector<double>(adapter.up), down = file.file().read_vector<double>(adapter.down);
  const std::size_t rank = static_cast<std::size_t>(adapter.rank), rows = up.size() / rank,
                    columns = down.size() / rank;
  std::vector<double> delta(rows * columns);
  for (std::size_t o = 0; o < rows; ++o)
    for (std::size_t r = 0; r < rank; ++r)
      for (std::size_t c = 0; c < columns; ++c)
        delta[o * columns + c] += adapter.scale() * up[o * rank + r] * down[r * columns + c];
  return delta;
}

}  // namespace

TEST_CASE("merged files hold the weights that diffusers' fuse_lora makes") {
  const Pipeline pipeline;
  const auto base = open_base(pipeline.path());
  REQUIRE(base.size() == 2);
  CHECK(base[0].name == "unet");
  CHECK(base[1].file_name == "text_encoder/model.safetensors");
  const LoraFile lora(pipeline.lora(), layers_per_block_of(base));
  const auto fit = fit_lora(lora, base);
  CHECK(fit.complete());
  CHECK(fit.targets.size() == 46);
  const auto golden_file = golden::open("lora_kohya");
  std::set<std::string> adapted;
  for (const auto& target : fit.targets) adapted.insert(target.part->name + "." + target.key);
  std::size_t checked = 0;
  for (const BaseComponent& part : base) {
    const std::string out = pipeline.directory.file("merged.safetensors");
    merge_lora_file(lora, base, fit, part, out);
    const SafetensorsFile merged(out);
    CHECK(merged.keys() == part.weights.keys());
    CHECK(merged.metadata().at("format") == "pt");
    for (const std::string& key : merged.keys()) {
      CAPTURE(key);
      CHECK(merged.info(key).shape == part.weights.info(key).shape);
      CHECK(merged.info(key).dtype == part.weights.info(key).dtype);
      const std::string name = part.name + "." + key, fused = "fused/" + name;
      const auto values = merged.read_vector<float>(key), before = part.weights.read_vector<float>(key);
      CHECK((values == before) == !adapted.contains(name));
      if (!golden_file.contains(fused)) continue;
      CHECK(difference(values, golden_file.read_vector<float>(fused)) < 1e-6);
      ++checked;
    }
    // Taking it away again gives the base.
    const auto again = open_base(out, part.name);
    merge_lora_file(lora, again, fit_lora(lora, again), again.front(), out, {.strength = -1.0});
    const SafetensorsFile back(out);
    for (const std::string& key : back.keys())
      CHECK(difference(back.read_vector<float>(key), part.weights.read_vector<float>(key)) < 1e-6);
  }
  CHECK(checked == 4);
}

TEST_CASE("merging converts the type once, keeps integers, and stops without a trace") {
  const Pipeline pipeline;
  SafetensorsWriter writer;
  const index_t ids[2] = {1, 2};
  const std::vector<float> weight = {1.0f, 2.0f, 3.0f, 4.0f};
  writer.add_converted("position_ids", DType::I64, {2}, ids);
  writer.add_converted("a.weight", DType::F16, {2, 2}, weight.data());
  writer.add_converted("a.bias", DType::F16, {2}, weight.data());
  writer.write(pipeline.directory.file("base.safetensors"));
  SafetensorsWriter adapter;
  adapter.add_owned("a.lora_A.weight", DType::F32, {1, 2}, std::vector<float>{1.0f, 10.0f});
  adapter.add_owned("a.lora_B.weight", DType::F32, {2, 1}, std::vector<float>{1.0f, 0.001f});
  adapter.write(pipeline.directory.file("a.safetensors"));
  const auto base = open_base(pipeline.directory.file("base.safetensors"));
  const LoraFile lora(pipeline.directory.file("a.safetensors"));
  const auto fit = fit_lora(lora, base);
  const std::string out = pipeline.directory.file("out.safetensors");
  merge_lora_file(lora, base, fit, base[0], out, {.strength = 0.5, .dtype = DType::BF16});
  const SafetensorsFile merged(out);
  CHECK(merged.info("position_ids").dtype == DType::I64);
  CHECK(merged.info("a.bias").dtype == DType::BF16);
  // 3 + 0.0005 and 4 + 0.005 are nearer to 3 and 4 than to the next bfloat16.
  CHECK(merged.read_vector<float>("a.weight") == std::vector<float>{1.5f, 7.0f, 3.0f, 4.0f});
  merge_lora_file(lora, base, fit, base[0], out, {.strength = 0.5});
  CHECK(SafetensorsFile(out).info("a.weight").dtype == DType::F16);
  CHECK(SafetensorsFile(out).read_vector<float>("a.weight")[3] == static_cast<float>(half(4.005f)));
  CHECK_THROWS_AS(merge_lora_file(lora, base, fit, base[0], out, {.dtype = DType::I32}), ValueError);

  const auto before = pipeline.directory.entries();
  const auto stop = [](const std::string&, std::size_t, std::size_t) { return false; };
  CHECK_THROWS_AS(merge_lora_file(lora, base, fit, base[0], pipeline.directory.file("new"), {.progress = stop}),
                  CancelledError);
  CHECK(pipeline.directory.entries() == before);
}

TEST_CASE("a LoRA that does not fit its base is refused, with names") {
  const Pipeline pipeline;
  const LoraFile lora(pipeline.lora());
  const std::string out = pipeline.directory.file("out");
  // SD2.1's attention is wider in one level, and has a smaller context.
  golden::part_of(golden::open("unet_sd21"), "weights/").write(pipeline.directory.file("other.safetensors"));
  const auto other = open_base(pipeline.directory.file("other.safetensors"));
  const auto fit = fit_lora(lora, other);
  CHECK_FALSE(fit.complete());
  CHECK_FALSE(fit.mismatched.empty());
  CHECK(std::count(fit.unmatched.begin(), fit.unmatched.end(),
                   "lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight") == 1);
  const auto wrong = message_of<FileError>([&] { merge_lora_file(lora, other, fit, other[0], out); });
  CHECK(has_part(wrong,
                 "make [16, 12], \"down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.weight\" is [16, 16]"));

  golden::part_of(golden::open("vae"), "weights/").write(pipeline.directory.file("vae.safetensors"));
  const auto vae = open_base(pipeline.directory.file("vae.safetensors"));
  const auto none = message_of<FileError>([&] { merge_lora_file(lora, vae, fit_lora(lora, vae), vae[0], out); });
  CHECK(has_part(none, "none of its 46 adapters belongs to"));
  CHECK_FALSE(file_exists(out));

  CHECK(has_part(message_of<FileError>([&] { open_base(pipeline.directory.file("nowhere")); }),
                 "no such file or folder"));
  SafetensorsWriter joint;
  joint.add_owned("model.diffusion_model.out.2.weight", DType::F32, {1}, std::vector<float>(1));
  joint.write(pipeline.directory.file("joint.safetensors"));
  CHECK(has_part(message_of<FileError>([&] { open_base(pipeline.directory.file("joint.safetensors")); }),
                 "whole pipeline in ldm's layout"));
}

TEST_CASE("a base is a file, a component's folder or a pipeline's; fp16 folders keep their name") {
  const Pipeline pipeline;
  CHECK(open_base(pipeline.path() + "/unet/")[0].file_name == "diffusion_pytorch_model.safetensors");
  CHECK(open_base(pipeline.path() + "/text_encoder")[0].name == "text_encoder");
  CHECK(open_base(pipeline.path() + "/text_encoder/model.safetensors")[0].name == "text_encoder");
  CHECK(open_base(pipeline.path() + "/text_encoder", "text_encoder_2")[0].name == "text_encoder_2");
  bare_clip_text(pipeline.path() + "/text_encoder/model.safetensors");
  CHECK(open_base(pipeline.path() + "/text_encoder/model.safetensors")[0].name == "text_encoder");
  CHECK(fit_lora(LoraFile(pipeline.lora()), open_base(pipeline.path())).complete());
  make_directories(pipeline.directory.file("half/unet"));
  golden::part_of(golden::open("unet_sd15"), "weights/")
      .write(pipeline.directory.file("half/unet/diffusion_pytorch_model.fp16.safetensors"));
  const auto half = open_base(pipeline.directory.file("half"));
  REQUIRE(half.size() == 1);
  CHECK(half[0].file_name == "unet/diffusion_pytorch_model.fp16.safetensors");
  CHECK(layers_per_block_of(half) == 2);
  CHECK(layers_per_block_of({}) == 2);
}

TEST_CASE("conversion renames as diffusers does and keeps every delta") {
  const Pipeline pipeline;
  const LoraFile lora(pipeline.lora());
  const auto golden_file = golden::open("lora_kohya");
  const std::string out = pipeline.directory.file("out.safetensors");

  convert_lora(lora, out, {.format = LoraFormat::diffusers, .dtype = {}, .metadata = {{"note", "a"}}});
  const LoraFile modern(out);
  CHECK(modern.formats() == std::set<LoraFormat>{LoraFormat::diffusers});
  CHECK(modern.file().metadata().at("note") == "a");
  std::set<std::string> keys;
  for (const std::string& key : golden_file.keys())
    if (key.starts_with("peft/")) keys.insert(key.substr(5));
  const auto written = modern.file().keys();
  CHECK(std::set<std::string>(written.begin(), written.end()) == keys);
  for (const std::string& key : keys) {
    CHECK(modern.file().info(key).shape == golden_file.info("peft/" + key).shape);
    CHECK(modern.file().read_vector<float>(key) == golden_file.read_vector<float>("peft/" + key));
  }
  const auto scales = parse_json<SortedJson>(golden_file.metadata().at("scales"), "test", "scales");
  for (const auto* adapter : modern.adapters())
    CHECK(adapter->scale() == scales.at(adapter->component + "." + adapter->path).get<double>());

  // Around and back: kohya again, every tensor as it was.
  convert_lora(modern, out, {.format = LoraFormat::kohya, .dtype = {}});
  const LoraFile again(out);
  CHECK(again.file().keys() == lora.file().keys());
  for (const std::string& key : lora.file().keys())
    CHECK(again.file().read_vector<float>(key) == lora.file().read_vector<float>(key));
  CHECK(again.file().metadata().at("ss_network_dim") == "4");
  CHECK(again.file().metadata().at("ss_network_alpha") == "1.0");
  CHECK(again.file().metadata().at("note") == "a");
  CHECK_FALSE(again.file().metadata().contains("lora_adapter_metadata"));

  // Without alpha the scale is in the up matrices.
  for (const LoraOptions& options : {LoraOptions{.format = LoraFormat::diffusers_old},
                                     LoraOptions{.format = LoraFormat::diffusers, .fold_alpha = true},
                                     LoraOptions{.format = LoraFormat::kohya, .fold_alpha = true}}) {
    convert_lora(lora, out, options);
    const LoraFile folded(out);
    CHECK(folded.formats() == std::set<LoraFormat>{options.format});
    for (const auto* adapter : folded.adapters()) {
      CHECK(adapter->scale() == 1.0);
      const auto expected = delta_of(lora, *lora.find(adapter->component, adapter->path)),
                 found = delta_of(folded, *adapter);
      CHECK(golden::relative_error(found.data(), expected.data(), static_cast<index_t>(expected.size())) < 1e-6);
    }
  }
  CHECK(LoraFile(out).file().contains("lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"));

  convert_lora(lora, out, {.format = LoraFormat::diffusers, .dtype = DType::F16});
  CHECK(LoraFile(out).file().info("unet.mid_block.resnets.1.conv2.lora_A.weight").dtype == DType::F16);
}

TEST_CASE("SDXL's kohya files become diffusers' names and te1, te2 again") {
  TemporaryDirectory directory;
  const auto golden_file = golden::open("lora_kohya_sdxl");
  golden::part_of(golden_file, "kohya/").write(directory.file("in"));
  convert_lora(LoraFile(directory.file("in")), directory.file("out"), {.dtype = {}});
  std::vector<std::string> keys;
  for (const std::string& key : golden_file.keys())
    if (key.starts_with("peft/")) keys.push_back(key.substr(5));
  CHECK(SafetensorsFile(directory.file("out")).keys() == keys);
  convert_lora(LoraFile(directory.file("out")), directory.file("back"), {.format = LoraFormat::kohya, .dtype = {}});
  const SafetensorsFile back(directory.file("back"));
  CHECK(back.contains("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.alpha"));
  CHECK(back.contains("lora_te2_text_model_encoder_layers_0_self_attn_q_proj.alpha"));
  CHECK(back.contains("lora_unet_down_blocks_1_attentions_0_proj_in.lora_down.weight"));
}

TEST_CASE("names of other architectures need the base") {
  TemporaryDirectory directory;
  SafetensorsWriter lora, base;
  lora.add_owned("lora_unet_single_blocks_0_my_layer.lora_down.weight", DType::F32, {1, 2},
                 std::vector<float>(2, 1.0f));
  lora.add_owned("lora_unet_single_blocks_0_my_layer.lora_up.weight", DType::F32, {2, 1}, std::vector<float>(2, 1.0f));
  lora.write(directory.file("in"));
  base.add_owned("single_blocks.0.my_layer.weight", DType::F32, {2, 2}, std::vector<float>(4));
  base.write(directory.file("base"));
  const LoraFile file(directory.file("in"));
  CHECK(has_part(message_of<FileError>([&] { convert_lora(file, directory.file("out"), {}); }), "give the base model"));
  CHECK_FALSE(file_exists(directory.file("out")));
  convert_lora(file, directory.file("out"), {}, open_base(directory.file("base")));
  CHECK(SafetensorsFile(directory.file("out")).contains("unet.single_blocks.0.my_layer.lora_A.weight"));
  CHECK(fit_lora(file, open_base(directory.file("base"))).complete());
}

TEST_CASE("extraction gives back a LoRA that was merged, exactly, and nothing else") {
  const Pipeline pipeline;
  const auto base = open_base(pipeline.path());
  const LoraFile lora(pipeline.lora());
  const std::string tuned_path = pipeline.directory.file("tuned");
  make_directories(tuned_path + "/unet");
  make_directories(tuned_path + "/text_encoder");
  for (const BaseComponent& part : base)
    merge_lora_file(lora, base, fit_lora(lora, base), part, tuned_path + "/" + part.file_name);
  const auto tuned = open_base(tuned_path);
  const std::string out = pipeline.directory.file("extracted.safetensors");
  std::size_t calls = 0, last = 0;
  LoraExtractOptions options;
  options.rank = 4;
  options.kernel_rank = 2;
  options.before_weight = [&](const std::string&, std::size_t done, std::size_t total) {
    CHECK(done == calls++);
    last = total;
  };
  const auto report = extract_lora(base, tuned, out, options, cpu_svd);
  CHECK(calls == last);
  CHECK(report.layers.size() == 46);
  CHECK(report.left_out.empty());
  CHECK(report.unchanged + report.layers.size() == last);
  CHECK(report.energy() == doctest::Approx(1.0).epsilon(1e-9));
  const LoraFile extracted(out);
  for (const auto& layer : report.layers) {
    CAPTURE(layer.path);
    CHECK(layer.energy == doctest::Approx(1.0).epsilon(1e-9));
    const auto* adapter = extracted.find(layer.component, layer.path);
    REQUIRE(adapter != nullptr);
    CHECK(adapter->scale() == 1.0);
    const auto expected = delta_of(lora, *lora.find(layer.component, layer.path)),
               found = delta_of(extracted, *adapter);
    // tuned was rounded to float: the difference has an error of 6e-8 of the weight, not of itself.
    CHECK(golden::relative_error(found.data(), expected.data(), static_cast<index_t>(expected.size())) < 2e-6);
    double norm = 0;
    for (const double value : expected) norm += value * value;
    CHECK(layer.norm == doctest::Approx(std::sqrt(norm)).epsilon(1e-5));
  }
}

TEST_CASE("rounding to a narrower type is no difference") {
  TemporaryDirectory directory;
  const std::vector<float> before = {0.1f, 0.2f, 0.3f, 0.4f}, after = {0.1f, 0.2f, 0.3f, 0.9f};
  SafetensorsWriter base, tuned;
  for (const char* name : {"same", "other"}) {
    base.add_converted(name + std::string(".weight"), DType::F32, {2, 2}, before.data());
    tuned.add_converted(name + std::string(".weight"), DType::F16, {2, 2}, (name[0] == 's' ? before : after).data());
  }
  base.write(directory.file("base"));
  tuned.write(directory.file("tuned"));
  const auto wide = open_base(directory.file("base")), narrow = open_base(directory.file("tuned"));
  for (const bool turn : {false, true}) {
    const auto report = extract_lora(turn ? narrow : wide, turn ? wide : narrow, directory.file("out"),
                                     {.rank = 1, .targets = {}, .file = {}, .before_weight = {}}, cpu_svd);
    CHECK(report.unchanged == 1);
    REQUIRE(report.layers.size() == 1);
    CHECK(report.layers[0].energy == doctest::Approx(1.0).epsilon(1e-12));
    CHECK(report.layers[0].norm == doctest::Approx(static_cast<double>(static_cast<float>(half(0.9f))) -
                                                   static_cast<double>(static_cast<float>(half(0.4f)))));
  }
}

TEST_CASE("the energy that an extraction keeps is that of numpy's largest singular values") {
  TemporaryDirectory directory;
  const auto golden_file = golden::open("svd");
  SafetensorsWriter base, tuned;
  for (const char* name : {"wide", "flat", "falling"}) {
    const auto& shape = golden_file.info(std::string("matrix/") + name).shape;
    const auto values = golden_file.read_vector<float>(std::string("matrix/") + name);
    base.add_owned(name + std::string(".weight"), DType::F32, shape, std::vector<float>(values.size()));
    tuned.add_owned(name + std::string(".weight"), DType::F32, shape, values);
  }
  const std::vector<float> one(1, 1.0f), two(1, 2.0f);
  base.add_converted("wide.bias", DType::F32, {1}, one.data());
  tuned.add_converted("wide.bias", DType::F32, {1}, two.data());
  base.add_converted("same.weight", DType::F32, {1, 1}, one.data());
  tuned.add_converted("same.weight", DType::F32, {1, 1}, one.data());
  base.add_converted("token_embedding.weight", DType::F32, {1, 1}, one.data());
  tuned.add_converted("token_embedding.weight", DType::F32, {1, 1}, two.data());
  base.write(directory.file("base"));
  tuned.write(directory.file("tuned"));
  LoraExtractOptions options;
  options.rank = 7;
  options.targets = {"wide", "flat", "falling"};
  const auto report = extract_lora(open_base(directory.file("base")), open_base(directory.file("tuned")),
                                   directory.file("out"), options, cpu_svd);
  CHECK(report.unchanged == 1);
  CHECK(report.left_out == std::vector<std::string>{"token_embedding.weight", "wide.bias"});
  REQUIRE(report.layers.size() == 3);
  for (const auto& layer : report.layers) {
    CAPTURE(layer.path);
    double kept = 0, all = 0;
    const auto values = golden_file.read_vector<double>("values/" + layer.path);
    for (std::size_t k = 0; k < values.size(); ++k) {
      all += values[k] * values[k];
      if (k < 7) kept += values[k] * values[k];
    }
    CHECK(layer.energy == doctest::Approx(kept / all).epsilon(1e-5));
    CHECK(layer.norm == doctest::Approx(std::sqrt(all)).epsilon(1e-9));
    // What the file holds is as far from the difference as its report says.
    const LoraFile file(directory.file("out"));
    const auto delta = delta_of(file, *file.find("unet", layer.path));
    const auto truth = golden_file.read_vector<double>("matrix/" + layer.path);
    double error = 0;
    for (std::size_t i = 0; i < truth.size(); ++i) error += (delta[i] - truth[i]) * (delta[i] - truth[i]);
    CHECK(error == doctest::Approx((1 - layer.energy) * all).epsilon(1e-4));
  }
  const auto same = open_base(directory.file("base"));
  CHECK(has_part(message_of<FileError>([&] { extract_lora(same, same, directory.file("x"), options, cpu_svd); }),
                 "differs from"));
  options.targets = {"same"};
  CHECK(has_part(message_of<FileError>([&] {
                   extract_lora(same, open_base(directory.file("tuned")), directory.file("x"), options, cpu_svd);
                 }),
                 "only in what is left out"));
  options.rank = 0;
  CHECK_THROWS_AS(extract_lora(same, same, directory.file("x"), options, cpu_svd), ValueError);
  CHECK_FALSE(file_exists(directory.file("x")));
}

TEST_CASE("checkpoints of different models have no difference") {
  const Pipeline pipeline;
  golden::part_of(golden::open("unet_sd21"), "weights/").write(pipeline.directory.file("other.safetensors"));
  const auto text = message_of<FileError>([&] {
    extract_lora(open_base(pipeline.path() + "/unet"), open_base(pipeline.directory.file("other.safetensors")),
                 pipeline.directory.file("x"), {}, cpu_svd);
  });
  CHECK(has_part(text, "is not a tuned"));
  CHECK(has_part(text, "in the base ["));
}
