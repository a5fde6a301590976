// SPDX-License-Identifier: MIT
// Checkpoint: the weights of one component, in one file or in shards listed by an index, as safetensors or from torch.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/io/file.hpp>
#include <lpo/io/json.hpp>
#include <lpo/io/safetensors_file.hpp>
#include <lpo/io/tensor_table.hpp>
#include <lpo/io/torch_file.hpp>

namespace lpo::inline LPO_ABI {

/// One file of tensors: torch's if its name ends in .bin, .pt, .pth or .ckpt, else safetensors.
inline TensorTable open_tensor_file(const std::string& path, const SafetensorsOptions& options = {}) {
  for (const char* ending : {".bin", ".pt", ".pth", ".ckpt"})
    if (path.ends_with(ending)) return TorchFile(path);
  return SafetensorsFile(path, options);
}

/// All tensors of a file, or of the shards that an index lists.
class Checkpoint : public TensorTable {
 public:
  /// One file.
  explicit Checkpoint(const std::string& file, const SafetensorsOptions& options = {})
      : TensorTable(open_tensor_file(file, options)) {}

  /// Shards of an `….index.json`: `{"weight_map": {tensor: file beside the index}}`. Metadata is that of the first
  /// shard: shards of one component repeat it.
  static Checkpoint from_index(const std::string& index_path, const SafetensorsOptions& options = {}) {
    return Checkpoint(index_path, read_text_file(index_path), options);
  }

 private:
  Checkpoint(const std::string& index_path, const std::string& index_text, const SafetensorsOptions& options)
      : TensorTable("checkpoint", index_path) {
    const auto index = parse_json<SortedJson>(index_text, "checkpoint", name_);
    const auto map = index.is_object() ? index.find("weight_map") : index.end();
    if (!index.is_object() || map == index.end() || !map->is_object() || map->empty())
      fail("expected an object with a \"weight_map\" of tensor names to file names");
    std::map<std::string, TensorTable> shards;
    for (const auto& [key, file] : map->items()) {
      if (!file.is_string()) fail("weight_map of \"", key, "\" is ", json_kind(file), ", expected a file name");
      const auto& file_name = file.template get_ref<const std::string&>();
      // An index may only name its neighbours: a path would let a downloaded file read elsewhere.
      if (file_name.empty() || file_name.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos ||
          file_name == "..")
        fail("weight_map of \"", key, "\" is ", json_preview(file),
             ", expected the name of a file in the same directory");
      auto shard = shards.find(file_name);
      if (shard == shards.end()) {
        const std::string path = detail::directory_of(index_path) + "/" + file_name;
        shard = shards.emplace(file_name, open_tensor_file(path, options)).first;
        keep(shard->second);
        if (shards.size() == 1) metadata_ = shard->second.metadata();
      }
      if (!shard->second.contains(key))
        fail("lists tensor \"", key, "\" in \"", file_name, "\", which does not have it");
      tensors_.emplace(key, shard->second.info(key));
    }
  }
};

/// Opens the weights of a component directory as diffusers and transformers lay them out:
/// `basename[.variant].safetensors`, or the shards of `basename.safetensors.index.json` (with a variant:
/// `basename.safetensors.index.fp16.json`, `basename.fp16.safetensors.index.json` or `….safetensors.fp16.index.json`);
/// where there are none, the same with `.bin`, which torch wrote. `basename` is "diffusion_pytorch_model" for
/// diffusers' parts and "model" for transformers', whose torch files are named "pytorch_model". FileError lists what
/// was tried.
inline Checkpoint open_checkpoint(const std::string& directory, const std::string& basename,
                                  const std::string& variant = "", const SafetensorsOptions& options = {}) {
  const std::string dotted = variant.empty() ? "" : "." + variant;
  std::string tried;
  const auto exists = [&](const std::string& name) {
    tried += (tried.empty() ? "" : ", ") + name;
    return file_exists(directory + "/" + name);
  };
  const std::string torch_basename = basename == "model" ? "pytorch_model" : basename;
  for (const auto& [stem, ending] : {std::pair(basename, ".safetensors"), std::pair(torch_basename, ".bin")}) {
    const std::string single = stem + dotted + ending;
    if (exists(single)) return Checkpoint(directory + "/" + single, options);
    std::vector<std::string> indices = {stem + ending + ".index" + dotted + ".json"};
    if (!variant.empty()) {
      indices.push_back(stem + dotted + ending + ".index.json");
      indices.push_back(stem + ending + dotted + ".index.json");
    }
    for (const std::string& index : indices)
      if (exists(index)) return Checkpoint::from_index(directory + "/" + index, options);
  }
  throw FileError(message("[open_checkpoint] ", directory, ": no weights; tried ", tried));
}

}  // namespace lpo::inline LPO_ABI
