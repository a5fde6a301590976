// SPDX-License-Identifier: MIT
// score: what a latent reward model thinks of pictures or latents under prompts, at any timestep.
#include <string>
#include <utility>
#include <vector>

#include <CLI/CLI.hpp>

#include <lpo/io/checkpoint.hpp>
#include <lpo/io/npy.hpp>
#include <lpo/io/png.hpp>

#if __has_include(<jpeglib.h>)
#include <lpo/io/jpeg.hpp>
#endif

#include "../common/config_file.hpp"
#include "../common/console.hpp"
#include "../common/option_list.hpp"
#include "../common/reward_features.hpp"
#include "results.hpp"

namespace {

using score::Input, score::Job;

/// Latents [channels, h, w] or [n, channels, h, w] as inputs.
void add_latents(std::vector<Input>& inputs, const std::string& name, const std::vector<lpo::index_t>& shape,
                 const std::vector<float>& values) {
  if (shape.size() != 3 && shape.size() != 4)
    throw lpo::FileError("[score] " + name + ": has shape " + lpo::shape_text(shape) +
                         ", expected latents [channels, h, w] or [n, channels, h, w]");
  const bool batch = shape.size() == 4;
  const std::size_t rows = batch ? static_cast<std::size_t>(shape[0]) : 1, size = rows == 0 ? 0 : values.size() / rows;
  for (std::size_t i = 0; i < rows; ++i) {
    Input input;
    input.name = batch ? name + "[" + std::to_string(i) + "]" : name;
    input.latent.assign(values.begin() + static_cast<std::ptrdiff_t>(i * size),
                        values.begin() + static_cast<std::ptrdiff_t>((i + 1) * size));
    input.height = static_cast<int>(shape[shape.size() - 2]);
    input.width = static_cast<int>(shape.back());
    if (input.latent.empty()) throw lpo::FileError("[score] " + input.name + ": is empty");
    inputs.push_back(std::move(input));
  }
}

/// A file's kind is told by how it begins or, for safetensors, by its name.
void add_file(std::vector<Input>& inputs, const std::string& path) {
  if (path.ends_with(".safetensors")) {
    const auto file = lpo::open_tensor_file(path);
    for (const std::string& key : file.keys())
      add_latents(inputs, path + ":" + key, file.info(key).shape, file.read_vector<float>(key));
    return;
  }
  const lpo::MappedFile file(path);
  const std::string_view bytes = file.text();
  Input input;
  input.name = path;
  if (bytes.starts_with("\x93NUMPY")) {
    const auto array = lpo::parse_npy<float>(bytes, path);
    return add_latents(inputs, path, array.shape, array.values);
  }
  if (bytes.starts_with("\x89PNG")) {
    input.image = lpo::decode_png(bytes, path).image;
  } else if (bytes.starts_with("\xff\xd8")) {
#if __has_include(<jpeglib.h>)
    input.image = lpo::decode_jpeg(bytes, path);
#else
    throw lpo::FileError("[score] " + path + ": is a JPEG file, and this program was compiled without libjpeg");
#endif
  } else {
    throw lpo::FileError("[score] " + path + ": is no PNG, JPEG, .npy or .safetensors file");
  }
  inputs.push_back(std::move(input));
}

}  // namespace

int main(int argc, char** argv) {
  Job job;
  std::vector<std::string> files;
  std::string base, tokenizer, prompt_file, format = "table", plot, rng = "torch";
  std::vector<int> timesteps = {1};
  int resolution = 0;
  CLI::App app{"Score pictures or latents with a latent reward model."};
  app.option_defaults()->always_capture_default();
  const examples::OptionList add{app};
  examples::add_config_option(app);
  examples::add_version_option(app, "score");
  app.add_option("inputs", files, "PNG and JPEG pictures; latents [n, channels, h, w] in .npy and .safetensors files")
      ->required();
  add("lrm", job.reward_model, "reward model folder: unet/, text_encoder/, state_dict.pt or head.safetensors")
      ->required();
  add("pretrained_model_name_or_path", base,
      "base model, a diffusers folder or a single file: its vae, tokenizers and scheduler are used")
      ->required();
  add("tokenizer", tokenizer,
      "for single files, which have none: a pipeline's or tokenizer's folder, tokenizer.json, or "
      "bpe_simple_vocab_16e6.txt.gz");
  add("prompt", job.prompts, "what the pictures should show; may be repeated")->allow_extra_args(false);
  add("prompt_file", prompt_file, "JSON list of prompts or of objects with a \"caption\", or plain text, a prompt a line");
  add("timesteps", timesteps, "noise levels, for example 1,201,401")->allow_extra_args(false)->delimiter(',');
  add("seed", job.seed, "seed of the noise, which is the same for every input and timestep");
  add("noises", job.noises, "scores are means over so many noises, of seeds seed, seed + 1, ...")
      ->check(examples::positive);
  add("rng", rng, "noise: torch or philox")->check(CLI::IsMember({"torch", "philox"}));
  add.flag("noisy_latents", job.noisy_latents, "latents are noisy already: nothing is added");
  examples::add_reward_feature_options(add, job.features);
  add("resolution", resolution, "pictures are resized to this square; 0 takes the base model's")
      ->check(examples::not_negative);
  add("batch_size", job.batch_size, "latents at once")->check(examples::positive);
  add("threads", job.threads, "0 takes all")->check(examples::not_negative);
  examples::add_device_options(add, job.device);
  add("format", format, "what is printed")->check(CLI::IsMember({"table", "csv", "json"}));
  add("plot", plot, "also write a plot of score against timestep to this SVG file");
  examples::expect_finite_numbers(app);
  CLI11_PARSE(app, argc, argv);
  return examples::run("score", [&] {
    job.base_model = examples::ModelSource(base, "", tokenizer);
    if (!prompt_file.empty()) {
      const auto captions = examples::read_captions(prompt_file);
      job.prompts.insert(job.prompts.end(), captions.begin(), captions.end());
    }
    if (job.prompts.empty()) throw lpo::ValueError("[score] there is no prompt; give --prompt or --prompt_file");
    if (!plot.empty() && !plot.ends_with(".svg"))
      throw lpo::ValueError("[score] --plot " + plot + ": plots are SVG files; end the name in .svg");
    job.torch_noise = rng == "torch";
    job.timesteps = timesteps;
    for (const std::string& file : files) add_file(job.inputs, file);
    if (job.inputs.empty()) throw lpo::ValueError("[score] the files hold no latents");
    examples::settle_reward_features(app, "score", job.reward_model, job.features, true);
    score::Scores scores;
    examples::with_family(
        job.reward_model, [&](const auto& family) { return examples::folder_differences(job.reward_model, family); },
        [&]<const examples::ModelFamily & F>() {
          job.resolution = resolution > 0 ? resolution : job.base_model.resolution(F);
          if (job.resolution % F.vae.factor() != 0)
            throw lpo::ValueError(
                lpo::message("[score] resolution is ", job.resolution, "; expected a multiple of ", F.vae.factor()));
          scores = score::score_inputs<F>(job);
        });
    const std::string text = format == "csv"    ? score::csv_lines(job, scores)
                             : format == "json" ? score::json_text(job, scores)
                                                : score::table_text(job, scores);
    std::fputs(text.c_str(), stdout);
    if (!plot.empty()) lpo::write_text_file(plot, score::plot_svg(job, scores));
  });
}
