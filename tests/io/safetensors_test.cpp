// SPDX-License-Identifier: MIT
// Tests of safetensors: round trips, the exact bytes of a file, shards, and the message for each way a file can lie.
#include <doctest/doctest.h>

#include <array>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <lpo/io/safetensors.hpp>

#include "temporary_directory.hpp"

using lpo::DType;
using lpo::FileError;
using lpo::SafetensorsFile;
using lpo::SafetensorsWriter;

namespace {

/// A file with this header text and that many data bytes.
std::string file_of(const std::string& header, std::size_t data_bytes) {
  std::string text;
  for (int i = 0; i < 8; ++i) text += static_cast<char>(static_cast<unsigned char>(header.size() >> (8 * i)));
  return text + header + std::string(data_bytes, '\0');
}

SafetensorsFile open_bytes(const std::string& bytes, const lpo::SafetensorsOptions& options = {}) {
  return SafetensorsFile::from_memory(bytes.data(), bytes.size(), "file.safetensors", options);
}

std::string reason(const std::string& bytes) {
  return message_of<FileError>([&] { open_bytes(bytes); });
}

}  // namespace

TEST_CASE("tensors of several types come back, converted as asked") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("a.safetensors");
  const std::vector<float> weight = {1.0f, -2.5f, 0.1f, 65504.0f, 1e-8f, 3.0f};
  const std::array<std::int64_t, 3> ids = {0, 49407, -7};
  SafetensorsWriter writer;
  writer.add("weight", DType::F32, {2, 3}, weight.data());
  writer.add_converted("weight.f16", DType::F16, {2, 3}, weight.data());
  writer.add_converted("weight.bf16", DType::BF16, {3, 2}, weight.data());
  writer.add_owned("scale", DType::F64, {}, std::vector<double>{0.18215});
  writer.add_owned("nothing", DType::F32, {0, 4}, std::vector<float>{});
  writer.add("ids", DType::I64, {3}, ids.data());
  writer.set_metadata("format", "pt");
  writer.write(path);

  const SafetensorsFile file(path);
  CHECK(file.keys() == std::vector<std::string>{"ids", "nothing", "scale", "weight", "weight.bf16", "weight.f16"});
  CHECK(file.metadata().at("format") == "pt");
  CHECK(file.contains("ids"));
  CHECK_FALSE(file.contains("id"));
  CHECK(file.read_vector<float>("weight") == weight);
  CHECK(file.info("weight").shape == std::vector<lpo::index_t>{2, 3});
  CHECK(file.info("scale").shape.empty());
  CHECK(file.info("nothing").count() == 0);
  CHECK(file.read_vector<double>("scale") == std::vector<double>{0.18215});
  CHECK(file.read_vector<std::int64_t>("ids") == std::vector<std::int64_t>{0, 49407, -7});
  float values[6];
  file.read("weight.f16", values, 6);
  for (int i = 0; i < 6; ++i) CHECK(values[i] == static_cast<float>(lpo::half(weight[static_cast<std::size_t>(i)])));
  lpo::bfloat16 stored[6];
  file.read("weight.bf16", stored, std::vector<lpo::index_t>{3, 2});
  for (int i = 0; i < 6; ++i) CHECK(stored[i].bits == lpo::bfloat16(weight[static_cast<std::size_t>(i)]).bits);
  CHECK(file.direct<float>("weight") != nullptr);
  CHECK(file.direct<lpo::half>("weight") == nullptr);
}

TEST_CASE("the bytes of a file are those of the reference writer") {
  SafetensorsWriter writer;
  writer.add_owned("b", DType::U8, {2}, std::vector<std::uint8_t>{1, 2});
  writer.add_owned("c", DType::F32, {1}, std::vector<float>{1.0f});
  writer.add_owned("a", DType::U8, {1, 1}, std::vector<std::uint8_t>{3});
  const std::string header =
      R"({"c":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"U8","shape":[1,1],"data_offsets":[4,5]},)"
      R"("b":{"dtype":"U8","shape":[2],"data_offsets":[5,7]}})";
  std::string expected = file_of(header + std::string((8 - header.size() % 8) % 8, ' '), 0);
  expected += std::string("\x00\x00\x80\x3f\x03\x01\x02", 7);
  CHECK(writer.bytes() == expected);
  SafetensorsWriter empty;
  CHECK(empty.bytes() == std::string("\x08\0\0\0\0\0\0\0{}      ", 16));
  CHECK(open_bytes(empty.bytes()).keys().empty());
}

TEST_CASE("names are escaped as JSON") {
  SafetensorsWriter writer;
  writer.add_owned("quote\" \\ \n \xc3\xa9", DType::U8, {1}, std::vector<std::uint8_t>{9});
  writer.set_metadata("json", "{\"r\": 4}");
  const std::string bytes = writer.bytes();
  const SafetensorsFile file = open_bytes(bytes);
  CHECK(file.read_vector<int>("quote\" \\ \n \xc3\xa9") == std::vector<int>{9});
  CHECK(file.metadata().at("json") == "{\"r\": 4}");
  SafetensorsWriter broken;
  broken.add_owned("\xff", DType::U8, {1}, std::vector<std::uint8_t>{9});
  CHECK_THROWS_AS(broken.bytes(), lpo::ValueError);
}

TEST_CASE("a large converted tensor is written in pieces without seams") {
  std::vector<float> values(200001);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 2048);
  SafetensorsWriter writer;
  writer.add_converted("x", DType::F16, {200001}, values.data());
  const std::string bytes = writer.bytes();
  CHECK(open_bytes(bytes).read_vector<float>("x") == values);
}

TEST_CASE("a tensor is joined from pieces of several types while it is written") {
  const std::vector<float> top = {1.0f, 2.0f};
  const std::vector<lpo::half> middle = {lpo::half(3.0f), lpo::half(-0.5f)};
  const std::vector<double> bottom = {0.25, 65536.0};
  SafetensorsWriter writer;
  writer.add_pieces("joined", DType::BF16, {3, 2},
                    {{DType::F32, top.data(), 2}, {DType::F16, middle.data(), 2}, {DType::F64, bottom.data(), 2}});
  writer.add_pieces("empty", DType::F32, {0, 2}, {});
  CHECK(writer.data_bytes() == 12);
  const auto plan = writer.plan();
  REQUIRE(plan.size() == 2);
  CHECK(plan[0].name == "empty");  // wider types come first
  CHECK(plan[1].bytes == 12);
  const std::string bytes = writer.bytes();
  CHECK(open_bytes(bytes).read_vector<float>("joined") == std::vector<float>{1.0f, 2.0f, 3.0f, -0.5f, 0.25f, 65536.0f});
  CHECK_THROWS_WITH_AS(writer.add_pieces("short", DType::F32, {3}, {{DType::F32, top.data(), 2}}),
                       "[safetensors] tensor \"short\" has 2 values, but its shape is [3]", lpo::ValueError);
}

TEST_CASE("writing reports its progress, and a cancelled file does not come to be") {
  const TemporaryDirectory directory;
  const std::vector<float> values(8, 1.0f);
  SafetensorsWriter writer;
  writer.add("a", DType::F32, {8}, values.data());
  writer.add("b", DType::F32, {2, 4}, values.data());
  std::vector<std::size_t> done;
  writer.write(directory.file("whole"), [&](const std::string&, std::size_t bytes, std::size_t) {
    done.push_back(bytes);
    return true;
  });
  CHECK(done == std::vector<std::size_t>{32, 64});
  CHECK_THROWS_AS(writer.write(directory.file("whole"), [](const auto&...) { return false; }), lpo::CancelledError);
  CHECK_THROWS_AS(writer.write(directory.file("none"), [](const auto&...) { return false; }), lpo::CancelledError);
  CHECK(std::distance(std::filesystem::directory_iterator(directory.path()), {}) == 1);
  const SafetensorsFile whole(directory.file("whole"));
  whole.release_pages();
  CHECK(whole.read_vector<float>("b") == values);
}

TEST_CASE("unaligned data is read by copying") {
  const std::string header = R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
                             R"("b":{"dtype":"F32","shape":[1],"data_offsets":[1,5]}})";
  std::string bytes = file_of(header, 5);
  const float value = 7.25f;
  std::memcpy(bytes.data() + bytes.size() - 4, &value, 4);
  // One of two neighbouring positions is not aligned for float, wherever the string lies.
  for (const std::size_t shift : {0u, 1u}) {
    const std::string moved = std::string(shift, ' ') + bytes;
    const auto file = SafetensorsFile::from_memory(moved.data() + shift, bytes.size(), "f");
    CHECK(file.read_vector<float>("b") == std::vector<float>{7.25f});
  }
}

TEST_CASE("a missing tensor is named together with near ones; a wrong shape with both") {
  SafetensorsWriter writer;
  writer.add_owned("down_blocks.0.conv.weight", DType::F32, {2, 1}, std::vector<float>{1, 2});
  writer.add_owned("mid.bias", DType::F32, {1}, std::vector<float>{1});
  const std::string bytes = writer.bytes();
  const SafetensorsFile file = open_bytes(bytes);
  CHECK(message_of<FileError>([&] { file.info("down_block.0.conv.weight"); }) ==
        "[safetensors] file.safetensors: no tensor \"down_block.0.conv.weight\" among 2 "
        "(did you mean \"down_blocks.0.conv.weight\"?)");
  CHECK(has_part(message_of<FileError>([&] { file.info("unet.mid.bias"); }), "(did you mean \"mid.bias\"?)"));
  float values[4];
  CHECK(
      message_of<FileError>([&] { file.read("down_blocks.0.conv.weight", values, 4); }) ==
      "[safetensors] file.safetensors: tensor \"down_blocks.0.conv.weight\" has shape [2, 1], 2 elements; expected 4");
  CHECK(message_of<FileError>([&] {
          file.read("down_blocks.0.conv.weight", values, std::vector<lpo::index_t>{1, 2});
        }) == "[safetensors] file.safetensors: tensor \"down_blocks.0.conv.weight\" has shape [2, 1], expected [1, 2]");
  CHECK(has_part(message_of<FileError>([&] { file.read_vector<int>("mid.bias"); }), "holds F32, expected an integer"));
}

TEST_CASE("truncated files") {
  CHECK(has_part(reason("1234567"), "file.safetensors: has 7 bytes, expected at least 8"));
  CHECK(has_part(reason(std::string("\x10\0\0\0\0\0\0\0{}", 10)), "says its header has 16 bytes, but only 2 follow"));
  CHECK(has_part(reason(std::string("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10)), "expected at most 100000000"));
  CHECK(has_part(reason(file_of(R"({"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 7)),
                 "tensor \"a\" ends at 8, but the data has 7 bytes; the file is truncated"));
}

TEST_CASE("padded and overlapping files") {
  const auto two = [](const char* first, const char* second) {
    return std::string(R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)") + first +
           R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
  };
  CHECK_NOTHROW(open_bytes(file_of(two("[4,8]", "[0,4]"), 8)));
  CHECK(has_part(reason(file_of(two("[0,4]", "[6,10]"), 10)),
                 "tensor \"b\" begins at 6, expected 4 where \"a\" ends: the data has a gap"));
  CHECK(has_part(reason(file_of(two("[0,4]", "[3,7]"), 8)),
                 "begins at 3, expected 4 where \"a\" ends: the data has an "
                 "overlap"));
  CHECK(has_part(reason(file_of(two("[1,5]", "[5,9]"), 9)), "begins at 1, expected 0 where \"the header\" ends"));
  const std::string trailing = file_of(two("[0,4]", "[4,8]"), 12);
  CHECK(has_part(reason(trailing), "has 4 bytes after the last tensor, expected none"));
  std::string warning;
  const auto file = open_bytes(trailing, {true, [&](const std::string& text) { warning = text; }});
  CHECK(file.contains("b"));
  CHECK(warning ==
        "[safetensors] file.safetensors: has 4 bytes after the last tensor, expected none; they are ignored");
}

TEST_CASE("headers that lie or are malformed") {
  const auto entry = [](const std::string& text) { return file_of(R"({"a":)" + text + "}", 8); };
  CHECK(has_part(reason(entry(R"({"dtype":"F32","shape":[3],"data_offsets":[0,8]})")),
                 "tensor \"a\" of type F32 and shape [3] needs 12 bytes, but its data_offsets are [0,8]"));
  CHECK(has_part(reason(entry(R"({"dtype":"F31","shape":[2],"data_offsets":[0,8]})")),
                 "has dtype \"F31\", which is not"));
  CHECK(has_part(reason(entry(R"({"dtype":3,"shape":[2],"data_offsets":[0,8]})")), "has dtype 3, which is not"));
  CHECK(has_part(reason(entry(R"({"dtype":"F32","shape":[-2],"data_offsets":[0,8]})")), "has shape [-2], expected"));
  CHECK(has_part(reason(entry(R"({"dtype":"F32","shape":[2.0],"data_offsets":[0,8]})")), "has shape [2.0], expected"));
  CHECK(has_part(reason(entry(R"({"dtype":"F32","shape":2,"data_offsets":[0,8]})")), "has shape 2, expected an array"));
  CHECK(has_part(reason(entry(R"({"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]})")),
                 "whose size overflows 64 bits"));
  CHECK(has_part(reason(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[8,0]})")), "data_offsets are [8,0]"));
  CHECK(has_part(reason(entry(R"({"dtype":"F32","shape":[2],"data_offsets":[0]})")),
                 "has data_offsets [0], expected two"));
  CHECK(has_part(reason(entry(R"({"dtype":"F32","shape":[2]})")), "entry of tensor \"a\" has no \"data_offsets\""));
  CHECK(has_part(reason(entry("5")), "entry of tensor \"a\" is an integer, expected an object"));
  CHECK(has_part(reason(file_of(R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
                                R"("a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
                                0)),
                 "key \"a\" occurs twice"));
  CHECK(has_part(reason(file_of(R"({"__metadata__":{"a":1}})", 0)),
                 "__metadata__ value of \"a\" is an integer, expected a string"));
  CHECK(has_part(reason(file_of(R"({"__metadata__":[]})", 0)), "__metadata__ is an array of 0, expected an object"));
  CHECK(has_part(reason(file_of("[]", 0)), "does not begin with '{'"));
  CHECK(has_part(reason(file_of("", 0)), "does not begin with '{'"));
  CHECK(has_part(reason(file_of("{\"a\"", 0)), "not valid JSON"));
  CHECK(has_part(reason(file_of("{\"\xff\":1}", 0)), "not valid JSON"));
  CHECK(has_part(reason(file_of("{\"a\":" + std::string(100000, '['), 0)), "nested deeper"));
  CHECK_NOTHROW(open_bytes(file_of(R"({"a":{"dtype":"F64","shape":[3,0],"data_offsets":[0,0]}}   )", 0)));
}

TEST_CASE("the writer refuses what the format has no place for") {
  const float value = 0;
  SafetensorsWriter writer;
  writer.add("a", DType::F32, {1}, &value);
  CHECK_THROWS_AS(writer.add("a", DType::F32, {1}, &value), lpo::ValueError);
  CHECK_THROWS_AS(writer.add("__metadata__", DType::F32, {1}, &value), lpo::ValueError);
  CHECK_THROWS_AS(writer.add("b", DType::F32, {-1}, &value), lpo::ValueError);
  CHECK_THROWS_AS(writer.add("b", DType::F32, {1}, nullptr), lpo::ValueError);
  CHECK_THROWS_AS(writer.add_owned("b", DType::F32, {3}, std::vector<float>{1}), lpo::ValueError);
}

TEST_CASE("a component directory: one file, a variant, or shards") {
  const TemporaryDirectory directory;
  SafetensorsWriter first;
  first.add_owned("a", DType::F32, {1}, std::vector<float>{1});
  first.set_metadata("format", "pt");
  SafetensorsWriter second;
  second.add_owned("b", DType::F32, {1}, std::vector<float>{2});

  CHECK(message_of<FileError>([&] { lpo::open_checkpoint(directory.path(), "model"); }) ==
        "[open_checkpoint] " + directory.path() +
            ": no weights; tried model.safetensors, model.safetensors.index.json, pytorch_model.bin, "
            "pytorch_model.bin.index.json");

  first.write(directory.file("model-00001-of-00002.safetensors"));
  second.write(directory.file("model-00002-of-00002.safetensors"));
  directory.write("model.safetensors.index.json",
                  R"({"metadata":{"total_size":8},"weight_map":{"a":"model-00001-of-00002.safetensors",)"
                  R"("b":"model-00002-of-00002.safetensors"}})");
  const auto shards = lpo::open_checkpoint(directory.path(), "model");
  CHECK(shards.keys() == std::vector<std::string>{"a", "b"});
  CHECK(shards.read_vector<float>("b") == std::vector<float>{2});
  CHECK(shards.metadata().at("format") == "pt");
  float value = 0;
  shards.read("a", &value, std::vector<lpo::index_t>{1});
  CHECK(value == 1.0f);
  CHECK(has_part(message_of<FileError>([&] { shards.info("c"); }), "index.json: no tensor \"c\" among 2"));

  second.write(directory.file("model.fp16.safetensors"));
  CHECK(lpo::open_checkpoint(directory.path(), "model", "fp16").keys() == std::vector<std::string>{"b"});

  const auto index_error = [&](const char* text) {
    const std::string path = directory.write("bad.json", text);
    return message_of<FileError>([&] { lpo::Checkpoint::from_index(path); });
  };
  CHECK(has_part(index_error(R"({"weight_map":{"c":"model-00001-of-00002.safetensors"}})"),
                 "lists tensor \"c\" in \"model-00001-of-00002.safetensors\", which does not have it"));
  CHECK(has_part(index_error(R"({"weight_map":{"c":"../x.safetensors"}})"), "a file in the same directory"));
  CHECK(has_part(index_error(R"({"weight_map":{"c":"missing.safetensors"}})"), "missing.safetensors: No such file"));
  CHECK(has_part(index_error(R"({"weights":{}})"), "expected an object with a \"weight_map\""));
}

TEST_CASE("tensors of other files and computed ones are written like any other") {
  const lpo::half source[3] = {lpo::half(1.5f), lpo::half(-2.0f), lpo::half(0.25f)};
  unsigned char unaligned[1 + sizeof source];
  std::memcpy(unaligned + 1, source, sizeof source);
  SafetensorsWriter writer;
  writer.add_stored("stored", DType::F32, DType::F16, {3}, unaligned + 1);
  int calls = 0;
  writer.add_computed("computed", DType::BF16, {2, 1}, [&] { return ++calls, std::vector<float>{3.0f, -4.0f}; });
  writer.add_computed("empty", DType::F32, {0}, [] { return std::vector<float>{}; });
  CHECK(calls == 0);
  TemporaryDirectory directory;
  std::vector<std::string> order;
  writer.write(directory.file("a"), [&](const std::string& name, std::size_t done, std::size_t total) {
    order.push_back(lpo::message(name, " ", done, "/", total));
    return true;
  });
  CHECK(order == std::vector<std::string>{"empty 0/16", "stored 12/16", "computed 16/16"});
  CHECK(calls == 1);
  const SafetensorsFile file(directory.file("a"));
  CHECK(file.read_vector<float>("stored") == std::vector<float>{1.5f, -2.0f, 0.25f});
  CHECK(file.read_vector<float>("computed") == std::vector<float>{3.0f, -4.0f});
  CHECK(file.info("computed").dtype == DType::BF16);

  // Stopping half-way leaves the older file, and no temporary.
  CHECK_THROWS_AS(writer.write(directory.file("a"), [](const auto&...) { return false; }),
                  lpo::CancelledError);
  CHECK(SafetensorsFile(directory.file("a")).keys().size() == 3);
  CHECK(directory.entries() == std::vector<std::string>{"a"});
  writer.add_computed("wrong", DType::F32, {3}, [] { return std::vector<float>(2); });
  CHECK_THROWS_AS(writer.write(directory.file("b")), lpo::ValueError);
  CHECK(directory.entries() == std::vector<std::string>{"a"});
}

TEST_CASE("a part of a tensor is read and converted alone, and released pages come back") {
  const TemporaryDirectory directory;
  const std::vector<float> values = {1.0f, -2.0f, 0.5f, 4.0f, 8.0f};
  SafetensorsWriter writer;
  writer.add_converted("x", DType::F16, {5}, values.data());
  writer.write(directory.file("part"));
  const SafetensorsFile file(directory.file("part"));
  float three[3] = {};
  file.read_part("x", 1, 3, three);
  CHECK(three[0] == -2.0f);
  CHECK(three[2] == 4.0f);
  file.release_pages("x");
  file.read_part("x", 5, 0, three);
  CHECK(file.read_vector<float>("x") == values);
  CHECK_THROWS_WITH_AS(
      file.read_part("x", 3, 3, three),
      ("[safetensors] " + file.path() + ": tensor \"x\" has 5 elements, expected 3 from 3").c_str(), lpo::FileError);
  open_bytes(writer.bytes()).release_pages("x");  // not mapped: nothing to give back
}
