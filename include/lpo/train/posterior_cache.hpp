// SPDX-License-Identifier: MIT
// A cache of encoded preference pairs: a folder of files with the VAE posteriors of some pairs each, in 16 bits. It is
// filled once, in pieces that survive an interruption, and trained from without being loaded whole.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <unordered_map>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include <lpo/io/file.hpp>
#include <lpo/io/json.hpp>
#include <lpo/io/preference_record.hpp>
#include <lpo/io/safetensors.hpp>
#include <lpo/train/latent_pairs.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

inline constexpr int posterior_cache_version = 1;
inline constexpr const char* posterior_cache_index = "cache.json";

inline std::string posterior_file(const std::string& folder, std::size_t number) {
  char name[64];
  std::snprintf(name, sizeof name, "/posteriors-%06zu.safetensors", number);
  return folder + name;
}

/// Bytes of a record's picture, which tell it from another of its uid; 0 if there is none.
inline std::uintmax_t picture_bytes(const PreferenceRecord& record, std::size_t which) {
  if (record.path[which].empty()) return record.encoded[which].size();
  std::error_code error;
  const std::uintmax_t size = std::filesystem::file_size(record.path[which], error);
  return error ? 0 : size;
}

/// A pair in the files' metadata; `images` are numbers in the whole cache.
inline OrderedJson cached_pair_json(const PreferenceRecord& record, const std::array<index_t, 2>& images) {
  OrderedJson json;
  json["bytes"] = {picture_bytes(record, 0), picture_bytes(record, 1)};
  json["caption"] = record.caption;
  json["uids"] = record.uid;
  json["images"] = images;
  json["labels"] = {record.label.label_0, record.label.label_1, record.label.num_examples};
  return json;
}

/// The metadata of one file, checked as far as reading it needs.
struct PosteriorFile {
  SafetensorsFile file;
  index_t first_image = 0, images = 0;
  OrderedJson pairs;

  explicit PosteriorFile(const std::string& path) : file(path) {
    const auto fail = [&](const char* what) {
      throw FileError(message("[cache] ", path, ": ", what, "; remove the file to have it made again"));
    };
    const auto text = [&](const char* key) {
      const auto found = file.metadata().find(key);
      if (found == file.metadata().end()) fail("is no file of a posterior cache");
      return found->second;
    };
    if (text("format_version") != std::to_string(posterior_cache_version)) fail("is of another format version");
    const auto first = parse_json<OrderedJson>(text("first_image"), "cache", path);
    pairs = parse_json<OrderedJson>(text("pairs"), "cache", path);
    if (!first.is_number_unsigned() || !pairs.is_array() || file.info("mean").shape.size() != 4 ||
        file.info("mean").shape != file.info("deviation").shape)
      fail("is damaged");
    first_image = first.get<index_t>();
    images = file.info("mean").shape[0];
    for (const auto& pair : pairs) {
      const bool whole =
          pair.is_object() && pair.contains("caption") && pair["caption"].is_string() && pair.contains("images") &&
          pair["images"].is_array() && pair["images"].size() == 2 && pair["images"][0].is_number_unsigned() &&
          pair["images"][1].is_number_unsigned() && pair.contains("labels") && pair["labels"].is_array() &&
          pair["labels"].size() == 3 &&
          std::all_of(pair["labels"].begin(), pair["labels"].end(), [](const auto& one) { return one.is_number(); }) &&
          pair.contains("uids") && pair["uids"].is_array() && pair["uids"].size() == 2 && pair["uids"][0].is_string() &&
          pair["uids"][1].is_string();
      if (!whole) fail("is damaged");
    }
  }
};

}  // namespace detail

/// Fills a cache. `settings` says what the posteriors depend on (autoencoder, resolution, filter); a folder that was
/// begun with others is refused. The same pairs in the same order, again after an interruption, are compared with what
/// is there, and only images that no file has are asked for.
class PosteriorCacheWriter {
 public:
  PosteriorCacheWriter(std::string folder, const Extents<3>& latent, OrderedJson settings,
                       std::size_t pairs_per_file = 128)
      : folder_(std::move(folder)), latent_(latent), settings_(std::move(settings)), pairs_per_file_(pairs_per_file) {
    if (pairs_per_file < 1) throw ValueError("[cache] a file must hold at least 1 pair");
    make_directories(folder_);
    const std::string index = folder_ + "/" + detail::posterior_cache_index;
    if (file_exists(index)) {
      const auto found = parse_json<OrderedJson>(read_text_file(index), "cache", index);
      const OrderedJson before = found.is_object() && found.contains("settings") ? found["settings"] : OrderedJson();
      if (before != settings_)
        throw FileError(message("[cache] ", index, ": was made with ", before.dump(), ", now wanted ", settings_.dump(),
                                "; use another folder, or remove this one"));
    }
    write_index(false);
    open_existing();
  }

  /// Adds a pair. `encode(which, mean, deviation)` is called for each of its two pictures that is new and that no file
  /// has: it writes the scaled posterior, [h, w, c] each.
  template <class Encode>
  void add(const PreferenceRecord& record, const Encode& encode) {
    std::array<index_t, 2> images{};
    // A picture under two prompts is two images: an image of LatentPairs has one prompt.
    for (std::size_t i = 0; i < 2; ++i)
      images[i] = image_of(record.uid[i] + "\n" + record.caption, static_cast<int>(i), encode);
    OrderedJson entry = detail::cached_pair_json(record, images);
    if (existing_ && pairs_.size() < existing_->pairs.size()) {
      const OrderedJson& before = existing_->pairs[pairs_.size()];
      if (!before.contains("bytes")) entry.erase("bytes");  // made before sizes were kept
      if (before != entry)
        throw FileError(message("[cache] ", existing_->file.path(), ": its pair ", pairs_.size(), " is ",
                                json_preview(before), ", the data set now has ", json_preview(entry),
                                "; use another folder, or remove this one"));
    }
    pairs_.push_back(entry);
    ++count_;
    if (pairs_.size() == pairs_per_file_) close_file();
  }

  /// Writes what is not in a file yet; call it before stopping in the middle, too.
  void flush() {
    if (pairs_.empty() || (existing_ && pairs_.size() <= existing_->pairs.size())) return;
    write_file();
  }

  /// All pairs were added.
  void finish() {
    flush();
    if ((existing_ && pairs_.size() < existing_->pairs.size()) ||
        file_exists(detail::posterior_file(folder_, number_ + (pairs_.empty() ? 0 : 1))))
      throw FileError(message("[cache] ", folder_, ": has more pairs than the data set, ", count_,
                              "; use another folder, or remove this one"));
    write_index(true);
  }

  index_t pairs() const { return count_; }
  index_t images() const { return next_image_; }
  index_t encoded() const { return encoded_; }  ///< images that were asked for

 private:
  template <class Encode>
  index_t image_of(const std::string& key, int which, const Encode& encode) {
    const auto [found, is_new] = numbers_.emplace(key, next_image_);
    if (!is_new) return found->second;
    const index_t size = latent_.size(), in_file = next_image_ - first_image_;
    ++next_image_;
    mean_.resize(static_cast<std::size_t>((in_file + 1) * size));
    deviation_.resize(mean_.size());
    float* const mean = mean_.data() + in_file * size;
    float* const deviation = deviation_.data() + in_file * size;
    if (existing_ && in_file < existing_->images) {
      existing_->file.read_part("mean", in_file * size, size, mean);
      existing_->file.read_part("deviation", in_file * size, size, deviation);
    } else {
      encode(which, mean, deviation);
      ++encoded_;
    }
    return found->second;
  }

  void close_file() {
    flush();
    ++number_;
    first_image_ = next_image_;
    pairs_ = OrderedJson::array();
    mean_.clear();
    deviation_.clear();
    open_existing();
  }

  void open_existing() {
    existing_.reset();
    const std::string path = detail::posterior_file(folder_, number_);
    if (!file_exists(path)) return;
    existing_ = std::make_unique<detail::PosteriorFile>(path);
    const std::vector<index_t> wanted{existing_->images, latent_[0], latent_[1], latent_[2]};
    if (existing_->file.info("mean").shape != wanted || existing_->first_image != first_image_)
      throw FileError(message("[cache] ", path, ": holds posteriors ", shape_text(existing_->file.info("mean").shape),
                              " from image ", existing_->first_image, ", expected ", shape_text(wanted), " from ",
                              first_image_, "; use another folder, or remove this one"));
  }

  void write_file() {
    SafetensorsWriter writer;
    const std::vector<index_t> shape{next_image_ - first_image_, latent_[0], latent_[1], latent_[2]};
    writer.add_converted("mean", DType::F16, shape, mean_.data());
    writer.add_converted("deviation", DType::F16, shape, deviation_.data());
    writer.set_metadata("format_version", std::to_string(detail::posterior_cache_version));
    writer.set_metadata("first_image", std::to_string(first_image_));
    writer.set_metadata("pairs", pairs_.dump());
    writer.write(detail::posterior_file(folder_, number_));
  }

  void write_index(bool complete) const {
    OrderedJson index;
    index["format_version"] = detail::posterior_cache_version;
    index["complete"] = complete;
    if (complete) {
      index["pairs"] = count_;
      index["images"] = next_image_;
      index["files"] = number_ + (pairs_.empty() ? 0 : 1);
    }
    index["settings"] = settings_;
    write_text_file(folder_ + "/" + detail::posterior_cache_index, index.dump(2) + "\n");
  }

  std::string folder_;
  Extents<3> latent_;
  OrderedJson settings_;
  std::size_t pairs_per_file_, number_ = 0;
  std::unique_ptr<detail::PosteriorFile> existing_;  ///< what the file that is being filled held before
  OrderedJson pairs_ = OrderedJson::array();
  std::vector<float> mean_, deviation_;
  std::unordered_map<std::string, index_t> numbers_;
  index_t first_image_ = 0, next_image_ = 0, count_ = 0, encoded_ = 0;
};

/// What cache.json says; FileError unless the folder is a complete cache.
inline OrderedJson read_posterior_cache_index(const std::string& folder) {
  const std::string path = folder + "/" + detail::posterior_cache_index;
  const auto index = parse_json<OrderedJson>(read_text_file(path), "cache", path);
  const auto number = [&](const char* key) { return index.contains(key) && index[key].is_number_unsigned(); };
  if (!index.is_object() || !number("format_version") || index["format_version"] != detail::posterior_cache_version ||
      !index.contains("complete") || !index["complete"].is_boolean())
    throw FileError(
        message("[cache] ", path, ": is no index of a posterior cache of version ", detail::posterior_cache_version));
  if (!index["complete"].get<bool>() || !number("pairs") || !number("images") || !number("files"))
    throw FileError(message("[cache] ", folder,
                            ": is not complete; encode the data set once more, which goes on where it stopped"));
  return index;
}

/// A complete cache as LatentPairs whose posteriors stay in the files. `tokenize(caption)` gives the ids of a prompt,
/// all of one length. A pair that does not say how many its prompt has counts those of the cache.
template <class Tokenize>
LatentPairs load_posterior_cache(const std::string& folder, const Tokenize& tokenize) {
  const OrderedJson index = read_posterior_cache_index(folder);
  auto files = std::make_shared<std::vector<detail::PosteriorFile>>();
  std::unordered_map<std::string, index_t> prompts;
  std::unordered_map<index_t, float> pairs_of_prompt;
  LatentPairs data;
  index_t images = 0;
  const auto fail = [&](const auto&... parts) { throw FileError(message("[cache] ", folder, ": ", parts...)); };
  for (std::size_t i = 0; i < index["files"].get<std::size_t>(); ++i) {
    auto& file = files->emplace_back(detail::posterior_file(folder, i));
    const auto& shape = file.file.info("mean").shape;
    if (i == 0) data.height = shape[1], data.width = shape[2], data.channels = shape[3];
    if (file.first_image != images || shape[1] != data.height || shape[2] != data.width || shape[3] != data.channels)
      fail(file.file.path(), " does not go on where the file before it ends");
    images += file.images;
    data.prompt_of_image.resize(static_cast<std::size_t>(images), -1);
    for (const auto& pair : file.pairs) {
      const auto [prompt, is_new] = prompts.emplace(pair["caption"].get<std::string>(), data.prompts());
      if (is_new) {
        const std::vector<std::int32_t> ids = tokenize(prompt->first);
        data.tokens = static_cast<index_t>(ids.size());
        data.add_prompt(ids);
      }
      const std::array<index_t, 2> members = {pair["images"][0].get<index_t>(), pair["images"][1].get<index_t>()};
      for (const index_t image : members) {
        // A number beyond index_t arrives negative.
        if (image < 0 || image >= images)
          fail(file.file.path(), " has a pair of image ", image, ", but no more than ", images, " images so far");
        auto& owner = data.prompt_of_image[static_cast<std::size_t>(image)];
        owner = prompt->second;
      }
      data.add_pair(
          members[0], members[1],
          {pair["labels"][0].get<float>(), pair["labels"][1].get<float>(), pair["labels"][2].get<float>(), false});
      ++pairs_of_prompt[prompt->second];
    }
    file.pairs = OrderedJson();
  }
  if (data.size() != index["pairs"].get<index_t>() || images != index["images"].get<index_t>())
    fail("its files have ", data.size(), " pairs of ", images, " images, cache.json says ", index["pairs"].dump(),
         " of ", index["images"].dump());
  for (std::size_t i = 0; i < data.pairs.size(); ++i)
    if (!(data.labels[i].num_examples > 0))
      data.labels[i].num_examples = pairs_of_prompt[data.prompt_of(data.pairs[i])];
  auto source = std::make_shared<LatentSource>();
  source->images = images;
  source->deviations = true;
  source->read = [files, size = data.latent_size()](index_t image, float* mean, float* deviation) {
    const auto after =
        std::upper_bound(files->begin(), files->end(), image,
                         [](index_t number, const detail::PosteriorFile& file) { return number < file.first_image; });
    const detail::PosteriorFile& file = *(after - 1);
    file.file.read_part("mean", (image - file.first_image) * size, size, mean);
    file.file.read_part("deviation", (image - file.first_image) * size, size, deviation);
  };
  data.source = std::move(source);
  return data;
}

}  // namespace lpo::inline LPO_ABI
