// SPDX-License-Identifier: MIT
// LoRA files: every spelling reads into the same adapters, what is written is read again, merged weights do the same.
#include <lpo/io/lora.hpp>
#include <lpo/model/clip_text.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdio>
#include <memory>
#include <set>

#include "golden_file.hpp"
#include "model/model_backends.hpp"
#include "model/model_goldens.hpp"
#include "temporary_directory.hpp"

using namespace lpo;

namespace {

using Unet = UNet2DCondition<golden::sd15, float, Reference>;

/// The golden UNet with adapters of some rank.
struct Adapted {
  std::unique_ptr<Unet> unet = std::make_unique<Unet>();
  ParameterStore<float, Reference> store;

  explicit Adapted(index_t rank, float alpha) {
    if (rank > 0) CHECK(enable_lora<float, Reference>(*unet, rank, alpha) == 4 * 2 * 16);
    store.add("unet", *unet);
    store.allocate([](const std::string& name) { return is_lora_name(name); });
    load_parameters(store, golden::open("unet_sd15"), {.model_prefix = "unet", .file_prefix = "weights/"});
  }
  const AnyParameter<float, Reference>& operator[](const std::string& name) const {
    return *store.find("unet." + name);
  }

  std::vector<float> lora_weights() const {
    std::vector<float> all;
    for (const auto& entry : store.entries())
      if (is_lora_name(entry.name))
        all.insert(all.end(), entry.parameter->data(), entry.parameter->data() + entry.parameter->size());
    return all;
  }

  std::vector<float> run() {
    const auto file = golden::open("unet_sd15");
    golden::UNetInputs<float, Reference> inputs(file);
    Context<Reference> context(1);
    Tape<Reference> tape(context);
    const auto guard = tape.inference();
    const auto in = inputs.on(tape);
    const auto out = (*unet)(in.sample, in.condition);
    return std::vector<float>(out.data(), out.data() + out.size());
  }
};

/// Two projections, each with or without its adapter.
struct Pair {
  using value_type = float;
  using device = Reference;
  LoraLinear<3, 3, float, Reference, true> q, k;
  void visit(ParameterVisitor<float, Reference>& v) {
    v("q", q);
    v("k", k);
  }
};

/// The golden LoRA (rank 4, alpha 4) under other keys: `rename` gets "unet.<module>" and 'A' or 'B'.
template <class Rename>
LoraFile respelled(std::string& bytes, Rename&& rename, float alpha_as_tensor = 0) {
  const auto file = golden::open("unet_sd15_lora");
  SafetensorsWriter writer;
  for (const std::string& key : file.keys()) {
    if (!key.starts_with("weights/")) continue;
    const std::string name = key.substr(8), module = name.substr(0, name.find(".lora_"));
    const char matrix = name[module.size() + 6];
    writer.add_owned(rename(module, matrix), DType::F32, file.info(key).shape, file.read_vector<float>(key));
    if (alpha_as_tensor > 0 && matrix == 'A') {
      std::string alpha = rename(module, matrix);
      alpha = alpha.substr(0, alpha.find(".lora")) + ".alpha";
      writer.add_owned(alpha, DType::F32, {}, std::vector<float>{alpha_as_tensor});
    }
  }
  bytes = writer.bytes();
  return LoraFile(SafetensorsFile::from_memory(bytes.data(), bytes.size(), "lora"));
}

/// "unet.down_blocks.1.attentions.0.x" -> "unet.input_blocks.4.1.x", with two layers per block.
std::string ldm_name(const std::string& module) {
  int block = 0, layer = 0, used = 0;
  if (std::sscanf(module.c_str(), "unet.mid_block.attentions.0%n", &used) == 0 && used > 0)
    return "unet.middle_block.1" + module.substr(static_cast<std::size_t>(used));
  const bool down = module.starts_with("unet.down_blocks");
  std::sscanf(module.c_str(), down ? "unet.down_blocks.%d.attentions.%d%n" : "unet.up_blocks.%d.attentions.%d%n",
              &block, &layer, &used);
  return message("unet.", down ? "input_blocks." : "output_blocks.", 3 * block + layer + (down ? 1 : 0), ".1",
                 module.substr(static_cast<std::size_t>(used)));
}

std::string kohya_name(const std::string& module, char matrix) {
  return "lora_" + detail::with_underscores(module) + (matrix == 'A' ? ".lora_down.weight" : ".lora_up.weight");
}

}  // namespace

TEST_CASE("every spelling of a LoRA reads into the same adapters") {
  Adapted model(4, 4.0f);
  load_parameters(model.store, golden::open("unet_sd15_lora"),
                  {.model_prefix = "unet", .file_prefix = "weights/unet", .part = ParameterPart::lora});
  const auto expected = model.lora_weights();
  std::string (*spellings[])(const std::string&, char) = {
      [](const std::string& m, char x) { return m + ".lora_" + x + ".weight"; },
      [](const std::string& m, char x) { return m + ".lora_" + x + ".default.weight"; },
      [](const std::string& m, char x) { return "base_model.model." + m.substr(5) + ".lora_" + x + ".weight"; },
      [](const std::string& m, char x) { return m.substr(5) + ".lora_" + x + ".weight"; },
      [](const std::string& m, char x) { return m + (x == 'A' ? ".lora.down.weight" : ".lora.up.weight"); },
      [](const std::string& m, char x) {  // attention processors of diffusers before 0.17
        const std::size_t at = m.find(".to_");
        std::string projection = m.substr(at + 1);
        if (projection == "to_out.0") projection = "to_out";
        return m.substr(0, at) + ".processor." + projection + (x == 'A' ? "_lora.down.weight" : "_lora.up.weight");
      },
      kohya_name,
      [](const std::string& m, char x) {  // kohya with ldm's block numbers, as for SDXL
        return kohya_name(ldm_name(m), x);
      },
      [](const std::string& m, char x) {  // ComfyUI's own
        return "diffusion_model." + ldm_name(m).substr(5) + (x == 'A' ? ".lora_down.weight" : ".lora_up.weight");
      }};
  for (const auto& spelling : spellings) {
    std::string bytes;
    const auto file = respelled(bytes, spelling);
    CAPTURE(file.adapters().front()->down);
    CHECK(file.rank() == 4);
    Adapted other(4, 1.0f);
    const auto report = load_lora(file, *other.unet);
    CHECK(report.matched == 128);
    CHECK(report.unmatched.empty());
    CHECK(other.lora_weights() == expected);
    CHECK(other.unet->mid_block.attentions.models[0].transformer_blocks[0].attn1.to_q.lora.scale == 1.0f);
  }
}

TEST_CASE("ldm's block numbers") {
  const auto path = [](const char* name, int layers = 2) { return detail::without_ldm_numbers(name, layers); };
  // SDXL's first transformer is input_blocks.4.1, its last output_blocks.5.1; SD1.5's last is output_blocks.11.1.
  CHECK(path("input_blocks.4.1.proj_in") == "down_blocks.1.attentions.0.proj_in");
  CHECK(path("input_blocks.8.1.norm") == "down_blocks.2.attentions.1.norm");
  CHECK(path("middle_block.1.norm") == "mid_block.attentions.0.norm");
  CHECK(path("output_blocks.5.1.norm") == "up_blocks.1.attentions.2.norm");
  CHECK(path("output_blocks.11.1.norm") == "up_blocks.3.attentions.2.norm");
  CHECK(path("input_blocks.0.0") == "conv_in");
  CHECK(path("out.2") == "conv_out");
  CHECK(path("label_emb.0.2") == "add_embedding.linear_2");
  CHECK(path("input_blocks.3.0.op") == "down_blocks.0.downsamplers.0.conv");
  CHECK(path("output_blocks.2.1.conv") == "up_blocks.0.upsamplers.0.conv");
  CHECK(path("middle_block.2.out_layers.3") == "mid_block.resnets.1.conv2");
  CHECK(path("input_blocks.2.0.op", 1) == "down_blocks.0.downsamplers.0.conv");
  for (const char* other : {"conv_in", "input_blocks", "input_blocks.0.1.x", "input_blocks.x.1", "input_blocks.1.7.x",
                            "input_blocks.99999999999999999999.1.x", "input_blocks..1", "output_blocks.1", ""})
    CHECK(path(other) == other);
}

TEST_CASE("kohya's underscores become dots again where UNets and text encoders have them") {
  for (const char* name :
       {"down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_out.0", "mid_block.attentions.0.proj_in", "conv_in",
        "up_blocks.3.resnets.2.time_emb_proj", "down_blocks.0.downsamplers.0.conv", "time_embedding.linear_2",
        "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj", "add_embedding.linear_1", "conv_norm_out",
        "text_model.encoder.layers.11.self_attn.out_proj", "text_model.encoder.layers.0.mlp.fc1", "text_projection"})
    CHECK(detail::with_dots(detail::with_underscores(name)) == name);
  CHECK(detail::with_dots("") == "");
  CHECK(detail::with_dots("a") == "a");
}

TEST_CASE("alpha comes from tensors or from the metadata") {
  std::string bytes;
  Adapted model(4, 4.0f);
  load_lora(respelled(bytes, kohya_name, 2.0f), *model.unet);
  auto& lora = model.unet->mid_block.attentions.models[0].transformer_blocks[0].attn1.to_q.lora;
  CHECK(lora.scale == 0.5f);

  SafetensorsWriter writer;
  writer.set_metadata("lora_adapter_metadata",
                      R"({"unet.r": 2, "unet.lora_alpha": 6, "unet.alpha_pattern": {"attn1.to_k": 1.0}})");
  const std::string base = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.";
  for (const char* projection : {"to_q", "to_k"}) {
    writer.add_owned(base + projection + ".lora_A.weight", DType::F32, {2, 16}, std::vector<float>(32, 0.5f));
    writer.add_owned(base + projection + ".lora_B.weight", DType::F32, {16, 2}, std::vector<float>(32, 0.25f));
  }
  const std::string text = writer.bytes();
  const auto report = load_lora(LoraFile(SafetensorsFile::from_memory(text.data(), text.size(), "meta")), *model.unet);
  CHECK(report.matched == 2);
  CHECK(lora.scale == 3.0f);
  CHECK(model.unet->mid_block.attentions.models[0].transformer_blocks[0].attn1.to_k.lora.scale == 0.5f);
  // Rank 2 in adapters of rank 4: rows and columns behind are zero; modules that the file lacks do nothing.
  CHECK(lora.down.data()[31] == 0.5f);
  CHECK(lora.down.data()[32] == 0.0f);
  CHECK(lora.up.data()[1] == 0.25f);
  CHECK(lora.up.data()[2] == 0.0f);
  const auto& other = model.unet->mid_block.attentions.models[0].transformer_blocks[0].attn2.to_v.lora;
  CHECK(std::all_of(other.up.data(), other.up.data() + other.up.size(), [](float v) { return v == 0.0f; }));
}

TEST_CASE("what is written is read again in every format, and merges to the same function") {
  Adapted model(4, 2.0f);
  load_parameters(model.store, golden::open("unet_sd15_lora"),
                  {.model_prefix = "unet", .file_prefix = "weights/unet", .part = ParameterPart::lora});
  const auto adapted = model.run();
  TemporaryDirectory directory;
  for (const LoraFormat format : {LoraFormat::diffusers, LoraFormat::diffusers_old, LoraFormat::kohya}) {
    const std::string path = directory.file("lora.safetensors");
    save_lora(path, *model.unet, {.format = format, .metadata = {{"ss_base_model_version", "sd_v1"}}});
    const LoraFile file(path);
    CHECK(file.unknown_keys().empty());
    CHECK(file.file().metadata().at("ss_base_model_version") == "sd_v1");
    Adapted again(4, 1.0f);
    CHECK(load_lora(file, *again.unet).matched == 128);
    if (format == LoraFormat::diffusers_old)
      CHECK(golden::relative_error(again.run().data(), adapted.data(), static_cast<index_t>(adapted.size())) < 1e-6);
    else
      CHECK(again.run() == adapted);

    Adapted merged(0, 0);
    const auto before = merged.run();
    CHECK(golden::relative_error(before.data(), adapted.data(), static_cast<index_t>(adapted.size())) > 1e-3);
    CHECK(merge_lora(file, merged.store).matched == 128);
    CHECK(golden::relative_error(merged.run().data(), adapted.data(), static_cast<index_t>(adapted.size())) < 2e-6);
    merge_lora(file, merged.store, "unet", -1.0);
    CHECK(golden::relative_error(merged.run().data(), before.data(), static_cast<index_t>(before.size())) < 2e-6);
  }
  merge_adapters(*model.unet);
  CHECK(golden::relative_error(model.run().data(), adapted.data(), static_cast<index_t>(adapted.size())) < 2e-6);
}

TEST_CASE("a LoRA of a 3x3 convolution merges with its kernel") {
  // delta[o, i, y, x] = sum_r up[o, r] down[r, i, y, x]; with rank 1, up = 1..8 and down = its own position in OIHW.
  SafetensorsWriter writer;
  std::vector<float> down(4 * 9), up(8);
  for (std::size_t i = 0; i < down.size(); ++i) down[i] = static_cast<float>(i);
  for (std::size_t i = 0; i < up.size(); ++i) up[i] = static_cast<float>(i + 1);
  writer.add_owned("lora_unet_conv_in.lora_down.weight", DType::F32, {1, 4, 3, 3}, down);
  writer.add_owned("lora_unet_conv_in.lora_up.weight", DType::F32, {8, 1, 1, 1}, up);
  const std::string bytes = writer.bytes();
  Adapted model(0, 0);
  const auto& weight = model["conv_in.weight"];
  const std::vector<float> before(weight.data(), weight.data() + weight.size());
  merge_lora(LoraFile(SafetensorsFile::from_memory(bytes.data(), bytes.size(), "locon")), model.store);
  // o = 5, y = 2, x = 1, i = 3 lies at OHWI ((5 * 3 + 2) * 3 + 1) * 4 + 3 and gains 6 * ((3 * 3 + 2) * 3 + 1).
  const std::size_t at = ((5 * 3 + 2) * 3 + 1) * 4 + 3;
  CHECK(weight.data()[at] - before[at] == doctest::Approx(6.0 * 34.0));
}

TEST_CASE("files that do not fit are refused and change nothing") {
  Adapted model(2, 2.0f);
  const auto before = model.lora_weights();
  std::string bytes;
  const auto fits = respelled(bytes, kohya_name);
  const auto rank = message_of<FileError>([&] { load_lora(fits, *model.unet); });
  CHECK(has_part(rank, "has rank 4, the model's adapters 2"));
  CHECK(model.lora_weights() == before);

  std::string text_bytes;
  const auto text = respelled(text_bytes, [](const std::string& m, char x) {
    return "text_encoder." + m.substr(5) + ".lora_" + x + ".weight";
  });
  const auto nothing = message_of<FileError>([&] { load_lora(text, *model.unet); });
  CHECK(has_part(nothing, "none of its 128 adapters belongs to the model"));
  CHECK(has_part(nothing, "of text_encoder"));
  CHECK_THROWS_AS(merge_lora(text, model.store), FileError);

  SafetensorsWriter lonely;
  lonely.add_owned("unet.a.to_q.lora_A.weight", DType::F32, {1, 2}, std::vector<float>(2));
  const std::string lonely_bytes = lonely.bytes();
  CHECK(has_part(message_of<FileError>(
                     [&] { LoraFile(SafetensorsFile::from_memory(lonely_bytes.data(), lonely_bytes.size(), "x")); }),
                 "\"unet.a.to_q.lora_A.weight\" has no partner"));
  SafetensorsWriter none;
  none.add_owned("conv_in.weight", DType::F32, {1}, std::vector<float>(1));
  const std::string none_bytes = none.bytes();
  CHECK(has_part(
      message_of<FileError>([&] { LoraFile(SafetensorsFile::from_memory(none_bytes.data(), none_bytes.size(), "x")); }),
      "holds no LoRA; its keys begin with \"conv_in.weight\""));
}

TEST_CASE("a model with some adapters off reads the file it wrote") {
  const auto make = [](Pair& pair, ParameterStore<float, Reference>& store, const std::string& on) {
    enable_lora<float, Reference>(pair, 2, 4.0f, [&](const std::string& name) { return on.find(name) != std::string::npos; });
    store.add("", pair);
    store.allocate(is_lora_name);
    store.initialize(1);
  };
  Pair written, read, other, none;
  ParameterStore<float, Reference> a, b, c, d;
  make(written, a, "q"), make(read, b, "q"), make(other, c, "k"), make(none, d, "");
  for (index_t i = 0; i < 6; ++i) written.q.lora.up.data()[i] = static_cast<float>(i);
  const TemporaryDirectory directory;
  save_lora(directory.file("lora.safetensors"), written);
  const LoraFile file(directory.file("lora.safetensors"));
  CHECK(load_lora(file, read).matched == 1);
  CHECK(read.q.lora.up.data()[5] == 5.0f);
  CHECK(read.q.lora.scale == 2.0f);
  for (Pair* wrong : {&other, &none})
    CHECK(message_of<ValueError>([&] { load_lora(file, *wrong); }) ==
          "[lora] the model's adapter of \"q\" is off; call enable_lora and allocate the store before loading");
}

TEST_CASE("keys that no module wants are listed") {
  SafetensorsWriter writer;
  const std::string base = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q";
  writer.add_owned(base + ".lora_A.weight", DType::F32, {1, 16}, std::vector<float>(16, 1.0f));
  writer.add_owned(base + ".lora_B.weight", DType::F32, {16, 1}, std::vector<float>(16, 1.0f));
  writer.add_owned("unet.nowhere.to_q.lora_A.weight", DType::F32, {1, 16}, std::vector<float>(16));
  writer.add_owned("unet.nowhere.to_q.lora_B.weight", DType::F32, {16, 1}, std::vector<float>(16));
  writer.add_owned("something.else", DType::F32, {1}, std::vector<float>(1));
  const std::string bytes = writer.bytes();
  Adapted model(1, 1.0f);
  const auto report = load_lora(LoraFile(SafetensorsFile::from_memory(bytes.data(), bytes.size(), "x")), *model.unet);
  CHECK(report.matched == 1);
  CHECK(report.unmatched == std::vector<std::string>{"something.else", "unet.nowhere.to_q.lora_A.weight",
                                                     "unet.nowhere.to_q.lora_B.weight"});
}

TEST_CASE("adapters of another kind are named and refused") {
  const std::pair<const char*, const char*> kinds[] = {{".dora_scale", "DoRA"},
                                                       {".lora_magnitude_vector", "DoRA"},
                                                       {".hada_w1_a", "LoHa"},
                                                       {".lokr_w2", "LoKr"},
                                                       {".lora_mid.weight", "a convolution LoRA with a mid tensor"},
                                                       {".diff", "a full difference"},
                                                       {".diff_b", "a full difference"},
                                                       {".lora_B.bias", "a LoRA with a bias"}};
  for (const auto& [suffix, kind] : kinds) {
    SafetensorsWriter writer;
    const std::string base = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q";
    writer.add_owned(base + ".lora_down.weight", DType::F32, {1, 16}, std::vector<float>(16, 1.0f));
    writer.add_owned(base + ".lora_up.weight", DType::F32, {16, 1}, std::vector<float>(16, 1.0f));
    writer.add_owned("lora_unet_other" + std::string(suffix), DType::F32, {1}, std::vector<float>(1));
    writer.add_owned("lora_unet_other.alpha", DType::F32, {}, std::vector<float>(1));
    const std::string bytes = writer.bytes();
    const LoraFile file(SafetensorsFile::from_memory(bytes.data(), bytes.size(), "x"));
    CHECK(file.adapters().size() == 1);
    REQUIRE(file.other_keys().size() == 1);
    CHECK(file.other_keys()[0].kind == kind);
    Adapted model(1, 1.0f);
    const auto before = model.lora_weights();
    for (const std::string& text : {message_of<FileError>([&] { load_lora(file, *model.unet); }),
                                    message_of<FileError>([&] { merge_lora(file, model.store); })})
      CHECK(
          has_part(text, message("1 key is of another kind than plain LoRA: \"lora_unet_other", suffix, "\" (", kind)));
    CHECK(model.lora_weights() == before);
  }
}

TEST_CASE("alpha_pattern takes names and anchored names, the first that matches") {
  const auto alpha = [](const std::string& pattern) {
    SafetensorsWriter writer;
    writer.set_metadata("lora_adapter_metadata",
                        R"({"unet.lora_alpha": 8, "unet.alpha_pattern": {")" + pattern + R"(": 2.0, "to_q": 3}})");
    writer.add_owned("unet.mid.attn1.to_q.lora_A.weight", DType::F32, {1, 4}, std::vector<float>(4));
    writer.add_owned("unet.mid.attn1.to_q.lora_B.weight", DType::F32, {4, 1}, std::vector<float>(4));
    const std::string bytes = writer.bytes();
    return LoraFile(SafetensorsFile::from_memory(bytes.data(), bytes.size(), "x")).adapters().front()->alpha;
  };
  CHECK(alpha("attn1.to_q") == 2.0);
  CHECK(alpha("^mid.attn1.to_q") == 2.0);
  CHECK(alpha("mid\\\\.attn1.to_q$") == 2.0);
  CHECK(alpha("^attn1.to_q") == 3.0);
  CHECK(alpha("attn2.to_q") == 3.0);
  CHECK(has_part(message_of<FileError>([&] { alpha("mid.*"); }), "is a regular expression"));
}

TEST_CASE("a text encoder's adapters are written and read") {
  struct Encoder {
    CLIPTextModel<golden::quick_text, float, Reference> model;
    ParameterStore<float, Reference> store;
    explicit Encoder(float alpha) {
      CHECK(enable_lora<float, Reference>(model, 2, alpha) == 3 * 4);
      store.add("", model);
      store.allocate([](const std::string& name) { return is_lora_name(name); });
      load_parameters(store, golden::open("clip_text"), {.file_prefix = "quick/weights/"});
    }
    std::vector<float> lora_weights() const {
      std::vector<float> all;
      for (const auto& entry : store.entries())
        if (is_lora_name(entry.name))
          all.insert(all.end(), entry.parameter->data(), entry.parameter->data() + entry.parameter->size());
      return all;
    }
  };
  auto first = std::make_unique<Encoder>(3.0f);
  float next = 0;
  for (const auto& entry : first->store.entries())
    if (is_lora_name(entry.name))
      for (index_t i = 0; i < entry.parameter->size(); ++i) entry.parameter->data()[i] = next += 0.5f;
  TemporaryDirectory directory;
  for (const LoraFormat format : {LoraFormat::diffusers, LoraFormat::kohya}) {
    save_lora(directory.file("te.safetensors"), first->model, {.format = format, .component = "text_encoder"});
    const LoraFile file(directory.file("te.safetensors"));
    CHECK(file.formats() == std::set<LoraFormat>{format});
    CHECK(file.file().contains(format == LoraFormat::kohya
                                   ? "lora_te_text_model_encoder_layers_2_self_attn_out_proj.lora_up.weight"
                                   : "text_encoder.text_model.encoder.layers.2.self_attn.out_proj.lora_B.weight"));
    auto again = std::make_unique<Encoder>(1.0f);
    const auto report = load_lora(file, again->model, "text_encoder");
    CHECK(report.matched == 12);
    CHECK(report.unmatched.empty());
    CHECK(again->lora_weights() == first->lora_weights());
    CHECK(again->model.layers[0].self_attn.q_proj.lora.scale == 1.5f);
    CHECK_THROWS_AS(load_lora(file, again->model, "text_encoder_2"), FileError);
  }
}

TEST_CASE("a LoRA from kohya's tools computes what it computes in diffusers") {
  const auto golden_file = golden::open("lora_kohya");
  const std::string bytes = golden::part_of(golden_file, "kohya/").bytes();
  const LoraFile file(SafetensorsFile::from_memory(bytes.data(), bytes.size(), "kohya"));
  CHECK(file.unknown_keys().empty());
  CHECK(file.adapters().size() == 34 + 12);
  const auto scales = parse_json<SortedJson>(golden_file.metadata().at("scales"), "test", "scales");
  for (const auto* adapter : file.adapters()) {
    CAPTURE(adapter->path);
    CHECK(adapter->scale() == scales.at(adapter->component + "." + adapter->path).get<double>());
    const std::string key = "peft/" + adapter->component + "." + adapter->path;
    CHECK(file.file().read_vector<float>(adapter->down) == golden_file.read_vector<float>(key + ".lora_A.weight"));
    CHECK(file.file().read_vector<float>(adapter->up) == golden_file.read_vector<float>(key + ".lora_B.weight"));
  }
  Adapted merged(0, 0);
  const auto report = merge_lora(file, merged.store);
  CHECK(report.matched == 34);
  CHECK(report.unmatched.size() == 12 * 3);
  const auto& shape = golden_file.info("out/sample").shape;
  const auto expected =
      golden::channels_last(golden_file.read_vector<float>("out/sample"), shape[0], shape[1], shape[2] * shape[3]);
  CHECK(golden::relative_error(merged.run().data(), expected.data(), static_cast<index_t>(expected.size())) < 1e-5);
}

TEST_CASE("ldm's numbers in kohya's files mean what diffusers takes them for") {
  const auto golden_file = golden::open("lora_kohya_sdxl");
  const std::string bytes = golden::part_of(golden_file, "kohya/").bytes();
  const LoraFile file(SafetensorsFile::from_memory(bytes.data(), bytes.size(), "kohya"));
  CHECK(file.adapters().size() == 14 + 4 + 4);
  for (const auto* adapter : file.adapters()) {
    CAPTURE(adapter->path);
    CHECK(adapter->scale() == 0.5);
    const std::string key = "peft/" + adapter->component + "." + adapter->path;
    CHECK(file.file().read_vector<float>(adapter->down) == golden_file.read_vector<float>(key + ".lora_A.weight"));
    CHECK(file.file().read_vector<float>(adapter->up) == golden_file.read_vector<float>(key + ".lora_B.weight"));
  }
}
