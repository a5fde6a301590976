// SPDX-License-Identifier: MIT
// The sampling loop: latents through the steps of any sampler with any NoisePredictor.
#pragma once

#include <algorithm>
#include <functional>
#include <span>
#include <vector>

#include <lpo/base/philox.hpp>
#include <lpo/diffusion/gaussian_step.hpp>
#include <lpo/diffusion/noise_predictor.hpp>
#include <lpo/diffusion/sampler.hpp>
#include <lpo/kernel/random.hpp>

namespace lpo::inline LPO_ABI {

/// Called after each step with the steps done and their total; returning false cancels (CancelledError).
using StepCallback = std::function<bool(int done, int total)>;

/// Operation numbers of the random fields that the diffusion and preference rooms draw from.
namespace random_operation {
inline constexpr std::uint32_t initial_latents = 0x1001;
inline constexpr std::uint32_t sampling_noise = 0x1002;
inline constexpr std::uint32_t candidate_noise = 0x1003;
inline constexpr std::uint32_t continuation = 0x1004;
inline constexpr std::uint32_t pair_order = 0x1005;
}  // namespace random_operation

/// Fills a dense view with standard normals number first, first + 1, ... of the field `key`: row b of a batch gets the
/// same bits in any batch when `first` says where the batch starts.
template <class T, int Rank, class Device>
void fill_normal(Context<Device>& context, const View<T, Rank, Device>& view, RandomKey key, std::uint64_t first = 0) {
  if (!view.dense())
    throw ShapeError(message("[fill_normal] ", to_string(view.extents), " is strided; fill a dense tensor"));
  kernel::RandomNormal<Device>::fill(context, view.size(), view.data, 0.0f, 1.0f, key.seed, key.operation, key.step,
                                     first);
}

/// Where a step's z comes from: `noise(step, z)` fills a dense view with standard normals, in the order of the steps.
template <class Noise, class T, class Device>
concept NoiseSource = requires(Noise& noise, int step, View<T, 4, Device> z) {
  noise(step, z);
};

namespace detail {

/// x' of one step, in place. `m` are the outputs that it counts, this step's first.
template <class T, class Device>
void take_step(Context<Device>& context, const SamplerStep& step, const View<T, 4, Device>& x,
               std::span<const View<T, 4, Device>> m) {
  const double a = step.a;
  const auto& c = step.c;
  switch (step.terms) {
    case 1:
      return evaluate(&context, x, a * x + c[0] * m[0]);
    case 2:
      return evaluate(&context, x, a * x + c[0] * m[0] + c[1] * m[1]);
    case 3:
      return evaluate(&context, x, a * x + c[0] * m[0] + c[1] * m[1] + c[2] * m[2]);
    default:
      return evaluate(&context, x, a * x + c[0] * m[0] + c[1] * m[1] + c[2] * m[2] + c[3] * m[3]);
  }
}

}  // namespace detail

/// Runs `latents` [n, h, w, c], which start as standard normals, through all steps of a sampler, in place.
template <class T, class Device, NoisePredictor<T, Device> Predictor, NoiseSource<T, Device> Noise>
void sample(Context<Device>& context, const Sampler& sampler, Predictor& predictor, const View<T, 4, Device>& latents,
            Noise&& noise, const StepCallback& progress = {}) {
  Scratch<Device> scratch(context);
  const auto like_latents = [&] {
    return View<T, 4, Device>(scratch.template allocate<T>(latents.size()), latents.extents);
  };
  std::vector<View<T, 4, Device>> outputs;  // of this step, then of those before it
  for (int i = 0; i < sampler.outputs(); ++i) outputs.push_back(like_latents());
  const View<T, 4, Device> z = like_latents();
  if (sampler.initial_scale() != 1) evaluate(&context, latents, sampler.initial_scale() * latents);
  const int total = static_cast<int>(sampler.steps().size());
  int done = 0;
  for (const SamplerStep& step : sampler.steps()) {
    const View<T, 4, Device>& m = outputs.front();
    predictor.predict(latents, step.timestep, m);
    if (step.output.latent != 0 || step.output.output != 1) evaluate(&context, m, step.output(latents, m));
    if (step.sigma > 0) {
      noise(done, z);
      evaluate(&context, latents, step.a * latents + step.c[0] * m + step.sigma * z);
    } else {
      detail::take_step<T, Device>(context, step, latents, outputs);
    }
    if (step.remembered) std::rotate(outputs.begin(), outputs.end() - 1, outputs.end());
    ++done;
    if (progress && !progress(done, total))
      throw CancelledError(message("[sample] cancelled after step ", done, " of ", total));
  }
}

/// The same with noise from the Philox fields (seed, sampling_noise, step).
template <class T, class Device, NoisePredictor<T, Device> Predictor>
void sample(Context<Device>& context, const Sampler& sampler, Predictor& predictor, const View<T, 4, Device>& latents,
            std::uint64_t seed, const StepCallback& progress = {}) {
  sample(
      context, sampler, predictor, latents,
      [&](int step, const View<T, 4, Device>& z) {
        fill_normal(context, z, {seed, random_operation::sampling_noise, static_cast<std::uint32_t>(step)});
      },
      progress);
}

/// The same for a chain of GaussianSteps.
template <class T, class Device, NoisePredictor<T, Device> Predictor>
void sample(Context<Device>& context, std::span<const GaussianStep> steps, Predictor& predictor,
            const View<T, 4, Device>& latents, std::uint64_t seed, const StepCallback& progress = {}) {
  sample(context, Sampler(steps), predictor, latents, seed, progress);
}

}  // namespace lpo::inline LPO_ABI
