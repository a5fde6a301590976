// SPDX-License-Identifier: MIT
// Small valid files of every kind: what mutation starts from.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <lpo/io/json_config.hpp>
#include <lpo/io/npy.hpp>
#include <lpo/io/png.hpp>
#include <lpo/io/safetensors.hpp>
#include <lpo/io/torch_writer.hpp>

#include "../io/tar_archive.hpp"
#include "readers.hpp"

namespace fuzz {

/// A reader, its valid inputs, and its name, which is also that of its fuzz program and its folder of seeds.
struct Target {
  const char* name;
  bool (*read)(std::string_view bytes);
  std::vector<std::string> seeds;
};

inline std::vector<std::string> safetensors_seeds() {
  lpo::SafetensorsWriter writer;
  writer.add_owned("conv.weight", lpo::DType::F16, {2, 1, 3}, std::vector<float>{1, 2, 3, 4, 5, 6});
  writer.add_owned("conv.bias", lpo::DType::F32, {2}, std::vector<float>{-1, 1});
  writer.add_owned("scale", lpo::DType::BF16, {}, std::vector<float>{0.5f});
  writer.add_owned("empty", lpo::DType::F8_E4M3, {0, 7}, std::vector<float>{});
  writer.add_owned("ids", lpo::DType::I64, {1}, std::vector<int>{77});
  writer.set_metadata("format", "pt");
  return {writer.bytes(), lpo::SafetensorsWriter().bytes()};
}

inline std::vector<std::string> torch_seeds() {
  const float values[6] = {1, 2, 3, 4, 5, 6};
  lpo::TorchWriter writer;
  writer.add("head", "weight", lpo::DType::F16, {2, 1, 3}, values);
  writer.add("", "bias", lpo::DType::F32, {2}, values);
  writer.add("", "empty", lpo::DType::I64, {0, 7}, values);
  writer.add_number("", "scale", 2.5);
  return {writer.bytes(), lpo::TorchWriter().bytes()};
}

/// Pickles of protocols 2 and 5; every instruction that is read occurs. Octal escapes end by themselves.
inline std::vector<std::string> pickle_seeds() {
  using namespace std::string_literals;
  const std::string ordered_dict = "ccollections\nOrderedDict\n)R";
  const std::string storage_0 = "X\001\0\0\0000X\003\0\0\0cpuK"s;
  const std::string tensor =
      "ctorch._utils\n_rebuild_tensor_v2\nq\001((X\007\0\0\0storageq\002ctorch\nFloatStorage\n"s + storage_0 +
      "\014tQK\002K\002K\003\206K\001K\002\206\211"s + ordered_dict + "tR";
  const std::string typed_tensor =
      "ctorch._utils\n_rebuild_tensor_v3\n((X\007\0\0\0storagectorch.storage\nUntypedStorage\n"s + storage_0 +
      "\060tQK\0(K\003K\002t(K\001K\003t\211"s + ordered_dict + "ctorch\nfloat8_e5m2\ntR";
  const std::string parameter = "ctorch._utils\n_rebuild_parameter\n" + tensor + "\210" + ordered_dict + "\207R";
  return {"\200\002}q\0(X\001\0\0\0a"s + tensor + "X\001\0\0\0b"s + parameter + "X\001\0\0\0cN0h\0020"s + "N" +
              "X\001\0\0\0d"s + ordered_dict + "}X\011\0\0\0_metadataNsbu."s,
          "\200\002}X\001\0\0\0a"s + typed_tensor + "s.",
          "\200\005\225\100\0\0\0\0\0\0\0}\224(\214\001a](K\001M\002\003J\377\377\377\377\212\002\0\200"s +
              "G\077\360\0\0\0\0\0\0e\214\001b\214\005torch\214\004Size\223K\001\205\205R\214\001c\210\214\001d"s +
              "\214\004textK\007(K\001Nd\214\001e(C\001xlu."s};
}

inline std::vector<std::string> npy_seeds() {
  const float values[6] = {1, 2, 3, 4, 5, 6};
  const int ids[3] = {1, 2, 3};
  return {lpo::npy_bytes(values, {2, 3}), lpo::npy_bytes(ids, {3}), lpo::npy_bytes(values, {})};
}

inline std::vector<std::string> png_seeds() {
  lpo::RgbImage image(9, 5);
  for (std::size_t i = 0; i < image.pixels.size(); ++i) image.pixels[i] = static_cast<std::uint8_t>(i * 37);
  return {lpo::encode_png(image, {{"parameters", "a red circle"}, {"Comment", "caf\xc3\xa9"}}),
          lpo::encode_png(lpo::RgbImage(1, 1))};
}

inline std::vector<std::string> preference_line_seeds() {
  return {R"({"caption": "a red circle", "image_0": "a.png", "image_1": "b.png", "label_0": 0.5, "label_1": 0.5})"
          "\r\n\n"
          R"({"caption": "", "winner": "w", "loser": "l", "num_example_per_prompt": 3, "row": 7, "image_0_uid": "u"})",
          R"({"caption": "x", "image_0": "a", "image_1": "b", "has_label": false})"};
}

inline std::vector<std::string> preference_gap_seeds() {
  return {"different_flag,aesthetic_gap,clipscore_gap,vqascore_gap\n1,0.5,-0.25,1e-3\n0,0.1,0.02,0.03\n",
          "\xef\xbb\xbf,\"a \"\"b\"\"\",vqascore_gap,different_flag,clipscore_gap,aesthetic_gap\r\n0,\"x, "
          "y\",1,True,2,3\r\n"};
}

inline std::vector<std::string> preference_shard_seeds() {
  const std::string record = R"({"caption": "x", "label_0": 1, "label_1": 0})";
  return {tar_archive({{"0.json", record}, {"0.0.jpg", "first"}, {"0.1.png", "second"}}),
          tar_archive({{"a/7.jpg_0", "first"}, {"a/7.jpg_1", "second"}, {"a/7.json", record}})};
}

inline std::vector<Target> targets() {
  std::vector<Target> list = {
      {"safetensors", read_safetensors, safetensors_seeds()},
      {"json_config",
       read_json_config,
       {R"({"_class_name": "UNet2DConditionModel", "sample_size": 64, "block_out_channels": [320, 640], "eps": 1e-05,)"
        R"( "class_embed_type": null, "flip": true, "nested": {"a": [["x"]]}})"}},
      {"prompt",
       read_prompt,
       {"A red circle isn't 12 caf\xc3\xa9 e\xcc\x81 \xed\x95\x9c\xe1\x84\x92\xe1\x85\xa1\xe1\x86\xab "
        "\xf0\x9f\x98\x80!!",
        "\xce\xa3\xce\x91\xce\xa3 \xc4\xb0 <|endoftext|> 'LL \xe6\x97\xa5\xe6\x9c\xac"}},
      {"vocabulary",
       read_vocabulary,
       {"#version: 0.2\nr e\nre d</w>\nc i\n",
        R"({"model": {"vocab": {"red</w>": 0, "r": 1, "<|startoftext|>": 2}, "merges": ["r e", ["re", "d</w>"]]},)"
        R"( "added_tokens": [{"id": 3, "content": "<|endoftext|>"}]})",
        // gzip of "hello\n"
        std::string(
            "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xcb\x48\xcd\xc9\xc9\xe7\x02\x00\x20\x30\x3a\x36\x06\x00\x00"
            "\x00",
            26)}},
      {"png", read_png, png_seeds()},
      {"npy", read_npy, npy_seeds()},
      {"torch_file", read_torch_file, torch_seeds()},
      {"torch_pickle", read_pickle, pickle_seeds()},
      {"preference_lines", read_preference_lines, preference_line_seeds()},
      {"preference_gaps", read_preference_gaps, preference_gap_seeds()},
  };
#if __has_include(<archive.h>)
  list.push_back({"preference_shard", read_preference_shard, preference_shard_seeds()});
#endif
  return list;
}

}  // namespace fuzz
