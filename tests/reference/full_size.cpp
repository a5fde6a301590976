// SPDX-License-Identifier: MIT
// The C++ half of full_size.py: loads one component of a family from its fp16 file into LPO_FULL_SIZE_STORAGE, runs it
// on the reference's inputs and prints errors, times and memory, one "key value" per line.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#include <lpo/io/diffusers.hpp>
#include <lpo/lpo.hpp>

#ifndef LPO_FULL_SIZE_FAMILY
#define LPO_FULL_SIZE_FAMILY sd15
#endif
#ifndef LPO_FULL_SIZE_STORAGE
#define LPO_FULL_SIZE_STORAGE float
#endif

using namespace lpo;

namespace {

enum class Family { sd15, sd21, sdxl };
constexpr Family family = Family::LPO_FULL_SIZE_FAMILY;
constexpr UNetConfig unet_config = presets::LPO_FULL_SIZE_FAMILY;
constexpr ClipTextConfig text_config = family == Family::sd21 ? presets::clip_h : presets::clip_l;
using T = LPO_FULL_SIZE_STORAGE;

void print(const char* key, double value) { std::printf("%s %.9g\n", key, value); }

/// Processor seconds of all threads since it was made.
class Stopwatch {
 public:
  double seconds() const { return static_cast<double>(std::clock() - start_) / CLOCKS_PER_SEC; }

 private:
  std::clock_t start_ = std::clock();
};

/// A line of /proc/self/status in bytes: VmHWM is the peak of resident memory, mapped files included.
double resident(const char* line) {
  double kilobytes = 0;
  char text[256];
  std::FILE* const status = std::fopen("/proc/self/status", "r");
  while (status != nullptr && std::fgets(text, sizeof text, status) != nullptr)
    if (std::strncmp(text, line, std::strlen(line)) == 0) kilobytes = std::atof(text + std::strlen(line) + 1);
  if (status != nullptr) std::fclose(status);
  return 1024 * kilobytes;
}

/// A tensor of the reference; images are NCHW there.
template <int Rank>
Tensor<T, Rank, Cpu> input(const SafetensorsFile& file, const std::string& key) {
  const auto& shape = file.info(key).shape;
  Extents<Rank> extents{};
  for (int axis = 0; axis < Rank; ++axis) extents[axis] = shape.at(static_cast<std::size_t>(axis));
  const auto values = file.read_vector<float>(key);
  if constexpr (Rank == 4) {
    const View<const float, 4, Cpu> nchw(values.data(), extents);
    auto out = Tensor<T, 4, Cpu>::zeros(Extents<4>{extents[0], extents[2], extents[3], extents[1]});
    evaluate<T, 4, Cpu>(nullptr, out.view(), 1.0 * nchw.permute({0, 2, 3, 1}));
    return out;
  } else {
    auto out = Tensor<T, Rank, Cpu>::zeros(extents);
    evaluate<T, Rank, Cpu>(nullptr, out.view(), 1.0 * View<const float, Rank, Cpu>(values.data(), extents));
    return out;
  }
}

/// Prints ||value - truth|| / ||truth|| under "error/<name>"; in bfloat16 also "error_bfloat16/<name>", where the truth
/// is a float32 run of the same rounded weights.
template <int Rank, int Channels>
void compare(const SafetensorsFile& file, const std::string& name, const Var<T, Rank, Cpu, Channels>& value) {
  const View<const T, Rank, Cpu> view = value.view();
  const index_t area = Rank == 4 ? view.extent(1) * view.extent(2) : 1, channels = Rank == 4 ? view.extent(3) : 1;
  const auto print_error = [&](const char* kind, const std::vector<float>& truth) {
    double difference = 0, norm = 0;
    for (index_t i = 0; i < view.size(); ++i) {
      // Position i of [n, channels, area] is (n, at, channel) in channels-last memory.
      const index_t row = i / (channels * area), channel = i / area % channels, at = i % area;
      const auto mine =
          static_cast<double>(static_cast<compute_t<T>>(view.data[(row * area + at) * channels + channel]));
      const auto wanted = static_cast<double>(truth.at(static_cast<std::size_t>(i)));
      difference += (mine - wanted) * (mine - wanted);
      norm += wanted * wanted;
    }
    const bool complete = static_cast<index_t>(truth.size()) == view.size();
    print((kind + ("/" + name)).c_str(), complete ? std::sqrt(difference / norm) : HUGE_VAL);
  };
  print_error("error", file.read_vector<float>("out/" + name));
  if constexpr (std::is_same_v<T, bfloat16>)
    print_error("error_bfloat16", file.read_vector<float>("out_bfloat16/" + name));
}

/// Loads a model with `load`, runs `forward(model, tape)`, which compares, and prints times and memory. It is loaded
/// twice, and the shorter time counts: in a virtual machine the first may pay for memory that the host has to find.
template <class Model, class Load, class Forward>
void measure(int threads, Load&& load, Forward&& forward) {
  std::unique_ptr<Model> model;
  ParameterStore<T, Cpu> store;
  double load_seconds = HUGE_VAL;
  for (int i = 0; i < 2; ++i) {
    store = {};
    model = std::make_unique<Model>();
    const Stopwatch loading;
    store.add("", *model);
    store.allocate_frozen();
    load(*model, store);
    load_seconds = std::min(load_seconds, loading.seconds());
    if (i == 0) print("first_load_seconds", load_seconds);
  }
  print("load_seconds", load_seconds);
  print("loaded_peak", resident("VmHWM:"));
  print("loaded_resident", resident("VmRSS:"));
  Context<Cpu> context(threads);
  Tape<Cpu> tape(context);
  const auto guard = tape.inference();
  forward(*model, tape);
  print("weights", static_cast<double>(store.values().size_bytes()));
  print("activations", static_cast<double>(context.activations().peak_bytes() + context.scratch().peak_bytes()));
  print("arena", static_cast<double>(context.activations().peak_bytes()));
  print("scratch", static_cast<double>(context.scratch().peak_bytes()));
}

void finish(const Stopwatch& running) {
  print("run_seconds", running.seconds());
  print("peak", resident("VmHWM:"));
}

/// One denoising step with guidance: the UNet on the rows [unconditional ; conditional], then DDIM.
void run_unet(const std::string& folder, const SafetensorsFile& file, int threads) {
  using Model = UNet2DCondition<unet_config, T, Cpu>;
  const auto load = [&](Model& model, ParameterStore<T, Cpu>& store) { load_unet(folder + "/unet", model, store, ""); };
  measure<Model>(threads, load, [&](Model& unet, Tape<Cpu>& tape) {
    const auto sample = input<4>(file, "in/sample");
    const auto context = input<3>(file, "in/context");
    const std::vector<float> timesteps(2, 999.0f);
    UNetCondition<T, Cpu> condition{timesteps, constant(tape, context), {}, {}};
    Tensor<T, 2, Cpu> text;
    std::vector<float> time_ids;
    if constexpr (unet_config.addition_width > 0) {
      text = input<2>(file, "in/text_embeds");
      time_ids = file.read_vector<float>("in/time_ids");
      condition.text_embedding = constant(tape, text);
      condition.time_ids = time_ids;
    }
    const GaussianStep step = ddim_step(NoiseSchedule(SchedulerConfig{}), 999, 20, 0.0);
    auto next = Tensor<T, 4, Cpu>::zeros(sample.view().slice(0, 0, 1).extents);
    const Stopwatch running;
    const auto noise = unet(constant(tape, sample), condition);
    evaluate(&tape.context(), next.view(),
             step.a * sample.view().slice(0, 0, 1) + step.c * guided_rows(View<const T, 4, Cpu>(noise.view()), 7.5));
    finish(running);
    compare(file, "sample", noise);
  });
}

void run_vae(const std::string& folder, const SafetensorsFile& file, int threads) {
  using Model = AutoencoderKL<presets::sd_vae, T, Cpu>;
  const auto load = [&](Model& model, ParameterStore<T, Cpu>& store) { load_vae(folder + "/vae", model, store, ""); };
  measure<Model>(threads, load, [&](Model& vae, Tape<Cpu>& tape) {
    const auto image = input<4>(file, "in/image");
    const auto latent = input<4>(file, "in/latent");
    const Stopwatch running;
    const auto posterior = vae.encode(constant(tape, image));
    const auto decoded = vae.decode(constant(tape, latent));
    finish(running);
    compare(file, "mean", posterior.mean);
    compare(file, "logvar", posterior.log_variance);
    compare(file, "decoded", decoded);
  });
}

template <ClipTextConfig C>
void run_text(const std::string& folder, const std::string& part, const SafetensorsFile& file, int threads) {
  using Model = CLIPTextModel<C, T, Cpu>;
  const auto load = [&](Model& model, ParameterStore<T, Cpu>& store) {
    load_text_encoder(folder + "/" + part, model, store, "");
  };
  measure<Model>(threads, load, [&](Model& model, Tape<Cpu>& tape) {
    const auto ids = file.read_vector<std::int32_t>("in/input_ids");
    const Stopwatch running;
    const auto out = model(tape, ids, 2);
    finish(running);
    compare(file, "last_hidden_state", out.last_hidden_state);
    compare(file, "penultimate", out.penultimate);
    if constexpr (C.projection > 0)
      compare(file, "text_embeds", out.text_embedding);
    else
      compare(file, "pooled", out.pooled);
  });
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 4) {
    std::fprintf(stderr, "usage: full_size FOLDER unet|vae|text_encoder|text_encoder_2 THREADS\n");
    return 2;
  }
  const std::string folder = arguments[1], part = arguments[2];
  const int threads = std::atoi(arguments[3]);
  try {
    const SafetensorsFile file(folder + "/reference_" + part + ".safetensors");
    if (part == "unet") {
      run_unet(folder, file, threads);
    } else if (part == "vae") {
      run_vae(folder, file, threads);
    } else if (part == "text_encoder") {
      run_text<text_config>(folder, part, file, threads);
    } else if constexpr (family == Family::sdxl) {
      run_text<presets::clip_bigg>(folder, part, file, threads);
    }
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
