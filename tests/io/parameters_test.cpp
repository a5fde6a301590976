// SPDX-License-Identifier: MIT
// Weights between stores and files: layouts, types and prefixes, and errors that name everything that is wrong.
#include <lpo/io/parameters.hpp>

#include <doctest/doctest.h>

#include <memory>
#include <vector>

#include <lpo/nn/conv2d.hpp>

#include "mapped_memory.hpp"
#include "temporary_directory.hpp"

using namespace lpo;

namespace {

/// One weight of every kind: 3x3 and 1x1 convolution, matrix with and without LoRA.
struct Module {
  Conv2d<2, 3, 3, float, Reference> conv;
  Conv2d<2, 3, 1, float, Reference> point;
  Linear<2, 3, float, Reference, false> matrix;
  LoraLinear<2, 3, float, Reference, false> adapted;

  void visit(ParameterVisitor<float, Reference>& v) {
    v("conv", conv);
    v("point", point);
    v("matrix", matrix);
    v("adapted.0", adapted);
  }
};

struct Fixture {
  Module module;
  ParameterStore<float, Reference> store;

  explicit Fixture(std::uint64_t seed) {
    enable_lora<float, Reference>(module, 1, 1.0f);
    store.add("net", module);
    store.allocate([](const std::string& name) { return is_lora_name(name); });
    store.initialize(seed);
  }
  std::vector<float> values() { return std::vector<float>(store.values().begin(), store.values().end()); }
};

SafetensorsFile in_memory(const std::string& bytes) {
  return SafetensorsFile::from_memory(bytes.data(), bytes.size(), "file");
}

std::vector<float> counting(std::size_t count) {
  std::vector<float> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<float>(i);
  return values;
}

/// All base weights of `Module`, as another program would write them.
SafetensorsWriter complete(const std::string& prefix = "") {
  SafetensorsWriter writer;
  writer.add_owned(prefix + "conv.weight", DType::F32, {3, 2, 3, 3}, counting(54));
  writer.add_owned(prefix + "conv.bias", DType::F16, {3}, counting(3));
  writer.add_owned(prefix + "point.weight", DType::BF16, {3, 2}, counting(6));
  writer.add_owned(prefix + "point.bias", DType::F64, {3}, counting(3));
  writer.add_owned(prefix + "matrix.weight", DType::F32, {3, 2, 1, 1}, counting(6));
  writer.add_owned(prefix + "adapted.0.weight", DType::F32, {3, 2}, counting(6));
  return writer;
}

}  // namespace

TEST_CASE("convolutions are OIHW in files and OHWI in memory; types convert; 1x1 convolutions are matrices") {
  Fixture f(1);
  const auto lora = f.module.adapted.lora.down.data()[0];
  const std::string bytes = complete().bytes();
  const auto report = load_parameters(f.store, in_memory(bytes), {.model_prefix = "net"});
  CHECK(report.loaded == 6);
  CHECK(report.unused.empty());
  const float* weight = f.module.conv.weight.data();
  for (int o = 0; o < 3; ++o)
    for (int y = 0; y < 3; ++y)
      for (int x = 0; x < 3; ++x)
        for (int i = 0; i < 2; ++i)
          CHECK(weight[((o * 3 + y) * 3 + x) * 2 + i] == static_cast<float>(((o * 2 + i) * 3 + y) * 3 + x));
  CHECK(f.module.conv.bias.data()[2] == 2.0f);
  CHECK(f.module.point.weight.data()[5] == 5.0f);
  CHECK(f.module.point.bias.data()[1] == 1.0f);
  CHECK(f.module.matrix.weight.data()[4] == 4.0f);
  CHECK(f.module.adapted.lora.down.data()[0] == lora);  // LoRA weights have files of their own
}

TEST_CASE("wide convolutions keep every weight at its place, on the way in and out") {
  constexpr int filters = 2, channels = 131, area = 9;  // more channels than are turned at once, and not a multiple
  struct Wide {
    Conv2d<channels, filters, 3, float, Reference> conv;
    void visit(ParameterVisitor<float, Reference>& v) { v("conv", conv); }
  };
  const auto wide = std::make_unique<Wide>();
  ParameterStore<float, Reference> store;
  store.add("", *wide);
  store.allocate_frozen();
  SafetensorsWriter writer;
  writer.add_owned("conv.weight", DType::F32, {filters, channels, 3, 3}, counting(filters * channels * area));
  writer.add_owned("conv.bias", DType::F32, {filters}, counting(filters));
  const std::string bytes = writer.bytes();
  load_parameters(store, in_memory(bytes));
  for (int o = 0; o < filters; ++o)
    for (int at = 0; at < area; ++at)
      for (int i = 0; i < channels; ++i)
        REQUIRE(wide->conv.weight.data()[(o * area + at) * channels + i] ==
                static_cast<float>((o * channels + i) * area + at));
  SafetensorsWriter back;
  add_parameters(back, store, DType::F32);
  const std::string written = back.bytes();
  CHECK(in_memory(written).read_vector<float>("conv.weight") == counting(filters * channels * area));
}

TEST_CASE("a prefix selects part of a joint file, the rest is reported") {
  Fixture f(1);
  auto writer = complete("model.net.");
  writer.add_owned("model.net.extra", DType::F32, {1}, counting(1));
  writer.add_owned("other.extra", DType::F32, {1}, counting(1));
  const std::string bytes = writer.bytes();
  const auto report = load_parameters(f.store, in_memory(bytes), {.model_prefix = "net", .file_prefix = "model.net"});
  CHECK(report.unused == std::vector<std::string>{"model.net.extra"});
  CHECK(f.module.matrix.weight.data()[3] == 3.0f);
}

TEST_CASE("one error names everything that is missing or wrong, and nothing is changed") {
  Fixture f(1);
  const auto before = f.values();
  SafetensorsWriter writer;
  writer.add_owned("conv.weight", DType::F32, {3, 3, 3, 2}, counting(54));  // OHWI is not what files have
  writer.add_owned("conv.bias", DType::F32, {4}, counting(4));
  writer.add_owned("point.weight", DType::I32, {3, 2}, counting(6));
  writer.add_owned("matrix.weight", DType::F32, {3, 2}, counting(6));
  writer.add_owned("adapted.0.wieght", DType::F32, {3, 2}, counting(6));
  writer.add_owned("adapted.0.lora_A.weight", DType::F32, {1, 2}, counting(2));
  const std::string bytes = writer.bytes();
  const auto error =
      message_of<FileError>([&] { load_parameters(f.store, in_memory(bytes), {.model_prefix = "net"}); });
  CHECK(error ==
        "[load_parameters] file does not fit the model: 2 weights are missing: \"point.bias\", \"adapted.0.weight\"; 3 "
        "have "
        "another shape or type: \"conv.weight\" is [3, 3, 3, 2], expected [3, 2, 3, 3], \"conv.bias\" is [4], expected "
        "[3], \"point.weight\" holds I32, expected numbers with a fraction");
  CHECK(f.values() == before);
}

TEST_CASE("what is saved is loaded again, LoRA and base apart") {
  TemporaryDirectory directory;
  Fixture f(1), g(2);
  const auto expected = f.values();
  CHECK(g.values() != expected);
  save_parameters(directory.file("base"), f.store);
  save_parameters(directory.file("lora"), f.store, DType::F32, {.file_prefix = "x", .part = ParameterPart::lora});
  const SafetensorsFile base(directory.file("base"));
  CHECK(base.info("net.conv.weight").shape == std::vector<index_t>{3, 2, 3, 3});
  CHECK(base.info("net.point.weight").shape == std::vector<index_t>{3, 2, 1, 1});
  CHECK(base.keys().size() == 6);
  CHECK(base.metadata().at("format") == "pt");
  load_parameters(g.store, base);
  CHECK(g.values() != expected);
  load_parameters(g.store, SafetensorsFile(directory.file("lora")), {.file_prefix = "x", .part = ParameterPart::lora});
  CHECK(g.values() == expected);
}

TEST_CASE("weights in double are saved with all their digits") {
  struct Wide {
    Linear<1, 1, double, Reference> line;
    void visit(ParameterVisitor<double, Reference>& v) { v("line", line); }
  } wide;
  ParameterStore<double, Reference> store;
  store.add("", wide);
  store.allocate_frozen();
  *wide.line.weight.data() = 0.1;
  TemporaryDirectory directory;
  save_parameters(directory.file("wide"), store);
  const SafetensorsFile file(directory.file("wide"));
  CHECK(file.info("line.weight").dtype == DType::F64);
  CHECK(file.read_vector<double>("line.weight")[0] == 0.1);
}

TEST_CASE("16-bit files hold rounded weights") {
  TemporaryDirectory directory;
  Fixture f(1), g(2);
  for (const DType type : {DType::F16, DType::BF16}) {
    save_parameters(directory.file("small"), f.store, type);
    load_parameters(g.store, SafetensorsFile(directory.file("small")));
    const float original = f.module.conv.weight.data()[7], rounded = g.module.conv.weight.data()[7];
    CHECK(rounded ==
          (type == DType::F16 ? static_cast<float>(half(original)) : static_cast<float>(bfloat16(original))));
  }
  CHECK_THROWS_AS(save_parameters(directory.file("integers"), f.store, DType::I32), ValueError);
}

TEST_CASE("older names are tried second") {
  Fixture f(1);
  const std::string bytes = complete().bytes();
  struct Renamed {
    Linear<2, 3, float, Reference, false> fresh;
    void visit(ParameterVisitor<float, Reference>& v) { v("fresh", fresh); }
  } renamed;
  ParameterStore<float, Reference> store;
  store.add("", renamed);
  store.allocate_frozen();
  CHECK_THROWS_AS(load_parameters(store, in_memory(bytes)), FileError);
  const auto report = load_parameters(store, in_memory(bytes), {.legacy = [](const std::string& name) {
                                        return name == "fresh.weight" ? "matrix.weight" : std::string();
                                      }});
  CHECK(report.loaded == 1);
  CHECK(report.unused.size() == 5);
  CHECK(renamed.fresh.weight.data()[5] == 5.0f);
}

TEST_CASE("a store without such weights or without memory is a mistake of the caller") {
  Fixture f(1);
  const std::string bytes = complete().bytes();
  CHECK_THROWS_AS(load_parameters(f.store, in_memory(bytes), {.model_prefix = "vae"}), ValueError);
  Module module;
  ParameterStore<float, Reference> store;
  store.add("net", module);
  CHECK_THROWS_WITH_AS(load_parameters(store, in_memory(bytes), {.model_prefix = "net"}),
                       "[parameters] \"net.conv.weight\" has no memory yet; call the store's allocate() first",
                       ValueError);
}

TEST_CASE("loading keeps no pages of the file in memory") {
  using Matrix = Linear<2048, 2048, float, Reference, false>;
  const auto matrix = std::make_unique<Matrix>();
  ParameterStore<float, Reference> store;
  store.add("", *matrix);
  store.allocate_frozen();
  const TemporaryDirectory directory;
  save_parameters(directory.file("weights"), store);  // 16 MiB
  const SafetensorsFile file(directory.file("weights"));
  const long before = mapped_kilobytes();
  REQUIRE(before >= 0);
  CHECK(load_parameters(store, file).loaded == 1);
  CHECK(mapped_kilobytes() < before + 4096);
}
