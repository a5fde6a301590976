// SPDX-License-Identifier: MIT
// LatentPairs on disk: one safetensors file, so that images are encoded (or drawn and rated) once and trained on many times.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <lpo/io/safetensors.hpp>
#include <lpo/train/latent_pairs.hpp>

namespace lpo::inline LPO_ABI {

/// Writes `mean` [images, h, w, c], `deviation` (if any), `token_ids` [prompts, tokens], `prompt_of_image` [images],
/// `pairs` [pairs, 2] and `labels` [pairs, 4] (label_0, label_1, num_examples, auxiliary). `about` is kept as the metadata
/// entry "about": what the pairs were made from.
inline void save_latent_pairs(const std::string& path, const LatentPairs& data, const std::string& about = "") {
  data.check();
  if (data.source) throw ValueError(message("[save_latent_pairs] ", path, ": the latents are in files already"));
  const index_t images = data.images(), pairs = data.size();
  const std::vector<index_t> extents{images, data.height, data.width, data.channels};
  std::vector<float> labels;
  for (const auto& label : data.labels)
    labels.insert(labels.end(), {label.label_0, label.label_1, label.num_examples, label.auxiliary ? 1.0f : 0.0f});
  std::vector<std::int64_t> members;
  for (const auto& [first, second] : data.pairs) members.insert(members.end(), {first, second});
  SafetensorsWriter writer;
  writer.set_metadata("about", about);
  writer.add("mean", DType::F32, extents, data.mean.data());
  if (!data.deviation.empty()) writer.add("deviation", DType::F32, extents, data.deviation.data());
  writer.add("token_ids", DType::I32, {data.prompts(), data.tokens}, data.token_ids.data());
  writer.add("prompt_of_image", DType::I64, {images}, data.prompt_of_image.data());
  writer.add("pairs", DType::I64, {pairs, 2}, members.data());
  writer.add("labels", DType::F32, {pairs, 4}, labels.data());
  writer.write(path);
}

/// Reads what save_latent_pairs() wrote; FileError or ShapeError if the parts do not belong together.
inline LatentPairs load_latent_pairs(const std::string& path) {
  const SafetensorsFile file(path);
  const auto shape = [&](const char* key, std::size_t rank) {
    const auto& found = file.info(key).shape;
    if (found.size() != rank)
      throw FileError(message("[load_latent_pairs] ", path, ": ", key, " has shape ", shape_text(found), ", expected ",
                              static_cast<index_t>(rank), " axes"));
    return found;
  };
  LatentPairs data;
  const auto extents = shape("mean", 4);
  data.height = extents[1], data.width = extents[2], data.channels = extents[3];
  data.tokens = shape("token_ids", 2)[1];
  data.mean = file.read_vector<float>("mean");
  if (file.contains("deviation")) data.deviation = file.read_vector<float>("deviation");
  data.token_ids = file.read_vector<std::int32_t>("token_ids");
  data.prompt_of_image = file.read_vector<index_t>("prompt_of_image");
  const index_t count = shape("pairs", 2)[0];
  std::vector<index_t> members(static_cast<std::size_t>(2 * count));
  std::vector<float> labels(static_cast<std::size_t>(4 * count));
  file.read("pairs", members.data(), std::vector<index_t>{count, 2});
  file.read("labels", labels.data(), std::vector<index_t>{count, 4});
  for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i)
    data.add_pair(members[2 * i], members[2 * i + 1], {labels[4 * i], labels[4 * i + 1], labels[4 * i + 2], labels[4 * i + 3] != 0});
  data.check();
  return data;
}

}  // namespace lpo::inline LPO_ABI
