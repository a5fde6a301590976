// SPDX-License-Identifier: MIT
// What `convert` does: a plan of files to write, made from a single file or a diffusers folder, and its execution.
#pragma once

#include <algorithm>
#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include <lpo/io/clip_vocabulary.hpp>
#include <lpo/io/config_from_json.hpp>
#include <lpo/io/diffusers.hpp>
#include <lpo/io/load_single_file.hpp>
#include <lpo/io/safetensors.hpp>
#include <lpo/train/progress.hpp>

namespace conversion {

inline constexpr std::array<const char*, 4> component_names = {"unet", "vae", "text_encoder", "text_encoder_2"};

struct Options {
  std::string from = {}, to = {};
  std::optional<lpo::DType> dtype = {};  ///< nothing: every tensor keeps its type
  std::string variant = {};              ///< "fp16": `….fp16.safetensors` in the folder
  std::string component = {};            ///< one of component_names; "": all
  std::string tokenizer = {};            ///< folder with vocab.json and merges.txt, or tokenizer.json
  std::string config = {};               ///< diffusers folder whose config.json files are taken instead of deduced ones
  std::string prediction_type = {};      ///< "epsilon" or "v_prediction"; "": as the file says or its family usually is
  bool overwrite = false;

  bool wants(const std::string& name) const { return component.empty() || component == name; }
};

/// Everything that will be written. Weights point into the source, which `source` keeps alive.
struct Plan {
  struct Weights {
    std::string component, path;
    lpo::SafetensorsWriter writer;
  };
  std::shared_ptr<const void> source;
  std::function<void()> release_pages;  ///< gives back the memory of what was read from the source
  std::vector<Weights> weights;
  std::vector<std::pair<std::string, lpo::ClipVocabulary>> tokenizers;  ///< by folder
  std::vector<std::pair<std::string, std::string>> texts;               ///< path, content; written last, in this order
  std::string summary;
  std::vector<std::string> notes;  ///< what the user should know

  std::size_t data_bytes() const {
    std::size_t bytes = 0;
    for (const Weights& w : weights) bytes += w.writer.data_bytes();
    return bytes;
  }
};

namespace detail {

inline std::string weights_name(const std::string& component, const std::string& variant) {
  const bool text = component.starts_with("text_encoder");
  return std::string(text ? lpo::detail::transformers_weights : lpo::detail::diffusers_weights) +
         (variant.empty() ? "" : "." + variant) + ".safetensors";
}

/// The config.json of a component in the folder given as --config, if there is one.
inline std::optional<lpo::JsonConfig> given_config(const Options& o, const std::string& component) {
  const std::string path = o.config + "/" + component + "/config.json";
  if (o.config.empty() || !lpo::file_exists(path)) return std::nullopt;
  return lpo::JsonConfig::from_file(path);
}

[[noreturn]] inline void shapes_do_not_tell(const std::string& file, const char* component) {
  throw lpo::FileError(lpo::message(
      "[convert] ", file, ": the ", component,
      " is narrower than Stable Diffusion's, so the number of its heads or norm groups cannot be deduced; give a "
      "diffusers folder with the same architecture as --config"));
}

/// FileError where a config does not describe the weights that were found.
template <class Config, class Json, class Canonical>
void expect_fits(const lpo::JsonConfig& json, const Config& given, const Config& found, Json to_json,
                 Canonical canonical) {
  if (given == found) return;
  lpo::detail::expect_same_config(json.name(), canonical(json), canonical(to_json(found)), "the weights");
}

inline lpo::JsonConfig unet_config(const lpo::SingleFile& file, const Options& o, int resolution) {
  lpo::UNetConfig found = file.unet_config();
  if (auto json = given_config(o, "unet")) {
    const lpo::UNetConfig given = lpo::unet_config_from_json(*json);
    found.heads = given.heads, found.groups = given.groups, found.addition_time_width = given.addition_time_width;
    expect_fits(*json, given, found, lpo::unet_json, lpo::detail::canonical_unet);
    return *json;
  }
  bool known = found.groups > 0;
  for (int level = 0; level < found.levels; ++level) {
    const auto at = static_cast<std::size_t>(level);
    const bool attends = found.transformer_depth[at] > 0 || (level + 1 == found.levels && found.mid_depth > 0);
    known = known && (!attends || found.heads[at] > 0);
  }
  if (!known) shapes_do_not_tell(file.path(), "UNet");
  lpo::JsonConfig json = lpo::unet_json(found);
  const bool v2 = file.family() == lpo::CheckpointFamily::v2;
  json.set("sample_size", resolution / (file.has_vae() ? file.vae_config().factor() : 8));
  if (v2) json.set("upcast_attention", true);  // its attention overflows in half precision
  return json;
}

inline lpo::JsonConfig vae_config(const lpo::SingleFile& file, const Options& o, int resolution) {
  lpo::VaeConfig found = file.vae_config();
  if (auto json = given_config(o, "vae")) {
    const lpo::VaeConfig given = lpo::vae_config_from_json(*json);
    found.groups = given.groups;
    const auto to_json = [](const lpo::VaeConfig& c) { return lpo::vae_json(c, 1.0); };
    expect_fits(*json, given, found, to_json, lpo::detail::canonical_vae);
    return *json;
  }
  if (found.groups == 0) shapes_do_not_tell(file.path(), "autoencoder");
  lpo::JsonConfig json = lpo::vae_json(found, lpo::detail::as_written(lpo::scaling_factor_of(file)));
  const bool xl = file.family() == lpo::CheckpointFamily::xl;
  json.set("sample_size", resolution);
  if (xl) json.set("force_upcast", true);  // its activations overflow in half precision
  return json;
}

inline lpo::JsonConfig text_config(const lpo::SingleFile& file, const Options& o, std::size_t which) {
  const std::string component = component_names[2 + which];
  lpo::ClipTextConfig found = file.text_encoder_config(which);
  if (auto json = given_config(o, component)) {
    const lpo::ClipTextConfig given = lpo::clip_text_config_from_json(*json);
    found.heads = given.heads;
    const auto to_json = [](const lpo::ClipTextConfig& c) { return lpo::clip_text_json(c); };
    expect_fits(*json, given, found, to_json, lpo::detail::canonical_clip_text);
    return *json;
  }
  if (found.heads == 0) shapes_do_not_tell(file.path(), "text encoder");
  return lpo::clip_text_json(found);
}

/// What the single file or the user says about the schedule.
inline lpo::JsonConfig scheduler_config(const lpo::SingleFile& file, const Options& o, Plan& plan) {
  std::optional<lpo::PredictionType> asked;
  if (!o.prediction_type.empty()) asked = lpo::parse_prediction_type(o.prediction_type);
  const std::string path = o.config + "/scheduler/scheduler_config.json";
  if (!o.config.empty() && lpo::file_exists(path)) {
    const auto given = lpo::JsonConfig::from_file(path);
    if (!asked) return given;
    lpo::SchedulerConfig c = lpo::scheduler_from_json(given);
    c.prediction_type = *asked;
    if (file.contains("ztsnr")) c.rescale_betas_zero_snr = true;
    return lpo::scheduler_json(c);
  }
  if (!asked && !file.prediction_type() && file.family() == lpo::CheckpointFamily::v2 && file.has_unet())
    plan.notes.emplace_back(
        "v2 files do not say what the UNet predicts; took v_prediction, as 2.1 at 768 pixels does; the "
        "512-base models need --prediction-type epsilon");
  return lpo::scheduler_json(lpo::load_scheduler(file, std::nullopt, asked));
}

}  // namespace detail

/// Single file -> diffusers folder.
inline Plan plan_folder(const Options& o) {
  const auto file = std::make_shared<const lpo::SingleFile>(o.from);
  Plan plan;
  plan.release_pages = [file] { file->release_pages(); };
  plan.summary = lpo::message(lpo::name_of(file->family()), " checkpoint");
  const bool xl = file->family() == lpo::CheckpointFamily::xl;
  const lpo::JsonConfig scheduler = detail::scheduler_config(*file, o, plan);
  const int resolution = lpo::resolution_of(
      *file, lpo::parse_prediction_type(scheduler.get_or<std::string>("prediction_type", "epsilon")));

  auto weights = std::make_shared<std::vector<lpo::RenamedWeights>>();  // keep the file mapped
  std::vector<std::string> written;
  const auto add = [&](const std::string& component, lpo::RenamedWeights renamed, const lpo::JsonConfig& config) {
    lpo::SafetensorsWriter writer;
    writer.set_metadata("format", "pt");
    lpo::add_weights(writer, renamed, o.dtype);
    weights->push_back(std::move(renamed));
    const std::string folder = o.to + "/" + component;
    plan.weights.push_back({component, folder + "/" + detail::weights_name(component, o.variant), std::move(writer)});
    plan.texts.emplace_back(folder + "/config.json", config.text());
    written.push_back(component);
  };
  if (file->has_unet() && o.wants("unet")) {
    const auto json = detail::unet_config(*file, o, resolution);
    add("unet", file->unet(lpo::unet_config_from_json(json)), json);
  }
  if (file->has_vae() && o.wants("vae")) {
    const auto json = detail::vae_config(*file, o, resolution);
    add("vae", file->vae(lpo::vae_config_from_json(json)), json);
  }
  for (std::size_t i = 0; i < file->text_encoders(); ++i) {
    const std::string component = component_names[2 + i];
    if (!o.wants(component)) continue;
    const auto json = detail::text_config(*file, o, i);
    add(component, file->text_encoder(lpo::clip_text_config_from_json(json), i), json);
    if (o.tokenizer.empty() || !o.component.empty()) continue;
    plan.tokenizers.emplace_back(o.to + (i == 0 ? "/tokenizer" : "/tokenizer_2"),
                                 lpo::padded_for(*file, i, lpo::read_clip_vocabulary(o.tokenizer)));
    written.push_back(i == 0 ? "tokenizer" : "tokenizer_2");
  }
  if (plan.weights.empty()) throw lpo::FileError(lpo::message("[convert] ", o.from, ": has no ", o.component));
  plan.source = weights;
  if (const auto others = file->other_keys(); !others.empty())
    plan.notes.push_back(lpo::message(
        others.size(), " tensors belong to no component and are left out: ", lpo::detail::listed(others, 8)));
  if (!o.component.empty()) return plan;

  if (file->has_unet()) {
    plan.texts.emplace_back(o.to + "/scheduler/scheduler_config.json", scheduler.text());
    written.emplace_back("scheduler");
  }
  if (o.tokenizer.empty() && file->text_encoders() > 0)
    plan.notes.emplace_back("no tokenizer was written: single files have none; give a folder as --tokenizer");
  lpo::ModelIndex index = xl ? lpo::ModelIndex::stable_diffusion_xl() : lpo::ModelIndex::stable_diffusion();
  index.components["scheduler"].second = scheduler.get_or<std::string>("_class_name", "DDIMScheduler");
  std::erase_if(index.components, [&](const auto& part) {
    return std::find(written.begin(), written.end(), part.first) == written.end();
  });
  plan.texts.emplace_back(o.to + "/model_index.json", lpo::model_index_json(index).text());  // last: then all is there
  return plan;
}

/// Diffusers folder -> single file.
inline Plan plan_single_file(const Options& o) {
  struct Part {
    std::string name;
    lpo::JsonConfig json;
    lpo::Checkpoint weights;
  };
  auto parts = std::make_shared<std::vector<Part>>();
  for (const std::string name : component_names) {
    const std::string folder = o.from + "/" + name;
    if (!o.wants(name) || !lpo::file_exists(folder + "/config.json")) continue;
    const bool text = name.starts_with("text_encoder");
    parts->push_back(
        {name, lpo::JsonConfig::from_file(folder + "/config.json"),
         lpo::open_checkpoint(folder, text ? lpo::detail::transformers_weights : lpo::detail::diffusers_weights,
                              o.variant)});
  }
  if (parts->empty())
    throw lpo::FileError(lpo::message("[convert] ", o.from, ": has no ",
                                      o.component.empty() ? "unet, vae or text_encoder" : o.component,
                                      " with a config.json; expected a diffusers folder"));
  // Looked up in the folder rather than among the parts, so that --component writes what the whole file would have.
  lpo::CheckpointFamily family = lpo::CheckpointFamily::v1;
  if (lpo::file_exists(o.from + "/text_encoder_2/config.json")) {
    family = lpo::CheckpointFamily::xl;
  } else if (const std::string path = o.from + "/text_encoder/config.json"; lpo::file_exists(path)) {
    if (!lpo::clip_text_config_from_json(lpo::JsonConfig::from_file(path)).quick_gelu)
      family = lpo::CheckpointFamily::v2;
  } else if (const std::string unet = o.from + "/unet/config.json"; lpo::file_exists(unet)) {
    const lpo::UNetConfig c = lpo::unet_config_from_json(lpo::JsonConfig::from_file(unet));
    if (c.addition_width > 0)
      family = lpo::CheckpointFamily::xl;
    else if (c.linear_projection)
      family = lpo::CheckpointFamily::v2;
  }

  Plan plan;
  plan.source = parts;
  plan.release_pages = [parts] {
    for (const Part& part : *parts) part.weights.release_pages();
  };
  plan.summary = lpo::message(lpo::name_of(family), " checkpoint");
  lpo::SafetensorsWriter writer;
  writer.set_metadata("format", "pt");
  for (const Part& part : *parts) {
    if (part.name == "unet") {
      const lpo::UNetConfig c = lpo::unet_config_from_json(part.json);
      lpo::add_stored_weights(writer, part.weights, lpo::ldm_unet_prefix, lpo::ldm_unet_weights(c), o.dtype);
      if (part.json.has("sample_size") && part.json.original().at("sample_size").is_number_integer()) {
        const std::string path = o.from + "/vae/config.json";
        const lpo::VaeConfig vae =
            lpo::file_exists(path) ? lpo::vae_config_from_json(lpo::JsonConfig::from_file(path)) : lpo::presets::sd_vae;
        const int side = part.json.get<int>("sample_size") * vae.factor();
        writer.set_metadata("modelspec.resolution", lpo::message(side, "x", side));
      }
    } else if (part.name == "vae") {
      const lpo::VaeConfig c = lpo::vae_config_from_json(part.json);
      lpo::add_stored_weights(writer, part.weights, lpo::ldm_vae_prefix, lpo::ldm_vae_weights(c), o.dtype,
                              lpo::detail::legacy_vae_name);
      if (const float factor = part.json.get_or("scaling_factor", 0.18215f);
          factor != lpo::usual_scaling_factor(family))
        writer.set_metadata(lpo::scaling_factor_key, lpo::OrderedJson(lpo::detail::as_written(factor)).dump());
    } else {
      const lpo::TextEncoderPlace place = lpo::ldm_text_encoder_places(family)[part.name == "text_encoder" ? 0 : 1];
      const lpo::ClipTextConfig c = lpo::clip_text_config_from_json(part.json);
      if (place.projected != (c.projection > 0))
        throw lpo::FileError(lpo::message("[convert] ", part.json.name(), ": the ", part.name, " of an ",
                                          lpo::name_of(family), " checkpoint has ", place.projected ? "a" : "no",
                                          " projection; this one has ", place.projected ? "none" : "one"));
      lpo::add_stored_weights(writer, part.weights, place.prefix, lpo::text_encoder_weights(place, c), o.dtype,
                              lpo::detail::bare_clip_text_name, [](std::string_view key) { return key.ends_with("position_ids"); });
    }
  }
  if (o.wants("unet")) {
    std::string prediction = o.prediction_type;
    if (const std::string path = o.from + "/scheduler/scheduler_config.json"; lpo::file_exists(path)) {
      const auto scheduler = lpo::JsonConfig::from_file(path);
      if (prediction.empty()) prediction = scheduler.get_or<std::string>("prediction_type", "epsilon");
      if (prediction == "sample")
        throw lpo::FileError(lpo::message("[convert] ", path, ": prediction_type is sample, which a single file cannot ",
                                          "say; keep the folder, or convert other parts with --component"));
      if (scheduler.get_or("rescale_betas_zero_snr", false))
        writer.add_owned("ztsnr", lpo::DType::F32, {}, std::vector<float>{1});
    }
    if (!prediction.empty())
      writer.set_metadata("modelspec.prediction_type", prediction == "v_prediction" ? "v" : prediction);
  }
  plan.weights.push_back({o.component.empty() ? "checkpoint" : o.component, o.to, std::move(writer)});
  return plan;
}

/// What is to be written, by the kind of the source. ValueError or FileError where that cannot work.
inline Plan make_plan(const Options& o) {
  const bool folder = lpo::directory_exists(o.from), to_file = o.to.ends_with(".safetensors");
  if (!folder && !lpo::file_exists(o.from))
    throw lpo::FileError(lpo::message("[convert] ", o.from, ": no such file or folder"));
  if (folder && !to_file)
    throw lpo::ValueError(lpo::message("[convert] ", o.from, " is a folder, so ", o.to,
                                       " must be the name of a single file, *.safetensors"));
  if (!folder && to_file)
    throw lpo::ValueError(
        lpo::message("[convert] ", o.from, " is a single file, so ", o.to, " must be a folder, not a file"));
  Plan plan = folder ? plan_single_file(o) : plan_folder(o);
  std::vector<std::string> targets;
  for (const auto& weights : plan.weights) targets.push_back(weights.path);
  for (const auto& [path, text] : plan.texts) targets.push_back(path);
  for (const std::string& path : targets)
    if (!o.overwrite && lpo::file_exists(path))
      throw lpo::FileError(lpo::message("[convert] ", path, " exists; give another target or --overwrite"));
  return plan;
}

/// Writes every file of the plan, each entirely or not at all, tensor by tensor. CancelledError if the callback says
/// so.
inline void execute(const Plan& plan, const lpo::ProgressCallback& progress = {}) {
  constexpr std::size_t megabyte = 1000 * 1000, release_every = 256 * megabyte;
  const std::size_t total = plan.data_bytes();
  lpo::ProgressReporter reporter("writing (MB)", 0, static_cast<lpo::index_t>(total / megabyte + 1), progress);
  std::size_t before = 0, released = 0;
  lpo::index_t reported = 0;
  for (const auto& weights : plan.weights) {
    if (!reporter.report(reported)) throw lpo::CancelledError("[convert] stopped before " + weights.path);
    lpo::make_directories(lpo::detail::directory_of(weights.path));
    weights.writer.write(weights.path, [&](const std::string&, std::size_t bytes, std::size_t) {
      const std::size_t done = before + bytes;
      if (done - released >= release_every) {
        plan.release_pages();
        released = done;
      }
      // Small tensors would draw the same line again and again.
      const auto step = static_cast<lpo::index_t>(done / megabyte + (done == total ? 1 : 0));
      if (step == reported) return true;
      reported = step;
      return reporter.report(step);
    });
    before += weights.writer.data_bytes();
  }
  for (const auto& [folder, vocabulary] : plan.tokenizers) lpo::write_clip_vocabulary(vocabulary, folder);
  for (const auto& [path, text] : plan.texts) {
    lpo::make_directories(lpo::detail::directory_of(path));
    lpo::write_text_file(path, text);
  }
}

}  // namespace conversion
