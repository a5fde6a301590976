// SPDX-License-Identifier: MIT
// Where txt2img puts pictures: PNG files with their settings inside, metadata.jsonl, and grid.png for several.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include <lpo/io/json.hpp>
#include <lpo/io/png.hpp>

#include "options.hpp"

namespace txt2img {

/// The sampler's name as web interfaces spell it.
inline std::string display_name(lpo::SamplerKind sampler) {
  switch (sampler) {
    case lpo::SamplerKind::ddim:
      return "DDIM";
    case lpo::SamplerKind::ddpm:
      return "DDPM";
    case lpo::SamplerKind::euler:
      return "Euler";
    case lpo::SamplerKind::euler_ancestral:
      return "Euler a";
    case lpo::SamplerKind::dpmpp_2m:
      return "DPM++ 2M";
    case lpo::SamplerKind::dpmpp_2m_karras:
      return "DPM++ 2M Karras";
    case lpo::SamplerKind::pndm:
      return "PLMS";
  }
  return "";
}

/// A number without trailing zeros.
inline std::string short_text(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", value);
  return text;
}

/// The text under the keyword "parameters" from which web interfaces restore settings.
inline std::string parameters_text(const Job& job, const std::string& prompt, std::uint64_t seed) {
  std::string text = prompt + "\n";
  if (!job.negative_prompt.empty()) text += "Negative prompt: " + job.negative_prompt + "\n";
  text += lpo::message("Steps: ", job.steps, ", Sampler: ", display_name(job.schedule.sampler),
                       ", CFG scale: ", short_text(job.guidance_scale), ", Seed: ", seed, ", Size: ", job.width, "x",
                       job.height, ", Model: ", job.model.name());
  if (job.guidance_rescale != 0) text += ", CFG rescale: " + short_text(job.guidance_rescale);
  if (job.eta != 0) text += ", Eta: " + short_text(job.eta);
  for (const Lora& lora : job.loras) text += lpo::message(", Lora: ", lora.path, ":", short_text(lora.scale));
  return text + (job.torch_noise ? ", RNG: CPU" : ", RNG: philox") + ", Version: lpo " + LPO_VERSION_STRING;
}

/// Gives pictures the numbers that are free in the folder. Every file is written whole or not at all.
class PictureWriter {
 public:
  static constexpr std::size_t grid_pictures = 100;  ///< the first ones: more would be too large a picture to look at

  PictureWriter(const Job& job, std::string folder) : job_(job), folder_(std::move(folder)) {
    lpo::make_directories(folder_);
    if (lpo::file_exists(metadata_path())) metadata_ = lpo::read_text_file(metadata_path());
  }

  /// Returns the path.
  std::string write(lpo::RgbImage image, const std::string& prompt, std::uint64_t seed) {
    while (lpo::file_exists(folder_ + "/" + name(next_))) ++next_;
    const std::string file = name(next_++);
    lpo::write_png(folder_ + "/" + file, image, {{"parameters", parameters_text(job_, prompt, seed)}});
    lpo::OrderedJson line;
    line["file_name"] = file;
    line["prompt"] = prompt;
    line["negative_prompt"] = job_.negative_prompt;
    line["seed"] = seed;
    line["num_inference_steps"] = job_.steps;
    line["scheduler"] = std::string(lpo::name_of(job_.schedule.sampler));
    line["guidance_scale"] = job_.guidance_scale;
    line["guidance_rescale"] = job_.guidance_rescale;
    line["eta"] = job_.eta;
    line["height"] = job_.height;
    line["width"] = job_.width;
    line["rng"] = job_.torch_noise ? "torch" : "philox";
    line["model"] = job_.model.path();
    line["dtype"] = job_.dtype;
    line["lora"] = lpo::OrderedJson::array();
    for (const Lora& lora : job_.loras) line["lora"].push_back(lpo::message(lora.path, ":", short_text(lora.scale)));
    metadata_ += line.dump() + "\n";
    lpo::write_text_file(metadata_path(), metadata_);
    if (images_.size() < grid_pictures) images_.push_back(std::move(image));
    return folder_ + "/" + file;
  }

  /// A row for each prompt, or a square for one, of at most grid_pictures; nothing for a single picture. Returns the
  /// path, if there is one.
  std::string write_grid() const {
    if (images_.size() < 2) return "";
    const int square = static_cast<int>(std::ceil(std::sqrt(static_cast<double>(images_.size()))));
    const int columns = job_.prompts.size() > 1 && job_.images_per_prompt > 1 ? job_.images_per_prompt : square;
    const std::string path = folder_ + "/grid.png";
    lpo::write_png(path, lpo::tile_images(images_, columns),
                   {{"parameters", parameters_text(job_, job_.prompts[0], job_.seed)}});
    return path;
  }

 private:
  static std::string name(int number) {
    char text[32];
    std::snprintf(text, sizeof text, "%05d.png", number);
    return text;
  }
  std::string metadata_path() const { return folder_ + "/metadata.jsonl"; }

  const Job& job_;
  std::string folder_, metadata_;
  std::vector<lpo::RgbImage> images_;
  int next_ = 0;
};

}  // namespace txt2img
