// SPDX-License-Identifier: MIT
// Checkpoint: the weights of one component, in one file or in shards listed by an index, as safetensors or from torch.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>
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

/// Same questions as `TensorTable`, over all shards.
class Checkpoint {
 public:
  /// One file.
  explicit Checkpoint(const std::string& file, const SafetensorsOptions& options = {}) : name_(file) {
    shards_.push_back(open_tensor_file(file, options));
    for (const std::string& key : shards_[0].keys()) shard_of_.emplace(key, 0);
  }

  /// Shards of an `….index.json`: `{"weight_map": {tensor: file beside the index}}`.
  static Checkpoint from_index(const std::string& index_path, const SafetensorsOptions& options = {}) {
    return Checkpoint(index_path, read_text_file(index_path), options);
  }

  const std::string& path() const { return name_; }

  std::vector<std::string> keys() const {
    std::vector<std::string> names;
    names.reserve(shard_of_.size());
    for (const auto& [key, shard] : shard_of_) names.push_back(key);
    return names;
  }

  bool contains(std::string_view key) const { return shard_of_.find(key) != shard_of_.end(); }

  /// The file that holds the tensor; FileError with the nearest names if none does.
  const TensorTable& shard(std::string_view key) const {
    const auto found = shard_of_.find(key);
    if (found == shard_of_.end())
      throw FileError(message("[checkpoint] ", name_, ": no tensor \"", key, "\" among ", shard_of_.size(),
                              detail::near_keys(key, keys())));
    return shards_[found->second];
  }

  const TensorInfo& info(std::string_view key) const { return shard(key).info(key); }

  /// Metadata of the first shard (shards of one component repeat it).
  const std::map<std::string, std::string>& metadata() const { return shards_[0].metadata(); }

  /// See `TensorTable::read`; `size` is the number of elements or the exact shape.
  template <class To, class Size>
  void read(std::string_view key, To* destination, const Size& size) const {
    shard(key).read(key, destination, size);
  }

  template <class To>
  void read_part(std::string_view key, index_t first, index_t count, To* destination) const {
    shard(key).read_part(key, first, count, destination);
  }

  template <class To>
  std::vector<To> read_vector(std::string_view key) const {
    return shard(key).template read_vector<To>(key);
  }

  template <class T>
  const T* direct(std::string_view key) const {
    return shard(key).template direct<T>(key);
  }

  /// See `MappedFile::release_pages`.
  void release_pages() const {
    for (const TensorTable& shard : shards_) shard.release_pages();
  }
  void release_pages(std::string_view key) const { shard(key).release_pages(key); }

 private:
  Checkpoint(const std::string& index_path, const std::string& index_text, const SafetensorsOptions& options)
      : name_(index_path) {
    const auto fail = [&](const auto&... parts) { throw FileError(message("[checkpoint] ", name_, ": ", parts...)); };
    const auto index = parse_json<SortedJson>(index_text, "checkpoint", name_);
    const auto map = index.is_object() ? index.find("weight_map") : index.end();
    if (!index.is_object() || map == index.end() || !map->is_object() || map->empty())
      fail("expected an object with a \"weight_map\" of tensor names to file names");
    std::map<std::string, std::size_t> shard_of_file;
    for (const auto& [key, file] : map->items()) {
      if (!file.is_string()) fail("weight_map of \"", key, "\" is ", json_kind(file), ", expected a file name");
      const auto& file_name = file.template get_ref<const std::string&>();
      // An index may only name its neighbours: a path would let a downloaded file read elsewhere.
      if (file_name.empty() || file_name.find_first_of(std::string_view("/\\\0", 3)) != std::string::npos ||
          file_name == "..")
        fail("weight_map of \"", key, "\" is ", json_preview(file),
             ", expected the name of a file in the same directory");
      const auto [position, is_new] = shard_of_file.emplace(file_name, shards_.size());
      if (is_new) shards_.push_back(open_tensor_file(detail::directory_of(index_path) + "/" + file_name, options));
      if (!shards_[position->second].contains(key))
        fail("lists tensor \"", key, "\" in \"", file_name, "\", which does not have it");
      shard_of_.emplace(key, position->second);
    }
  }

  std::string name_;
  std::vector<TensorTable> shards_;
  std::map<std::string, std::size_t, std::less<>> shard_of_;
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
