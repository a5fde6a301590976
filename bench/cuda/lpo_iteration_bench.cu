// SPDX-License-Identifier: MIT
// One LPO iteration at Stable Diffusion 1.5's full size with random weights in bfloat16, by the library's trainer: its
// time, its parts, its kernels and its memory. bench/peers/lpo_torch.py is the same in PyTorch.
#include <array>
#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <lpo/cuda.cuh>
#include <lpo/train/clip_text_encoder.hpp>

#include <cuda/lpo_setup.cuh>
#if defined(LPO_BENCH_WITH_NCCL)
#include <lpo/distributed/nccl_communicator.cuh>
#include <lpo/distributed/thread_communicator.hpp>
#endif

namespace {

using bench::Cuda;
using bench::index_t;
using lpo::LpoStage;
using bench::mean;

constexpr index_t tokens = 77, prompts_per_iteration = 5;
constexpr std::array stage_names = {"text", "denoising", "scoring", "reference", "policy", "optimizer"};

/// The policy with LoRA of rank 16 and its text encoder; the reward model with its own.
struct Models {
#if !defined(LPO_BENCH_STORAGE)
#define LPO_BENCH_STORAGE lpo::bfloat16  // or lpo::half
#endif
  using T = LPO_BENCH_STORAGE;
  using Text = lpo::CLIPTextModel<lpo::presets::clip_l, T, Cuda>;
  using Lrm = lpo::LatentRewardModel<lpo::presets::sd15, 768, 768, true, T, Cuda>;
  using UNet = lpo::UNet2DCondition<lpo::presets::sd15, T, Cuda>;

  std::unique_ptr<UNet> unet = std::make_unique<UNet>();
  std::unique_ptr<Lrm> lrm = std::make_unique<Lrm>();
  std::unique_ptr<Text> text = std::make_unique<Text>(), reward_text = std::make_unique<Text>();
  lpo::ParameterStore<T, Cuda> store, frozen;
  lpo::ClipTextEncoder<Text> encoder{*text, std::vector<std::int32_t>(tokens, 49407)};
  lpo::ClipTextEncoder<Text> reward_encoder{*reward_text, std::vector<std::int32_t>(tokens, 49407)};

  explicit Models(lpo::Context<Cuda>& context) {
    lpo::enable_lora<T, Cuda>(*unet, 16, 16.0f);
    store.add("unet", *unet);
    store.allocate(lpo::is_lora_name);
    frozen.add("lrm", *lrm);
    frozen.add("text", *text);
    frozen.add("reward_text", *reward_text);
    frozen.allocate_frozen();
    bench::initialize_on_device(context, store, 1);
    bench::initialize_on_device(context, frozen, 2);
  }
};

/// The time of the arithmetic alone at 790 TFLOP/s, as a share of the measured time: in TFLOP, 370.0 of denoising and
/// scoring, and 507.2 of training if every pair were kept (matrix products and convolutions, counted from the layers).
double share_of_floor(double pairs, double seconds) {
  const double kept = pairs / static_cast<double>(bench::lpo_steps * prompts_per_iteration);
  return (369.97 + 507.2 * kept) / 790.0 / seconds;
}

/// At the sizes of Stable Diffusion 1.5.
bench::Run train(lpo::Context<Cuda>& context, Models& models, const lpo::LpoTrainerOptions& options) {
  return bench::train(context, models, options, 64, tokens);
}
lpo::LpoTrainerOptions recipe(index_t iterations) { return bench::recipe(iterations, prompts_per_iteration); }

/// The arguments say whether steps are captured and replayed, and whether algorithms of products are chosen by time.
void lpo_iteration(benchmark::State& state) {
  auto device_options = bench::options();
  device_options.time_products = state.range(1) != 0;
  device_options.graphs = state.range(0) != 0;
  lpo::Context<Cuda> context(device_options);
  Models models(context);
  const auto repeats = static_cast<index_t>(state.max_iterations);
  constexpr std::size_t first = 3;  // algorithms are chosen and loaded, graphs captured
  const bench::Run run = train(context, models, recipe(repeats + static_cast<index_t>(first)));
  std::size_t at = first;
  for (auto _ : state) state.SetIterationTime(run.seconds[at++]);
  for (std::size_t i = first; i < run.seconds.size(); ++i)
    std::printf("%.3f s with %.0f pairs\n", run.seconds[i], run.pairs[i]);
  state.counters["pairs"] = mean(run.pairs, first);
  state.counters["of_floor"] = share_of_floor(mean(run.pairs, first), mean(run.seconds, first));
  bench::count_memory(state, context, models);
}

/// Where an iteration's time goes. The device is waited for at every change of part, so the sum is larger than the
/// whole.
void lpo_stages(benchmark::State& state) {
  lpo::Context<Cuda> context(lpo::CudaOptions{.graphs = state.range(0) != 0});
  Models models(context);
  constexpr std::size_t first = 3;
  auto options = recipe(static_cast<index_t>(state.max_iterations + first));
  std::array<double, stage_names.size()> seconds{};
  std::vector<std::array<double, stage_names.size()>> by_iteration;
  std::size_t current = 0;
  auto start = std::chrono::steady_clock::now();
  options.on_stage = [&](LpoStage stage) {
    context.synchronize();
    const auto now = std::chrono::steady_clock::now();
    seconds[current] += std::chrono::duration<double>(now - start).count();
    if (stage == LpoStage::text) by_iteration.push_back(seconds), seconds = {};
    current = static_cast<std::size_t>(stage);
    start = now;
  };
  const bench::Run run = train(context, models, options);
  std::size_t at = first;
  for (auto _ : state) state.SetIterationTime(run.seconds[at++]);
  state.counters["pairs"] = run.pairs[run.pairs.size() - 2];
  for (std::size_t stage = 0; stage < stage_names.size(); ++stage)
    state.counters[stage_names[stage]] = by_iteration.back()[stage];  // of the last iteration but one
}

/// Little memory: few pairs and few rows at once, on a context of its own. The argument is the pairs.
void lpo_small(benchmark::State& state) {
  lpo::Context<Cuda> context;
  Models models(context);
  auto options = recipe(static_cast<index_t>(state.max_iterations) + 2);
  options.micro_batch_size = state.range(0);
  options.max_rows = 5;
  const bench::Run run = train(context, models, options);
  std::size_t at = 2;
  for (auto _ : state) state.SetIterationTime(run.seconds[at++]);
  state.counters["pairs"] = mean(run.pairs, 2);
  bench::count_memory(state, context, models);
}

/// Not a benchmark of its own: where the device's time goes in each part, printed once with
/// --benchmark_filter=lpo_kernels.
void lpo_kernels(benchmark::State& state) {
  lpo::Context<Cuda> context(lpo::CudaOptions{.time_kernels = true});
  Models models(context);
  auto options = recipe(3);
  std::array<std::map<std::string, lpo::KernelTime>, stage_names.size()> times;
  std::size_t current = 0;
  const auto collect = [&] {
    for (const auto& time : context.kernel_times()) {
      auto& sum = times[current][time.name];
      sum.launches += time.launches;
      sum.milliseconds += time.milliseconds;
    }
  };
  options.on_stage = [&](LpoStage stage) {
    collect();
    if (stage == LpoStage::text) times = {};  // what is left at the end is of the last iteration
    current = static_cast<std::size_t>(stage);
  };
  for (auto _ : state) train(context, models, options);
  collect();
  for (std::size_t stage = 0; stage < stage_names.size(); ++stage)
    for (const auto& [name, time] : times[stage])
      std::printf("%-10s %9.3f ms %6lld x %s\n", stage_names[stage], time.milliseconds,
                  static_cast<long long>(time.launches), name.c_str());
}

#if defined(LPO_BENCH_WITH_NCCL)
/// On several GPUs of this machine, each with five prompts and ten pairs of an optimizer step; the argument is how many.
void lpo_on_gpus(benchmark::State& state) {
  const int gpus = static_cast<int>(state.range(0));
  bench::Run run;
  lpo::run_on_threads(gpus, [&](lpo::ThreadCommunicator threads) {
    lpo::Context<Cuda> context(lpo::CudaOptions{.device = threads.rank()});
    Models models(context);
    auto options = bench::recipe(static_cast<index_t>(state.max_iterations) + 2, prompts_per_iteration * gpus);
    options.train_batch_size *= gpus;
    const auto own = bench::train(context, models, options, 64, tokens, lpo::NcclCommunicator(context, threads));
    if (threads.rank() == 0) run = own;
  });
  std::size_t at = 2;
  for (auto _ : state) state.SetIterationTime(run.seconds[at++]);
  state.counters["pairs"] = mean(run.pairs, 2);
}
BENCHMARK(lpo_on_gpus)->Arg(1)->Arg(2)->Iterations(4)->UseManualTime()->Unit(benchmark::kMillisecond);
#endif

BENCHMARK(lpo_kernels)->Iterations(1);
BENCHMARK(lpo_stages)->ArgName("graphs")->Arg(0)->Arg(1)->Iterations(3)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(lpo_small)->Arg(1)->Arg(2)->Arg(3)->Iterations(2)->UseManualTime()->Unit(benchmark::kMillisecond);
BENCHMARK(lpo_iteration)
    ->ArgNames({"graphs", "timed"})
    ->Args({0, 1})
    ->Args({1, 0})
    ->Args({1, 1})
    ->Iterations(6)
    ->UseManualTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
