// SPDX-License-Identifier: MIT
// txt2img: prompts to pictures with a Stable Diffusion model folder.
#include <algorithm>
#include <cstdlib>
#include <string>

#include <CLI/CLI.hpp>

#include <lpo/diffusion/sampler.hpp>
#include <lpo/io/diffusers.hpp>
#include <lpo/io/json.hpp>

#include "../common/console.hpp"
#include "../common/options.hpp"
#include "plan.hpp"

namespace {

using txt2img::Job, txt2img::Options;

/// "file" or "file:strength".
txt2img::Lora parse_lora(const std::string& text) {
  const std::size_t colon = text.rfind(':');
  if (colon != std::string::npos && colon + 1 < text.size() && !lpo::file_exists(text)) {
    char* end = nullptr;
    const double scale = std::strtod(text.c_str() + colon + 1, &end);
    if (*end == '\0') return {text.substr(0, colon), scale};
  }
  return {text, 1.0};
}

/// Height or width: what was asked for, or what the model was trained on.
int picture_side(int asked, const lpo::JsonConfig& unet, const examples::ModelFamily& family, const char* name) {
  const int factor = family.vae.factor(), multiple = factor << (family.unet.levels - 1);
  const int side = asked > 0 ? asked : factor * unet.get_or("sample_size", 64);
  if (side % multiple != 0)
    throw lpo::ValueError(lpo::message("[txt2img] ", name, " is ", side, "; this model draws multiples of ", multiple));
  return side;
}

Job make_job(const Options& o, const examples::ModelFamily& family) {
  Job job;
  job.model = o.model;
  job.variant = o.variant;
  job.model_name = o.model.substr(o.model.find_last_of('/', o.model.find_last_not_of('/')) + 1);
  while (job.model_name.ends_with('/')) job.model_name.pop_back();
  job.family = family.name;
  job.negative_prompt = o.negative_prompt;
  if (!o.prompt.empty()) job.prompts.push_back(o.prompt);
  if (!o.prompt_file.empty()) {
    const auto captions = examples::read_captions(o.prompt_file);
    job.prompts.insert(job.prompts.end(), captions.begin(), captions.end());
  }
  if (job.prompts.empty()) throw lpo::ValueError("[txt2img] there is nothing to draw; give --prompt or --prompt_file");
  for (const std::string& lora : o.loras) job.loras.push_back(parse_lora(lora));
  const auto sampler = o.scheduler.empty() ? std::nullopt : std::optional(lpo::parse_sampler(o.scheduler));
  job.schedule = lpo::load_scheduler(o.model + "/scheduler", sampler);
  const auto unet = lpo::JsonConfig::from_file(o.model + "/unet/config.json");
  job.height = picture_side(o.height, unet, family, "height");
  job.width = picture_side(o.width, unet, family, "width");
  job.steps = o.steps;
  job.images_per_prompt = o.images_per_prompt;
  job.batch_size = o.batch_size;
  job.threads = o.threads;
  // As diffusers: up to 1 there is no guidance.
  job.guidance_scale = std::max(1.0, o.guidance_scale.value_or(family.default_guidance));
  job.guidance_rescale = o.guidance_rescale;
  job.eta = o.eta;
  job.torch_noise = o.rng == "torch";
  job.seed = o.seed;
  if (lpo::file_exists(o.model + "/model_index.json"))
    job.zeros_for_empty =
        lpo::JsonConfig::from_file(o.model + "/model_index.json").get_or("force_zeros_for_empty_prompt", true);
  return job;
}

void program(const Options& o) {
  const auto& pipeline = examples::match_family(o.model, txt2img::pipelines, examples::pipeline_differences);
  const Job job = make_job(o, *pipeline.family);
  lpo::Sampler(lpo::NoiseSchedule(job.schedule), job.schedule.sampler, job.steps,
               job.eta);  // refuses what it cannot do
  if (o.dry_run) return txt2img::print_plan(job, *pipeline.family, o.output_dir);
  txt2img::PictureWriter writer(job, o.output_dir);
  pipeline.generate(job, writer);
  const std::string grid = writer.write_grid();
  if (!grid.empty()) std::printf("%s\n", grid.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app{"Draw pictures of prompts with a Stable Diffusion model (SD1.5, SD2.1, SDXL or lpo's tiny world)."};
  app.option_defaults()->always_capture_default();
  const auto add = [&](const char* name, auto& value, const char* text) {
    return app.add_option(examples::both_spellings(name), value, text);
  };
  app.set_config("--config", "", "TOML file of these options; the command line wins");
  app.allow_config_extras(CLI::config_extras_mode::error);
  add("pretrained_model_name_or_path", o.model, "model folder as diffusers lays it out")->required();
  add("variant", o.variant, "weights ….VARIANT.safetensors, for example fp16");
  add("prompt", o.prompt, "what to draw");
  add("prompt_file", o.prompt_file, "JSON list of prompts, or of objects with a \"caption\"");
  add("negative_prompt", o.negative_prompt, "what to stay away from");
  add("num_inference_steps", o.steps, "denoising steps")->check(CLI::Range(1, 1000));
  add("guidance_scale", o.guidance_scale, "classifier-free guidance; up to 1 is none [7.5; SDXL 5]");
  add("guidance_rescale", o.guidance_rescale, "for v-prediction with zero terminal SNR")->check(CLI::Range(0.0, 1.0));
  add("height", o.height, "pixels; 0 takes the model's")->check(CLI::NonNegativeNumber);
  add("width", o.width, "pixels; 0 takes the model's")->check(CLI::NonNegativeNumber);
  add("num_images_per_prompt", o.images_per_prompt, "pictures of each prompt, from seed, seed + 1, ...")
      ->check(CLI::PositiveNumber);
  add("batch_size", o.batch_size, "pictures at once; changes memory and speed, not pictures")
      ->check(CLI::PositiveNumber);
  add("seed", o.seed, "seed of the first picture of each prompt");
  add("scheduler", o.scheduler, "ddim, ddpm, euler, euler_a, dpm++_2m, dpm++_2m_karras or pndm [the model's]");
  add("eta", o.eta, "DDIM: 0 is deterministic, 1 is DDPM")->check(CLI::Range(0.0, 1.0));
  add("lora", o.loras, "LoRA FILE or FILE:STRENGTH; may be repeated")->allow_extra_args(false);
  add("rng", o.rng, "noise: torch (diffusers' picture for a seed) or philox")
      ->check(CLI::IsMember({"torch", "philox"}));
  add("dtype", o.dtype, "how weights are kept in memory; only float32 is compiled in, 16-bit files are widened")
      ->check(CLI::IsMember({"float32"}));
  add("threads", o.threads, "0 takes all")->check(CLI::NonNegativeNumber);
  add("output_dir", o.output_dir, "where pictures and metadata.jsonl go");
  app.add_flag(examples::both_spellings("dry_run"), o.dry_run, "print the plan and stop");
  CLI11_PARSE(app, argc, argv);
  return examples::run("txt2img", [&] { program(o); });
}
