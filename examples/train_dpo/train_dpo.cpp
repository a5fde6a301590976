// SPDX-License-Identifier: MIT
// train_dpo: aligns a Stable Diffusion model with Diffusion-DPO, from pairs of pictures that people preferred.
#include <map>
#include <optional>
#include <string>

#include <CLI/CLI.hpp>

#include "../common/training_program.hpp"
#include "job.hpp"

namespace {

using train_dpo::Job, train_dpo::Options;

lpo::DpoTrainerOptions trainer_options(const Options& o) {
  using Rate = lpo::LearningRateKind;
  static const std::map<std::string, Rate> rates = {{"constant", Rate::constant},
                                                    {"constant_with_warmup", Rate::constant_with_warmup},
                                                    {"linear", Rate::linear},
                                                    {"cosine", Rate::cosine}};
  lpo::DpoTrainerOptions t;
  t.max_train_steps = o.max_train_steps;
  t.train_batch_size = o.train_batch_size * o.gradient_accumulation_steps;
  t.micro_batch_size = o.train_batch_size;
  t.beta_dpo = o.beta;
  t.proportion_empty_prompts = o.proportion_empty_prompts;
  t.learning_rate = o.learning_rate;
  t.lr_scheduler = rates.at(o.lr_scheduler);
  t.lr_warmup_steps = o.lr_warmup_steps;
  t.optimizer = {
      .beta1 = o.adam_beta1, .beta2 = o.adam_beta2, .epsilon = o.adam_epsilon, .weight_decay = o.adam_weight_decay};
  t.max_grad_norm = o.max_grad_norm;
  t.ema_decay = o.ema_decay;
  t.loss_scale = o.loss_scale;
  t.max_skipped_steps = o.max_skipped_steps;
  t.gradient_checkpointing = o.gradient_checkpointing;
  t.checkpointing_steps = o.checkpointing_steps;
  t.checkpoints_total_limit = o.checkpoints_total_limit;
  t.seed = o.seed;
  t.output_dir = o.output_dir;
  t.resume = o.resume;
  return t;
}

Job make_job(const Options& o, const examples::ModelSource& model, const examples::ModelFamily& family) {
  Job job;
  job.options = o;
  if (o.cache_dir.empty()) job.options.cache_dir = o.output_dir + "/cache";
  job.model = model;
  job.data = examples::open_data_set(o.train_data);
  if (!o.score_file.empty() && !job.data.has_pictures())
    throw lpo::ValueError("[train_dpo] --score_file: " + o.train_data + " is encoded already; filter while encoding");
  if (o.score_file.empty() && o.mpcf.strategy != 0 && o.mpcf.strategy != 2)
    throw lpo::ValueError("[train_dpo] --mpcf_strategy needs the scores of the pairs; give --score_file");
  const auto predicted =
      o.prediction_type.empty() ? std::nullopt : std::optional(lpo::parse_prediction_type(o.prediction_type));
  job.schedule = model.scheduler(lpo::SamplerKind::ddim, predicted);
  job.resolution = o.resolution > 0 ? o.resolution : model.resolution(family, predicted);
  const int multiple = family.vae.factor() << (family.unet.levels - 1);
  if (job.resolution % multiple != 0)
    throw lpo::ValueError(
        lpo::message("[train_dpo] --resolution is ", job.resolution, "; this model draws multiples of ", multiple));
  job.trainer = trainer_options(o);
  job.trainer.prediction_type = job.schedule.prediction_type;
  return job;
}

void program(const Options& o, const CLI::App& app, const std::string& command, const examples::Processes& processes) {
  const examples::ModelSource model(o.model, o.variant, o.tokenizer);
  if (!o.resume && !o.dry_run && !o.encode_only) examples::refuse_earlier_run("train_dpo", o.output_dir);
  examples::with_family(
      model.path(), [&](const examples::ModelFamily& family) { return model.differences(family); },
      [&]<const examples::ModelFamily & F>() {
        Job job = make_job(o, model, F);
        job.command = command;
        job.processes = processes;
        examples::with_storage(o.dtype, [&]<class T>() {
          if (o.dry_run) return train_dpo::print_plan<F, T>(job);
          if (processes.first()) job.settings = examples::keep_settings(app, o.output_dir);
          examples::run_within_memory([&] { train_dpo::align<F, T>(job); }, [&] { train_dpo::print_plan<F, T>(job); });
        });
      });
}

}  // namespace

int main(int argc, char** argv) {
  Options o;
  CLI::App app{
      "Align a Stable Diffusion model (SD1.5, SD2.1, SDXL or lpo's tiny world) with Diffusion-DPO, on pairs of "
      "pictures."};
  app.option_defaults()->always_capture_default();
  app.footer(examples::ranks_help);
  const auto add = [&](const char* name, auto& value, const char* text) {
    return app.add_option(examples::both_spellings(name), value, text);
  };
  const auto flag = [&](const char* name, bool& value, const char* text) {
    return app.add_flag(examples::both_spellings(name), value, text);
  };
  examples::add_config_option(app);
  examples::add_model_options(app, o);
  add("train_data_dir", o.train_data,
      "pairs: a folder with pairs.jsonl, a folder of *.tar shards, the cache of an earlier run (of train_lrm, too), or "
      "one such file")
      ->required();
  add("score_file", o.score_file,
      "CSV with different_flag, aesthetic_gap, clipscore_gap and vqascore_gap of every pair: filter by it");
  add("mpcf_strategy", o.mpcf.strategy, "1: aesthetic gap > 0, 2: > -0.5, 3: > -1; 0 keeps all")
      ->check(CLI::Range(0, 3));
  add("mpcf_tie_abs", o.mpcf.tie_abs, "compare the size of the gaps of ties; false is LPO's official code");
  add("mpcf_inclusive", o.mpcf.inclusive, "gaps may equal their limits, as LPO's paper prints it");
  add("resolution", o.resolution, "pictures are resized to this square; 0 takes the model's")
      ->check(CLI::NonNegativeNumber);
  add("cache_dir", o.cache_dir, "where encoded pictures are kept [OUTPUT_DIR/cache]");
  flag("encode_only", o.encode_only, "encode the pictures and stop");
  add("output_dir", o.output_dir, "where everything goes");
  flag("resume", o.resume, "go on from the newest checkpoint in output_dir, if there is one");
  flag("dry_run", o.dry_run, "print what the run would need, and stop");
  add("seed", o.seed, "seed of everything");
  add("threads", o.threads, "0 takes all")->check(CLI::NonNegativeNumber);
  add("dtype", o.dtype,
      "how weights and activations are kept in memory: float32, or what LPO_TRAIN_DTYPES adds when it is built");

  add("max_train_steps", o.max_train_steps, "optimizer steps")->check(CLI::PositiveNumber);
  add("train_batch_size", o.train_batch_size, "pairs of a forward and backward pass")->check(CLI::PositiveNumber);
  add("gradient_accumulation_steps", o.gradient_accumulation_steps, "passes of an optimizer step")
      ->check(CLI::PositiveNumber);
  flag("gradient_checkpointing", o.gradient_checkpointing,
       "compute activations again in backward: less memory, more time");
  app.add_option("--beta_dpo,--beta-dpo,--beta", o.beta, "strength of the preference against the reference")
      ->check(CLI::PositiveNumber);
  add("proportion_empty_prompts", o.proportion_empty_prompts, "share of pairs that are trained without their prompt")
      ->check(CLI::Range(0.0, 1.0));
  add("rank", o.rank, "of the LoRA")->check(CLI::PositiveNumber);
  add("lora_alpha", o.lora_alpha, "0 is the rank")->check(CLI::NonNegativeNumber);
  add("lora_targets", o.lora_targets,
      "projections with an adapter, by the ends of their names, for example attn2.to_k,attn2.to_v");
  flag("full_finetuning", o.full_finetuning,
       "train the whole UNet instead of a LoRA, as the paper; takes a second copy of it");
  add("learning_rate", o.learning_rate, "AdamW's")->check(CLI::PositiveNumber);
  add("lr_scheduler", o.lr_scheduler, "of the learning rate")
      ->check(CLI::IsMember({"constant", "constant_with_warmup", "linear", "cosine"}));
  add("lr_warmup_steps", o.lr_warmup_steps, "optimizer steps")->check(CLI::NonNegativeNumber);
  add("adam_beta1", o.adam_beta1, "AdamW's")->check(CLI::Range(0.0, 0.99999));
  add("adam_beta2", o.adam_beta2, "AdamW's")->check(CLI::Range(0.0, 0.9999999));
  add("adam_epsilon", o.adam_epsilon, "AdamW's")->check(CLI::PositiveNumber);
  add("adam_weight_decay", o.adam_weight_decay, "AdamW's")->check(CLI::NonNegativeNumber);
  add("max_grad_norm", o.max_grad_norm, "gradients are scaled down to this norm; 0 is off")
      ->check(CLI::NonNegativeNumber);
  add("loss_scale", o.loss_scale, "multiplies gradients on their way, for float16; a power of two")
      ->check(CLI::PositiveNumber);
  add("ema_decay", o.ema_decay, "above 0: average the trained weights, and draw and export with the averages")
      ->check(CLI::Range(0.0, 0.99999));
  add("max_skipped_steps", o.max_skipped_steps,
      "stop after so many steps in a row whose gradients are not finite; 0 is never")
      ->check(CLI::NonNegativeNumber);

  add("validation_prompt", o.validation_prompts, "what to draw now and then; may be repeated")->allow_extra_args(false);
  add("num_validation_images", o.validation_images, "of each, from seed, seed + 1, ...")->check(CLI::NonNegativeNumber);
  add("validation_steps", o.validation_steps, "draw every so many steps; 0 is at the beginning and the end only")
      ->check(CLI::NonNegativeNumber);
  add("num_inference_steps", o.num_inference_steps, "denoising steps of these pictures")->check(CLI::Range(1, 1000));
  add("guidance_scale", o.guidance_scale, "classifier-free guidance of these pictures; training has none");
  add("checkpointing_steps", o.checkpointing_steps, "a checkpoint every so many steps; 0 is none")
      ->check(CLI::NonNegativeNumber);
  add("checkpoints_total_limit", o.checkpoints_total_limit, "how many are kept; 0 is all")
      ->check(CLI::NonNegativeNumber);
  return examples::run_ranks("train_dpo", [&](const examples::Processes& processes) {
    CLI11_PARSE(app, argc, argv);
    program(o, app, examples::command_line("train_dpo", argc, argv), processes);
    return 0;
  });
}
