// SPDX-License-Identifier: MIT
// torch's checkpoints: files of torch.save read whole, hostile and damaged ones refused with the reason, small ones
// written.
#include <lpo/io/torch_file.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <lpo/io/lora_file.hpp>
#include <lpo/io/parameters.hpp>
#include <lpo/io/torch_writer.hpp>
#include <string>
#include <vector>

#include "temporary_directory.hpp"
#include "torch_archive.hpp"

using namespace lpo;
using torch_archive::entry;

namespace {

std::string golden_path(const std::string& name) { return std::string(LPO_TEST_GOLDEN_DIR) + "/torch_files/" + name; }

std::vector<double> counting(std::size_t count) {
  std::vector<double> values(count);
  for (std::size_t i = 0; i < count; ++i) values[i] = static_cast<double>(i);
  return values;
}

std::string reason(const std::string& bytes) {
  return message_of<FileError>([&] { TorchFile::from_memory(bytes.data(), bytes.size(), "x.pt"); });
}
std::string golden_reason(const std::string& name) {
  return message_of<FileError>([&] { TorchFile file(golden_path(name)); });
}

/// The reason why a pickle with this code for its only entry is refused.
std::string reason_of_code(const std::string& code) { return reason(torch_archive::of(entry(code))); }

}  // namespace

TEST_CASE("every element type of torch that lpo has") {
  const TorchFile file(golden_path("tensors.pt"));
  const std::pair<const char*, DType> types[] = {{"float32", DType::F32},
                                                 {"float64", DType::F64},
                                                 {"float16", DType::F16},
                                                 {"bfloat16", DType::BF16},
                                                 {"int64", DType::I64},
                                                 {"int32", DType::I32},
                                                 {"int16", DType::I16},
                                                 {"int8", DType::I8},
                                                 {"uint64", DType::U64},
                                                 {"uint32", DType::U32},
                                                 {"uint16", DType::U16},
                                                 {"uint8", DType::U8},
                                                 {"float8_e4m3fn", DType::F8_E4M3},
                                                 {"float8_e5m2", DType::F8_E5M2}};
  for (const auto& [name, dtype] : types) {
    CAPTURE(name);
    const std::string key = std::string("type.") + name;
    CHECK(file.info(key).dtype == dtype);
    CHECK(file.info(key).shape == std::vector<index_t>{2, 3});
    CHECK(file.read_vector<double>(key) == counting(6));
  }
  CHECK(file.info("type.bool").dtype == DType::BOOL);
  CHECK(file.read_vector<int>("type.bool") == std::vector<int>{1, 0, 1});
  CHECK(file.keys().size() == 15 + 12);
}

TEST_CASE("views into a storage come out row-major; contiguous ones are not copied") {
  const TorchFile file(golden_path("tensors.pt"));
  const auto values = [&](const char* name) { return file.read_vector<double>(std::string("layout.") + name); };
  const auto shape = [&](const char* name) { return file.info(std::string("layout.") + name).shape; };
  using Shape = std::vector<index_t>;
  CHECK(values("base") == counting(24));
  CHECK(values("row") == std::vector<double>{12, 13, 14, 15, 16, 17});
  CHECK(values("column") == std::vector<double>{1, 7, 13, 19});
  CHECK(values("block") == std::vector<double>{8, 9, 10, 14, 15, 16});
  CHECK(values("steps") == std::vector<double>{0, 3, 12, 15});
  CHECK(shape("transposed") == Shape{6, 4});
  for (std::size_t i = 0; i < 6; ++i)
    for (std::size_t j = 0; j < 4; ++j) CHECK(values("transposed")[i * 4 + j] == static_cast<double>(j * 6 + i));
  CHECK(values("expanded") == std::vector<double>{0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2});
  CHECK(shape("channels_last") == Shape{2, 3, 2, 2});
  CHECK(values("channels_last") == counting(24));
  CHECK(shape("unit") == Shape{5, 1});
  CHECK(values("unit") == counting(5));
  CHECK(shape("zero_d").empty());
  CHECK(values("zero_d") == std::vector<double>{2.5});
  CHECK(shape("empty") == Shape{0, 7});
  CHECK(shape("empty_transposed") == Shape{0, 7});
  CHECK(values("empty").empty());

  // torch aligns storages to 64 bytes, so tensors can be used where they lie.
  const float* const base = file.direct<float>("layout.base");
  REQUIRE(base != nullptr);
  CHECK(file.direct<float>("layout.row") == base + 12);
  CHECK(file.direct<float>("layout.transposed") != base);
  CHECK(file.direct<half>("layout.base") == nullptr);
}

TEST_CASE("nested dictionaries, parameters, Python numbers and texts, in both protocols") {
  for (const char* name : {"nested.pt", "nested_protocol5.pt"}) {
    CAPTURE(name);
    const TorchFile file(golden_path(name));
    CHECK(file.keys() == std::vector<std::string>{"flag", "groups.0.lr", "head.0.bias", "head.0.weight", "head.1.bias",
                                                  "head.1.num_batches_tracked", "head.1.running_mean",
                                                  "head.1.running_var", "head.1.weight", "pair.0", "pair.1.0",
                                                  "parameter", "scale", "steps", "wide"});
    CHECK(file.read_vector<double>("head.0.weight") == counting(6));
    CHECK(file.info("head.0.weight").shape == std::vector<index_t>{2, 3});
    CHECK(file.read_vector<float>("head.1.running_var") == std::vector<float>{5, 6});
    CHECK(file.read_vector<int>("head.1.num_batches_tracked") == std::vector<int>{6});
    CHECK(file.read_vector<double>("parameter") == counting(4));
    CHECK(file.read_vector<double>("scale") == std::vector<double>{2.6592});
    CHECK(file.info("scale").shape.empty());
    CHECK(file.read_vector<int>("steps") == std::vector<int>{4000});
    CHECK(file.read_vector<std::int64_t>("wide") == std::vector<std::int64_t>{-(std::int64_t{1} << 40)});
    CHECK(file.read_vector<int>("flag") == std::vector<int>{1});
    CHECK(file.read_vector<double>("groups.0.lr") == std::vector<double>{1e-5});
    CHECK(file.read_vector<int>("pair.1.0") == std::vector<int>{2});
    CHECK(file.metadata() == std::map<std::string, std::string>{{"name", "caf\xc3\xa9"}});
  }
  // Of a training checkpoint the state_dict is read.
  const TorchFile training(golden_path("training.ckpt"));
  CHECK(training.keys().size() == 7);
  CHECK(training.read_vector<double>("0.weight") == counting(6));
  CHECK(TorchFile(golden_path("empty.pt")).keys().empty());
}

TEST_CASE("a torch file is a source of weights like any other") {
  Linear<3, 2, float, Reference> linear;
  ParameterStore<float, Reference> store;
  store.add("linear", linear);
  store.allocate_frozen();
  const TorchFile file(golden_path("nested.pt"));
  const auto report = load_parameters(store, file, {.model_prefix = "linear", .file_prefix = "head.0"});
  CHECK(report.loaded == 2);
  CHECK(linear.weight.data()[5] == 5.0f);
  CHECK(linear.bias.data()[1] == 2.0f);
  CHECK(message_of<FileError>([&] {
          load_parameters(store, file, {.model_prefix = "linear", .file_prefix = "head.1"});
        }) == "[load_parameters] " + golden_path("nested.pt") +
                  " does not fit the model: 1 has another shape or type: \"head.1.weight\" is [2], expected [2, 3]");
  CHECK(has_part(message_of<FileError>([&] { file.info("head.0.weigth"); }),
                 "nested.pt: no tensor \"head.0.weigth\" among 15 (did you mean \"head.0.weight\""));
  float value = 0;
  CHECK(has_part(message_of<FileError>([&] { file.read("parameter", &value, 1); }),
                 "tensor \"parameter\" has shape [2, 2], 4 elements; expected 1"));
}

TEST_CASE("nothing is executed, and what is refused is named") {
  CHECK(has_part(golden_reason("malicious.pt"), "refuses GLOBAL \"posix.system\": only tensors"));
  CHECK(has_part(golden_reason("unknown_class.pt"), "refuses GLOBAL \"goldens.torch_files.Unknown\""));
  CHECK(has_part(golden_reason("sparse.pt"), "refuses GLOBAL \"torch._utils._rebuild_sparse_tensor\""));
  CHECK(has_part(reason_of_code("cos\nsystem\nX" + std::string("\x01\0\0\0x", 5) + "\x85R"),
                 "refuses GLOBAL \"os.system\""));
  CHECK(has_part(
      reason_of_code("X" + std::string("\x02\0\0\0os", 6) + "X" + std::string("\x06\0\0\0system", 10) + "\x93"),
      "refuses GLOBAL \"os.system\""));
  CHECK(has_part(reason_of_code("(ios\nsystem\n"), "refuses INST"));
  CHECK(has_part(reason_of_code("ctorch\nSize\n)\x81"), "refuses NEWOBJ"));
  CHECK(has_part(reason_of_code("ctorch\nfloat32\n)R"), "\"t\" calls torch.float32"));
  CHECK(has_part(reason_of_code("]}b"), "refuses BUILD on anything but a dictionary"));
  CHECK(
      has_part(golden_reason("complex.pt"), "tensor \"c\" has the type torch.ComplexFloatStorage, which lpo does not"));
}

TEST_CASE("files that only Python can read say how to write them again") {
  CHECK(has_part(golden_reason("old_format.pt"), "older than 1.6, or without its zip format; write it again"));
  CHECK(has_part(golden_reason("plain.pkl"), "is a plain Python pickle"));
  CHECK(has_part(golden_reason("script.pt"), "is a TorchScript archive"));
  CHECK(has_part(golden_reason("bare_tensor.pt"), "holds a single object, expected a dictionary"));
  CHECK(has_part(golden_reason("same_key.pt"), "has two entries \"a.b\""));
  CHECK(has_part(reason(""), "has 0 bytes and is no zip archive"));
  CHECK(has_part(reason(std::string("\x10\0\0\0\0\0\0\0{}", 10)), "looks like safetensors"));
  ZipWriter zip;
  zip.add("readme.txt", "hello");
  CHECK(has_part(reason(zip.bytes()), "without a data.pkl"));
  ZipWriter big;
  big.add("x/data.pkl", "\x80\x02}.");
  big.add("x/byteorder", "big");
  CHECK(has_part(reason(big.bytes()), "big-endian"));
}

TEST_CASE("tensors must lie in their storage") {
  const std::string eight(32, '\0');
  const auto tensor_reason = [&](int elements, int offset, std::initializer_list<int> size,
                                 std::initializer_list<int> stride) {
    return reason(torch_archive::of(entry(torch_archive::tensor(elements, offset, size, stride)), {eight}));
  };
  const std::string fits = "(nothing was thrown)";
  CHECK(tensor_reason(8, 0, {2, 4}, {4, 1}) == fits);
  CHECK(tensor_reason(8, 2, {2, 3}, {3, 1}) == fits);
  CHECK(tensor_reason(8, 100, {0, 3}, {3, 1}) == fits);
  CHECK(has_part(tensor_reason(8, 3, {2, 3}, {3, 1}),
                 "tensor \"t\" of shape [2, 3], stride [3, 1] and offset 3 reaches beyond its storage of 8 elements"));
  CHECK(has_part(tensor_reason(8, 8, {}, {}), "reaches beyond"));
  CHECK(has_part(tensor_reason(8, 0, {2, 2}, {7, 1}), "reaches beyond"));
  CHECK(has_part(tensor_reason(8, 0, {0x7fffffff, 0x7fffffff, 0x7fffffff}, {1, 1, 1}), "reaches beyond"));
  CHECK(has_part(tensor_reason(8, 0, {2}, {0x7fffffff}), "reaches beyond"));
  CHECK(has_part(tensor_reason(8, 0, {0x7fffffff}, {0}), "repeats few stored elements too often"));
  CHECK(has_part(tensor_reason(8, 0, {2, 4}, {4}), "impossible stride or offset"));
  CHECK(has_part(tensor_reason(8, -1, {2}, {1}), "impossible stride or offset"));
  CHECK(has_part(tensor_reason(8, 0, {-2}, {1}), "has a size that is no tuple of at most 64 non-negative integers"));
  CHECK(has_part(tensor_reason(8, 0, {2}, {-1}), "has a stride that is no tuple"));
  CHECK(
      has_part(tensor_reason(9, 0, {2}, {1}), "is stored in 32 bytes, expected 9 elements of 4; the file is damaged"));
  CHECK(has_part(tensor_reason(7, 0, {2}, {1}), "expected 7 elements"));
  CHECK(has_part(reason(torch_archive::of(entry(torch_archive::tensor(8, 0, {8}, {1})))),
                 "tensor \"t\" is stored in \"x/data/0\", which is not there"));
  CHECK(has_part(
      reason(torch_archive::of(entry(torch_archive::tensor(8, 0, {8}, {1}, "collections\nOrderedDict\n")), {eight})),
      "has the type collections.OrderedDict"));
}

TEST_CASE("hostile pickles cannot exhaust memory or the stack") {
  CHECK(has_part(reason_of_code(std::string(100000, ']') + std::string(99999, 'a')), "nests deeper than 32 levels"));
  CHECK(
      has_part(reason_of_code("]q" + std::string(1, '\0') + "h" + std::string(1, '\0') + "a"), "nests deeper than 32"));
  // 30 lists, each holding the one before twice: 2^30 objects when unfolded.
  std::string doubling = "]";
  for (char i = 1; i <= 30; ++i) doubling += std::string("q") + i + "0](h" + i + "h" + i + "e";
  CHECK(has_part(reason_of_code(doubling), "unfolds to more than 262144 objects"));
  CHECK(has_part(reason_of_code("Nr\xff\xff\xff\x7f"), "remembers an object as number 2147483647"));
  CHECK(has_part(reason_of_code("Nh\x05"), "recalls object 5, which it never remembered"));
  CHECK(has_part(reason_of_code("X\xff\xff\xff\xff"), "is cut off"));
  CHECK(has_part(reason_of_code(std::string(1 << 21, 'N')), "has more than 1048576 objects"));
  CHECK(has_part(reason(torch_archive::of(std::string(17 << 20, 'N'))), "expected at most 16777216"));
  CHECK(has_part(reason_of_code("\x8b\xff\xff\xff\xff"), "has an integer of 4294967295 bytes"));
  CHECK(has_part(reason_of_code("s"), "takes from an empty stack"));
  CHECK(has_part(reason_of_code("(s"), "takes from an empty stack"));
  CHECK(has_part(reason_of_code("t"), "has no mark to return to"));
  CHECK(has_part(reason_of_code("}(Nu"), "key without a value"));
  CHECK(has_part(reason_of_code("X" + std::string("\x02\0\0\0\xff\xfe", 6)), "not valid UTF-8"));
  CHECK(has_part(reason(torch_archive::of("}.")), "does not begin with PROTO"));
  CHECK(has_part(reason(torch_archive::of("\x80\x02}")), "is cut off"));
  const std::string long_name(2000, 'k');
  const std::string long_key = std::string("\x80\x02}X\xd0\x07\0\0", 8) + long_name + "\x88s.";
  CHECK(has_part(reason(torch_archive::of(long_key)), "has a key longer than 1024 bytes"));
}

TEST_CASE("cut, padded and compressed archives are refused") {
  const TemporaryDirectory directory;
  std::string whole;
  {
    const MappedFile file(golden_path("tensors.pt"));
    whole = std::string(file.text());
  }
  for (std::size_t size = 2; size < whole.size(); size += 97)
    CHECK(has_part(reason(whole.substr(0, size)), "has no end record; the archive is cut off"));
  CHECK(has_part(reason(whole + "\n"), "has no end record; the archive is cut off, or something was appended"));
  CHECK(has_part(reason(std::string(whole).erase(200, 64)), "has no zip64 end record"));

  ZipWriter zip;
  zip.add("x/data.pkl", "\x80\x02}.");
  std::string compressed = zip.bytes();
  const std::size_t entry_at = compressed.find("PK\x01\x02");
  compressed[entry_at + 10] = 8;
  CHECK(has_part(reason(compressed), "entry \"x/data.pkl\" is compressed or encrypted, expected stored"));
  std::string renamed = zip.bytes();
  renamed[30] = 'y';
  CHECK(has_part(reason(renamed), "has another name in its own header"));
  std::string moved = zip.bytes();
  moved[entry_at + 42] = 1;
  CHECK(has_part(reason(moved), "has no header at 1"));
}

TEST_CASE("archives with zip64 records are read") {
  // The archive of a ZipWriter, its sizes moved to zip64 fields as for files beyond 4 GiB.
  const std::string name = "x/data.pkl", pickle = entry("\x88"), local_name = name;
  const auto number = [](std::uint64_t value, int width) {
    std::string bytes;
    detail::append_number(bytes, value, width);
    return bytes;
  };
  const std::string local = "PK\x03\x04" + number(0, 22) + number(name.size(), 2) + number(0, 2) + name + pickle;
  const std::string central = "PK\x01\x02" + number(0, 16) + number(0xffffffff, 4) + number(0xffffffff, 4) +
                              number(name.size(), 2) + number(28, 2) + number(0, 10) + number(0xffffffff, 4) + name +
                              number(1, 2) + number(24, 2) + number(pickle.size(), 8) + number(pickle.size(), 8) +
                              number(0, 8);
  const std::string wide = "PK\x06\x06" + number(44, 8) + number(0, 12) + number(1, 8) + number(1, 8) +
                           number(central.size(), 8) + number(local.size(), 8);
  const std::string locator = "PK\x06\x07" + number(0, 4) + number(local.size() + central.size(), 8) + number(1, 4);
  const std::string end = "PK\x05\x06" + number(0, 4) + number(0xffff, 2) + number(0xffff, 2) + number(0xffffffff, 4) +
                          number(0xffffffff, 4) + number(0, 2);
  const std::string bytes = local + central + wide + locator + end;
  const auto file = TorchFile::from_memory(bytes.data(), bytes.size(), "x.pt");
  CHECK(file.read_vector<int>("t") == std::vector<int>{1});
}

TEST_CASE("a component directory may hold torch files") {
  const TemporaryDirectory directory;
  const auto file_with = [&](const std::string& file, const std::string& key, float value) {
    TorchWriter writer;
    writer.add("", key, DType::F32, {1}, &value);
    writer.write(directory.file(file));
  };
  file_with("pytorch_model-00001-of-00002.bin", "a", 1);
  file_with("pytorch_model-00002-of-00002.bin", "b", 2);
  directory.write("pytorch_model.bin.index.json", R"({"weight_map":{"a":"pytorch_model-00001-of-00002.bin",)"
                                                  R"("b":"pytorch_model-00002-of-00002.bin"}})");
  const Checkpoint shards = open_checkpoint(directory.path(), "model");
  CHECK(shards.keys() == std::vector<std::string>{"a", "b"});
  CHECK(shards.read_vector<float>("b") == std::vector<float>{2});
  file_with("pytorch_model.bin", "c", 3);
  CHECK(open_checkpoint(directory.path(), "model").keys() == std::vector<std::string>{"c"});
  file_with("diffusion_pytorch_model.fp16.bin", "d", 4);
  CHECK(open_checkpoint(directory.path(), "diffusion_pytorch_model", "fp16").keys() == std::vector<std::string>{"d"});
  SafetensorsWriter writer;
  writer.add_owned("e", DType::F32, {1}, std::vector<float>{5});
  writer.write(directory.file("model.safetensors"));
  CHECK(open_checkpoint(directory.path(), "model").keys() == std::vector<std::string>{"e"});
}

TEST_CASE("a torch file may hold a LoRA") {
  const TemporaryDirectory directory;
  const std::vector<float> values(8, 0.5f);
  TorchWriter writer;
  writer.add("", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight", DType::F32, {2, 4},
             values.data());
  writer.add("", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight", DType::F32, {4, 2},
             values.data());
  writer.write(directory.file("unet_lora.pt"));
  const LoraFile file(directory.file("unet_lora.pt"));
  CHECK(file.rank() == 2);
  CHECK(file.find("unet", "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q") != nullptr);
}

TEST_CASE("what was written is read again") {
  const std::vector<float> weight = {1, -2.5f, 0.1f, 4, 5, 6};
  TorchWriter writer;
  writer.add("head", "weight", DType::BF16, {2, 3}, weight.data());
  writer.add("", "scalar", DType::F64, {}, weight.data() + 1);
  writer.add("head", "empty", DType::F16, {0, 3}, weight.data());
  writer.add("", "ids", DType::I64, {2}, std::vector<int>{7, -8}.data());
  writer.add_number("", "scale", 2.6592);
  const std::string bytes = writer.bytes();
  const auto file = TorchFile::from_memory(bytes.data(), bytes.size(), "x.pt");
  CHECK(file.keys() == std::vector<std::string>{"head.empty", "head.weight", "ids", "scalar", "scale"});
  CHECK(file.info("head.weight").dtype == DType::BF16);
  CHECK(file.read_vector<float>("head.weight") == std::vector<float>{1, -2.5f, 0.10009765625f, 4, 5, 6});
  CHECK(file.read_vector<float>("scalar") == std::vector<float>{-2.5f});
  CHECK(file.info("head.empty").shape == std::vector<index_t>{0, 3});
  CHECK(file.read_vector<int>("ids") == std::vector<int>{7, -8});
  CHECK(file.read_vector<double>("scale") == std::vector<double>{2.6592});
  CHECK_THROWS_AS(writer.add("head", "weight", DType::F32, {1}, weight.data()), ValueError);
  CHECK(has_part(message_of<ValueError>([&] { writer.add("", "f8", DType::F8_E4M3, {1}, weight.data()); }),
                 "torch has no storage class"));
  CHECK(detail::crc32("123456789") == 0xcbf43926u);
}
