// SPDX-License-Identifier: MIT
// The sampling loop: latents through a chain of GaussianSteps with any NoisePredictor.
#pragma once

#include <functional>
#include <span>

#include <lpo/base/philox.hpp>
#include <lpo/diffusion/gaussian_step.hpp>
#include <lpo/diffusion/noise_predictor.hpp>
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

/// Runs `latents` [n, h, w, c] through all steps, in place. Steps with sigma > 0 draw from (seed, sampling_noise, step
/// i). Latents start as standard normals (init_noise_sigma is 1 for these samplers).
template <class T, class Device, NoisePredictor<T, Device> Predictor>
void sample(Context<Device>& context, std::span<const GaussianStep> steps, Predictor& predictor,
            const View<T, 4, Device>& latents, std::uint64_t seed, const StepCallback& progress = {}) {
  Scratch<Device> scratch(context);
  const View<T, 4, Device> prediction(scratch.template allocate<T>(latents.size()), latents.extents);
  const View<T, 4, Device> noise(scratch.template allocate<T>(latents.size()), latents.extents);
  for (std::size_t i = 0; i < steps.size(); ++i) {
    const GaussianStep& step = steps[i];
    predictor.predict(latents, step.timestep, prediction);
    if (step.sigma > 0) {
      fill_normal(context, noise, {seed, random_operation::sampling_noise, static_cast<std::uint32_t>(i)});
      evaluate(&context, latents, step.next(latents, prediction, noise));
    } else {
      evaluate(&context, latents, step.mean(latents, prediction));
    }
    const int done = static_cast<int>(i) + 1, total = static_cast<int>(steps.size());
    if (progress && !progress(done, total))
      throw CancelledError(message("[sample] cancelled after step ", done, " of ", total));
  }
}

}  // namespace lpo::inline LPO_ABI
