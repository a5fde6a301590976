// SPDX-License-Identifier: MIT
// txt2img: prompts to pictures with a Stable Diffusion model, a diffusers folder or a single file.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <string>

#include <CLI/CLI.hpp>

#include <lpo/diffusion/sampler.hpp>
#include <lpo/io/diffusers.hpp>
#include <lpo/io/json.hpp>

#include "../common/config_file.hpp"
#include "../common/console.hpp"
#include "../common/option_list.hpp"
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
int picture_side(int asked, int usual, const examples::ModelFamily& family, const char* name) {
  const int multiple = family.vae.factor() << (family.unet.levels - 1);
  const int side = asked > 0 ? asked : usual;
  if (side % multiple != 0)
    throw lpo::ValueError(lpo::message("[txt2img] ", name, " is ", side, "; this model draws multiples of ", multiple));
  return side;
}

Job make_job(const Options& o, const examples::ModelSource& model, const examples::ModelFamily& family) {
  Job job;
  job.model = model;
  job.dtype = o.dtype;
  job.negative_prompt = o.negative_prompt;
  if (!o.prompt.empty()) job.prompts.push_back(o.prompt);
  if (!o.prompt_file.empty()) {
    const auto captions = examples::read_captions(o.prompt_file);
    job.prompts.insert(job.prompts.end(), captions.begin(), captions.end());
  }
  if (job.prompts.empty()) throw lpo::ValueError("[txt2img] there is nothing to draw; give --prompt or --prompt_file");
  for (const std::string& lora : o.loras) job.loras.push_back(parse_lora(lora));
  const auto sampler = o.scheduler.empty() ? std::nullopt : std::optional(lpo::parse_sampler(o.scheduler));
  const auto predicted =
      o.prediction_type.empty() ? std::nullopt : std::optional(lpo::parse_prediction_type(o.prediction_type));
  job.schedule = model.scheduler(sampler, predicted);
  const int usual = model.resolution(family, predicted);
  job.height = picture_side(o.height, usual, family, "height");
  job.width = picture_side(o.width, usual, family, "width");
  job.steps = o.steps;
  job.images_per_prompt = o.images_per_prompt;
  job.batch_size = o.batch_size;
  job.threads = o.threads;
  job.device = o.device;
  // As diffusers: up to 1 there is no guidance.
  job.guidance_scale = std::max(1.0, o.guidance_scale.value_or(family.default_guidance));
  job.guidance_rescale = o.guidance_rescale;
  job.eta = o.eta;
  job.torch_noise = o.rng == "torch";
  job.seed = o.seed;
  return job;
}

template <const examples::ModelFamily& F, class T>
void draw(const Options& o, const examples::ModelSource& model) {
  const Job job = make_job(o, model, F);
  lpo::Sampler(lpo::NoiseSchedule(job.schedule), job.schedule.sampler, job.steps,
               job.eta);  // refuses what it cannot do
  const auto plan = [&] {
    txt2img::print_plan(job, F, sizeof(T), sizeof(examples::VaeStorage<F, T>), o.output_dir);
  };
  if (o.dry_run) return plan();
  txt2img::PictureWriter writer(job, o.output_dir);
  examples::run_within_memory([&] { txt2img::generate<F, T>(job, writer); }, plan);
  const std::string grid = writer.write_grid();
  if (!grid.empty()) std::printf("%s\n", grid.c_str());
}

void program(const Options& o) {
  const examples::ModelSource model(o.model, o.variant, o.tokenizer);
  if (o.prediction_type.empty() && model.guesses_prediction_type())
    std::fprintf(stderr,
                 "note: %s does not say what its UNet predicts; taking v_prediction, as 2.1 at 768 pixels does; "
                 "the 512-base models need --prediction_type epsilon\n",
                 model.path().c_str());
  examples::with_family(
      model.path(), [&](const examples::ModelFamily& family) { return model.differences(family); },
      [&]<const examples::ModelFamily & F>() {
        examples::with_storage(o.dtype, [&]<class T>() { draw<F, T>(o, model); });
      });
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app{"Draw pictures of prompts with a Stable Diffusion model (SD1.5, SD2.1, SDXL or lpo's tiny world)."};
  app.option_defaults()->always_capture_default();
  const examples::OptionList add{app};
  examples::add_config_option(app);
  examples::add_version_option(app, "txt2img");
  add("pretrained_model_name_or_path", o.model, "model: a diffusers folder, or a single .safetensors or .ckpt file")
      ->required();
  add("variant", o.variant, "weights ….VARIANT.safetensors, for example fp16");
  add("tokenizer", o.tokenizer,
      "for single files, which have none: a pipeline's or tokenizer's folder, tokenizer.json, or "
      "bpe_simple_vocab_16e6.txt.gz");
  add("prompt", o.prompt, "what to draw");
  add("prompt_file", o.prompt_file, "JSON list of prompts or of objects with a \"caption\", or plain text, a prompt a line");
  add("negative_prompt", o.negative_prompt, "what to stay away from");
  add("num_inference_steps", o.steps, "denoising steps")->check(CLI::Range(1, 1000));
  add("guidance_scale", o.guidance_scale, "classifier-free guidance; up to 1 is none [7.5; SDXL 5]")
      ->check(examples::not_negative);
  add("guidance_rescale", o.guidance_rescale, "for v-prediction with zero terminal SNR")->check(CLI::Range(0.0, 1.0));
  add("height", o.height, "pixels; 0 takes the model's")->check(examples::not_negative);
  add("width", o.width, "pixels; 0 takes the model's")->check(examples::not_negative);
  add("num_images_per_prompt", o.images_per_prompt, "pictures of each prompt, from seed, seed + 1, ...")
      ->check(examples::positive);
  add("batch_size", o.batch_size, "pictures at once; changes memory and speed, not pictures")
      ->check(examples::positive);
  add("seed", o.seed, "seed of the first picture of each prompt");
  add("scheduler", o.scheduler, "ddim, ddpm, euler, euler_a, dpm++_2m, dpm++_2m_karras or pndm [the model's]");
  add("prediction_type", o.prediction_type, "epsilon or v_prediction, where the model does not say [the model's]")
      ->check(CLI::IsMember({"epsilon", "v_prediction"}));
  add("eta", o.eta, "DDIM: 0 is deterministic, 1 is DDPM")->check(CLI::Range(0.0, 1.0));
  add("lora", o.loras, "LoRA FILE or FILE:STRENGTH; may be repeated")->allow_extra_args(false);
  add("rng", o.rng, "noise: torch (diffusers' picture for a seed) or philox")
      ->check(CLI::IsMember({"torch", "philox"}));
  add("dtype", o.dtype, "how weights and activations are kept in memory; arithmetic is float32")
      ->check(CLI::IsMember({"float32", "bfloat16", "float16"}));
  add("threads", o.threads, "0 takes all")->check(examples::not_negative);
  examples::add_device_options(add, o.device);
  add("output_dir", o.output_dir, "where pictures, metadata.jsonl and grid.png, of the first 100, go");
  add.flag("dry_run", o.dry_run, "print the plan and stop");
  examples::expect_finite_numbers(app);
  CLI11_PARSE(app, argc, argv);
  return examples::run("txt2img", [&] { program(o); });
}
