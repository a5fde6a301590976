// SPDX-License-Identifier: MIT
// Trains the tiny world's base model from nothing: an autoencoder, then a text encoder and a UNet together.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include <lpo/train/latent_pairs.hpp>
#include <lpo/train/metrics.hpp>
#include <lpo/train/training_checkpoint.hpp>

#include "../common/console.hpp"
#include "../common/option_list.hpp"
#include "tiny_files.hpp"
#include "tiny_pipeline.hpp"
#include "world/caption.hpp"
#include "world/render.hpp"
#include "world/scorer.hpp"

using lpo::index_t;
namespace tw = tinyworld;

namespace {

struct Options {
  std::string output_dir = "tiny-model";
  std::string vae;  ///< a model folder whose autoencoder is taken over; empty = train one
  std::uint64_t seed = 1;
  int threads = 0;
  index_t vae_steps = 1500, unet_steps = 4500, batch = 64, images = 40000;
  double vae_rate = 2e-3, unet_rate = 1e-3, kl = 1e-4, caption_dropout = 0.1, ema = 0.999;
  index_t checkpointing_steps = 250;
  bool resume = false;
};

/// Warm-up, then half a cosine from `peak` to `floor` * `peak`.
double cosine_rate(double peak, double floor, index_t step, index_t warmup, index_t total) {
  const lpo::LearningRateSchedule cosine{lpo::LearningRateKind::cosine, 1.0, warmup, total, {}};
  const double share = step < warmup ? static_cast<double>(step + 1) / static_cast<double>(warmup) : cosine(step);
  return peak * (step < warmup ? share : floor + (1 - floor) * share);
}

/// Renders training pictures [first, first + count), all threads.
std::vector<tw::Image> render_pictures(lpo::Context<tw::Device>& context, std::uint64_t seed, std::uint64_t first, index_t count,
                                       std::vector<std::string>* captions = nullptr, tw::Split split = tw::Split::train) {
  std::vector<tw::Image> pictures(static_cast<std::size_t>(count));
  if (captions != nullptr) captions->resize(static_cast<std::size_t>(count));
  context.executor().parallel_for(count, 4, [&](index_t begin, index_t end) {
    for (index_t i = begin; i < end; ++i) {
      const auto sample = tw::sample_captioned(seed, first + static_cast<std::uint64_t>(i), split);
      pictures[static_cast<std::size_t>(i)] = tw::render(sample.scene);
      if (captions != nullptr) (*captions)[static_cast<std::size_t>(i)] = sample.caption;
    }
  });
  return pictures;
}

lpo::Tensor<float, 4> normals(const lpo::Extents<4>& extents, lpo::RandomKey key) {
  lpo::Tensor<float, 4> tensor(extents);
  lpo::philox_fill_normal(key, tensor.data(), static_cast<std::size_t>(tensor.size()));
  return tensor;
}

enum Operation : std::uint32_t { posterior = 0x4001, diffusion_noise, timesteps, dropout, order, encode };

/// |a - b| of horizontal and vertical neighbours: keeps edges sharp.
template <class V>
auto edge_loss(const V& difference) {
  const index_t h = difference.extent(1), w = difference.extent(2);
  const lpo::Var rows = abs(difference.slice(1, 1, h) - difference.slice(1, 0, h - 1));
  const lpo::Var columns = abs(difference.slice(2, 1, w) - difference.slice(2, 0, w - 1));
  return lpo::Var<float, 1, tw::Device>(lpo::mean(rows) + lpo::mean(columns));
}

double vae_step(lpo::Tape<tw::Device>& tape, tw::Vae& vae, tw::Store& store, const lpo::Tensor<float, 4>& pixels, double kl,
                lpo::RandomKey key) {
  store.reset_gradients();
  const auto images = lpo::constant(tape, pixels);
  const auto latent = vae.encode(images);
  const auto noise = normals(latent.mean.extents(), key);
  const lpo::Var<float, 4, tw::Device> z = latent.mean + exp(0.5 * latent.log_variance) * lpo::constant(tape, noise);
  const lpo::Var<float, 4, tw::Device> difference = vae.decode(z) - images;
  const lpo::Var<float, 4, tw::Device> both = abs(difference) + square(difference);
  const lpo::Var<float, 4, tw::Device> divergence = 0.5 * (square(latent.mean) + exp(latent.log_variance) - 1.0 - latent.log_variance);
  const lpo::Var<float, 1, tw::Device> loss = lpo::mean(both) + 0.5 * edge_loss(difference) + kl * lpo::mean(divergence);
  const double value = lpo::item(loss);
  lpo::backward(loss);
  store.finish_gradients();
  tape.clear();
  return value;
}

/// Runs `step(i) -> loss` from the newest checkpoint to `total`, with progress, a log and checkpoints.
template <class Step>
void train_stage(const std::string& stage, const std::string& folder, index_t total, const Options& o, lpo::TrainingState& state,
                 const std::function<void()>& after_resume, Step&& step) {
  const lpo::CheckpointFolder checkpoints(folder, 1);
  if (!o.resume) checkpoints.clear();
  if (o.resume && checkpoints.resume(state)) after_resume();
  lpo::make_directories(folder);
  lpo::MetricsLog log(folder + "/metrics.jsonl", state.step);
  examples::ProgressBar bar;
  lpo::ProgressReporter reporter(stage, state.step, total, std::ref(bar));
  double smoothed = 0;
  while (state.step < total) {
    const double loss = step(state.step);
    smoothed = smoothed == 0 ? loss : 0.98 * smoothed + 0.02 * loss;
    if (state.step % 10 == 0) log.write(state.step, {{"loss", loss}, {"smoothed", smoothed}});
    ++state.step;
    const bool go_on = reporter.report(state.step, {{"loss", smoothed}});
    if (!go_on || state.step % o.checkpointing_steps == 0 || state.step == total) checkpoints.save(state);
    if (!go_on) throw lpo::CancelledError("continue with --resume");
  }
}

void train_vae(lpo::Context<tw::Device>& context, tw::Vae& vae, tw::Store& store, const Options& o) {
  lpo::Tape<tw::Device> tape(context);
  lpo::AdamW<float, tw::Device> optimizer(context, {{store.trainable_values(), store.trainable_gradients(), store.trainable_size()}},
                                          {.weight_decay = 0});
  const auto count = static_cast<std::size_t>(store.trainable_size());
  lpo::TrainingState state;
  state.settings["stage"] = "vae";
  state.settings["seed"] = o.seed;
  state.settings["steps"] = o.vae_steps;
  state.buffers = {{"weights", {store.trainable_values(), count}},
                   {"first_moment", {optimizer.first_moment().data, count}},
                   {"second_moment", {optimizer.second_moment().data, count}}};
  train_stage("autoencoder", o.output_dir + "/training/vae", o.vae_steps, o, state, [&] { optimizer.set_step_count(state.step); },
              [&](index_t i) {
                const auto pixels = tw::to_tensor(render_pictures(context, o.seed, static_cast<std::uint64_t>(i * o.batch), o.batch));
                const double loss = vae_step(tape, vae, store, pixels, o.kl, {o.seed, posterior, static_cast<std::uint32_t>(i)});
                const double norm = lpo::global_gradient_norm(context, optimizer.spans());
                optimizer.step(cosine_rate(o.vae_rate, 0.0, i, 50, o.vae_steps), lpo::clip_scale(norm, 1.0));
                return loss;
              });
}

/// Posterior mean and deviation of training pictures, unscaled, and their captions as token ids.
struct Encoded {
  lpo::Tensor<float, 4> mean, deviation;
  std::vector<std::int32_t> ids;
};

Encoded encode_pictures(lpo::Context<tw::Device>& context, tw::Vae& vae, const lpo::ClipTokenizer& tokenizer, const Options& o) {
  lpo::Tape<tw::Device> tape(context);
  const auto guard = tape.inference();
  Encoded encoded;
  encoded.mean = lpo::Tensor<float, 4>(lpo::Extents<4>{o.images, tw::latent_size, tw::latent_size, tw::latent_channels});
  encoded.deviation = lpo::Tensor<float, 4>(encoded.mean.extents());
  examples::ProgressBar bar;
  lpo::ProgressReporter reporter("encoding", 0, o.images, std::ref(bar));
  for (index_t begin = 0; begin < o.images; begin += o.batch) {
    const index_t end = std::min(o.images, begin + o.batch);
    std::vector<std::string> captions;
    const auto pixels = tw::to_tensor(render_pictures(context, o.seed, static_cast<std::uint64_t>(begin), end - begin, &captions));
    const auto latent = vae.encode(lpo::constant(tape, pixels));
    lpo::evaluate(&context, encoded.mean.view().slice(0, begin, end), latent.mean.view());
    lpo::evaluate(&context, encoded.deviation.view().slice(0, begin, end), exp(0.5 * latent.log_variance.view()));
    for (const auto& caption : captions) {
      const auto ids = tokenizer.encode(caption);
      encoded.ids.insert(encoded.ids.end(), ids.begin(), ids.end());
    }
    tape.clear();
    if (!reporter.report(end)) throw lpo::CancelledError("continue with --resume");
  }
  double sum = 0, squares = 0;
  for (const float value : encoded.mean.span()) {
    sum += static_cast<double>(value);
    squares += static_cast<double>(value) * static_cast<double>(value);
  }
  for (const float value : encoded.deviation.span()) squares += static_cast<double>(value) * static_cast<double>(value);
  const double n = static_cast<double>(encoded.mean.size());
  vae.scaling_factor = static_cast<float>(1.0 / std::sqrt(squares / n - sum / n * (sum / n)));
  return encoded;
}

void train_denoiser(lpo::Context<tw::Device>& context, tw::UNet& unet, tw::Text& text, tw::Store& store, const Encoded& data,
                    const std::vector<std::int32_t>& empty_ids, float scaling_factor, const Options& o) {
  lpo::Tape<tw::Device> tape(context);
  const lpo::NoiseSchedule schedule(tw::scheduler_config());
  const std::vector<lpo::ParameterSpan<float>> spans{{store.trainable_values(), store.trainable_gradients(), store.trainable_size()}};
  lpo::AdamW<float, tw::Device> optimizer(context, spans, {.weight_decay = 0.01});
  lpo::Ema<float, tw::Device> average(context, spans, o.ema, true);
  const auto count = static_cast<std::size_t>(store.trainable_size());
  lpo::TrainingState state;
  state.settings["stage"] = "unet";
  state.settings["seed"] = o.seed;
  state.settings["steps"] = o.unet_steps;
  state.settings["images"] = o.images;
  state.buffers = {{"weights", {store.trainable_values(), count}},
                   {"first_moment", {optimizer.first_moment().data, count}},
                   {"second_moment", {optimizer.second_moment().data, count}},
                   {"average", {average.average().data, count}}};
  const auto resumed = [&] {
    optimizer.set_step_count(state.step);
    average.set_updates(state.step);
  };
  const index_t size = tw::latent_extents.size(), tokens = tw::text_config.positions;
  lpo::BatchOrder batches(o.seed, order, o.images, o.batch);
  train_stage("denoiser", o.output_dir + "/training/unet", o.unet_steps, o, state, resumed, [&](index_t i) {
    const auto counter = static_cast<std::uint32_t>(i);
    const auto rows = batches.at(i);
    const lpo::Extents<4> extents{o.batch, tw::latent_size, tw::latent_size, tw::latent_channels};
    auto clean = normals(extents, {o.seed, posterior, counter + 0x800000u});
    const auto noise = normals(extents, {o.seed, diffusion_noise, counter});
    std::vector<std::int32_t> ids;
    std::vector<int> when;
    std::vector<float> times;
    lpo::RandomStream drop(o.seed, dropout, counter), draw(o.seed, timesteps, counter);
    for (std::size_t b = 0; b < rows.size(); ++b) {
      float* row = clean.data() + static_cast<index_t>(b) * size;
      for (index_t k = 0; k < size; ++k) {
        const index_t at = rows[b] * size + k;
        row[k] = (data.mean.data()[at] + data.deviation.data()[at] * row[k]) * scaling_factor;
      }
      const auto* own = data.ids.data() + rows[b] * tokens;
      const auto* used = drop.bernoulli(static_cast<float>(o.caption_dropout)) ? empty_ids.data() : own;
      ids.insert(ids.end(), used, used + tokens);
      when.push_back(static_cast<int>(draw.uniform_int(static_cast<std::uint32_t>(schedule.train_timesteps()))));
      times.push_back(static_cast<float>(when.back()));
    }
    lpo::add_noise<float, tw::Device>(context, schedule, when, std::as_const(clean).view(), noise.view(), clean.view());
    store.reset_gradients();
    const auto states = text(tape, ids, o.batch);
    const lpo::Var<float, 4, tw::Device> predicted = unet(lpo::constant(tape, clean), {times, states.last_hidden_state, {}, {}});
    const lpo::Var<float, 4, tw::Device> error = square(predicted - lpo::constant(tape, noise));
    const auto loss = lpo::mean(error);
    const double value = lpo::item(loss);
    lpo::backward(loss);
    store.finish_gradients();
    tape.clear();
    const double norm = lpo::global_gradient_norm(context, optimizer.spans());
    optimizer.step(cosine_rate(o.unet_rate, 0.02, i, 100, o.unet_steps), lpo::clip_scale(norm, 1.0));
    average.update();
    return value;
  });
  average.swap();
}

/// Attribute accuracy and score of pictures made for captions that were never trained on.
void report_quality(lpo::Context<tw::Device>& context, tw::Vae& vae, tw::UNet& unet, tw::Text& text, const lpo::ClipTokenizer& tokenizer,
                    const Options& o, nlohmann::ordered_json& record) {
  lpo::Tape<tw::Device> tape(context);
  const lpo::NoiseSchedule schedule(tw::scheduler_config());
  tw::TextEncoder encoder(text, tokenizer.encode(""));
  std::vector<std::string> captions;
  render_pictures(context, o.seed, 0, 256, &captions, tw::Split::validation);
  const auto latents = tw::generate_latents(context, tape, unet, encoder, tokenizer, schedule, captions, {});
  const auto pictures = tw::decode_latents(tape, vae, latents.view());
  double accuracy = 0, score = 0, aesthetic = 0;
  for (std::size_t i = 0; i < pictures.size(); ++i) {
    const auto m = tw::score_image(pictures[i], captions[i]);
    accuracy += static_cast<double>(m.accuracy) / static_cast<double>(pictures.size());
    score += static_cast<double>(m.score) / static_cast<double>(pictures.size());
    aesthetic += static_cast<double>(m.aesthetic) / static_cast<double>(pictures.size());
  }
  record["validation"] = {{"captions", captions.size()}, {"attribute_accuracy", accuracy}, {"score", score}, {"aesthetic", aesthetic}};
  std::printf("validation: attribute accuracy %.3f, aesthetic %.2f of 10, score %.3f\n", accuracy, aesthetic, score);
}

/// One panel of the loss curve: a log of `metrics.jsonl` as an SVG polyline over a logarithmic loss axis.
std::string curve_panel(const std::string& title, const std::string& log, double left) {
  const auto curve = lpo::read_metric(log, "smoothed");
  if (curve.step.size() < 2) return "";
  const double low = *std::min_element(curve.value.begin(), curve.value.end());
  const double high = *std::max_element(curve.value.begin(), curve.value.end());
  constexpr double width = 340, height = 200, top = 40;
  const double last = curve.step.back(), range = std::max(1e-9, std::log(high / low));
  std::string svg, line;
  char part[160];
  for (std::size_t i = 0; i < curve.step.size(); ++i) {
    std::snprintf(part, sizeof part, "%.1f,%.1f ", left + width * curve.step[i] / last, top + height * (1 - std::log(curve.value[i] / low) / range));
    line += part;
  }
  std::snprintf(part, sizeof part, "<rect x='%.0f' y='%.0f' width='%.0f' height='%.0f' fill='none' stroke='#bbb'/>", left, top, width, height);
  svg += part;
  svg += "<polyline points='" + line + "' fill='none' stroke='#2563eb' stroke-width='1.5'/>";
  std::snprintf(part, sizeof part, "<text x='%.0f' y='30'>%s</text>", left, title.c_str());
  svg += part;
  for (const auto& [value, y] : {std::pair{high, top + 4}, std::pair{low, top + height}}) {
    std::snprintf(part, sizeof part, "<text x='%.0f' y='%.0f' text-anchor='end'>%.3g</text>", left - 6, y, value);
    svg += part;
  }
  std::snprintf(part, sizeof part, "<text x='%.0f' y='%.0f' text-anchor='end'>step %.0f</text>", left + width, top + height + 18, last);
  svg += part;
  return svg;
}

/// Both curves side by side, or the denoiser's alone where the autoencoder was taken over.
void write_loss_curve(const std::string& folder, bool with_vae) {
  std::string svg = "<svg xmlns='http://www.w3.org/2000/svg' width='" + std::string(with_vae ? "860" : "430") +
                    "' height='280' font-family='sans-serif' font-size='13'><rect width='860' height='280' fill='white'/>";
  if (with_vae) svg += curve_panel("autoencoder: loss (log scale)", folder + "/training/vae/metrics.jsonl", 490);
  svg += curve_panel("denoiser: loss (log scale)", folder + "/training/unet/metrics.jsonl", 60) + "</svg>\n";
  lpo::write_text_file(folder + "/loss_curve.svg", svg);
}

void program(int argc, char** argv) {
  Options o;
  CLI::App app{"Train the tiny world's base model: AutoencoderKL, CLIP text encoder and UNet, written as a diffusers folder."};
  examples::add_version_option(app, "train_base");
  app.add_option("--output_dir,--output-dir", o.output_dir, "where the model is written")->capture_default_str();
  app.add_option("--vae", o.vae, "model folder whose autoencoder is taken over instead of training one");
  app.add_option("--seed", o.seed, "seed of weights, pictures and noise")->capture_default_str()->check(examples::seed_range);
  app.add_option("--threads", o.threads, "threads; 0 takes all")->capture_default_str()->check(examples::not_negative);
  app.add_option("--vae_steps,--vae-steps", o.vae_steps, "autoencoder steps")->capture_default_str();
  app.add_option("--max_train_steps,--max-train-steps", o.unet_steps, "denoiser steps")->capture_default_str();
  app.add_option("--train_batch_size,--train-batch-size", o.batch, "pictures per step")->capture_default_str()->check(examples::positive);
  app.add_option("--images", o.images, "pictures that the denoiser sees")->capture_default_str()->check(examples::positive);
  app.add_option("--checkpointing_steps,--checkpointing-steps", o.checkpointing_steps, "save every so many steps")
      ->capture_default_str()
      ->check(examples::positive);
  app.add_flag("--resume", o.resume, "continue from the newest checkpoint in the output folder");
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    std::exit(app.exit(error));
  }
  const auto begin = std::chrono::steady_clock::now();
  lpo::Context<tw::Device> context(o.threads);

  tw::Vae vae;
  tw::Store vae_store;
  vae_store.add("vae", vae);
  vae_store.allocate_all_trainable();
  vae_store.initialize(o.seed);
  if (o.vae.empty())
    train_vae(context, vae, vae_store, o);
  else
    lpo::load_vae(o.vae + "/vae", vae, vae_store);

  const auto tokenizer = tw::make_tokenizer();
  const auto data = encode_pictures(context, vae, tokenizer, o);

  tw::UNet unet;
  tw::Text text;
  tw::Store store;
  unet.conv_out.weight.initialization = {lpo::Initialization::Kind::zeros, 0};
  unet.conv_out.bias.initialization = {lpo::Initialization::Kind::zeros, 0};
  store.add("unet", unet);
  store.add("text_encoder", text);
  store.allocate_all_trainable();
  store.initialize(o.seed + 1);
  train_denoiser(context, unet, text, store, data, tokenizer.encode(""), vae.scaling_factor, o);

  nlohmann::ordered_json record;
  std::string command;
  for (int i = 0; i < argc; ++i) command += (i == 0 ? "" : " ") + (i == 0 ? std::string("train_base") : std::string(argv[i]));
  record["command"] = command;
  record["seed"] = o.seed;
  record["seconds"] = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  record["threads"] = context.executor().threads();
  record["resumed"] = o.resume;
  record["parameters"] = {{"vae", vae_store.parameter_count()}, {"unet_and_text_encoder", store.parameter_count()}};
  report_quality(context, vae, unet, text, tokenizer, o, record);
  tw::save_model(o.output_dir, vae, vae_store, unet, text, store, tokenizer);
  const std::string json = record.dump(2) + "\n";
  lpo::write_file_atomically(o.output_dir + "/training.json", [&](lpo::FileSink& sink) { sink.write(json.data(), json.size()); });
  write_loss_curve(o.output_dir, o.vae.empty());
  std::printf("wrote %s\n", o.output_dir.c_str());
}

}  // namespace

int main(int argc, char** argv) {
  return examples::run("train_base", [&] { program(argc, argv); });
}
