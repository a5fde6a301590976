// SPDX-License-Identifier: MIT
// What training costs: floating-point operations of the networks, counted from their architectures, and CPU seconds.
#pragma once

#include <ctime>

#include "../../common/memory_plan.hpp"
#include "../tiny_config.hpp"

namespace compare {

/// Seconds that all threads of this process have computed.
inline double cpu_seconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

/// Costs that add up.
struct Work {
  double flops = 0;
  double samples = 0;   ///< examples that gradients were taken of: pairs, or groups of candidates
  double pictures = 0;  ///< drawn, from noise to the last step

  Work& operator+=(const Work& other) {
    flops += other.flops;
    samples += other.samples;
    pictures += other.pictures;
    return *this;
  }
};

/// Floating-point operations (2 per multiply-add) for one latent, without guidance.
struct NetworkWork {
  double unet, reward, text;

  NetworkWork() {
    const auto work = examples::unet_work(tinyworld::unet_config, 8, 8, tinyworld::text_config.positions);
    unet = work.total();
    reward = work.down + work.middle;
    text = examples::text_work(tinyworld::text_config);
  }

  /// Denoising `count` pictures with guidance.
  double denoising(double count, double steps) const { return 2 * count * steps * unet; }
  /// Forward of policy and reference and backward of the policy's adapters (they need no products for the weights'
  /// gradients) of `rows`.
  double training(double rows) const { return rows * unet * (2 + 1.16); }
};

/// Predicting the picture of one noisy latent under guidance and decoding it, which is about 2.25 times encoding it.
inline double predicted_picture_work() {
  return 2 * NetworkWork().unet + 2.25 * examples::vae_encoder_work(tinyworld::vae_config, 32, 32);
}

/// SPO's vision tower for one picture.
inline double vision_work() {
  constexpr auto c = tinyworld::vision_config;
  const double side = c.image_size / c.patch, n = side * side + 1, w = c.width;
  return c.layers * n * (8 * w * w + 4 * n * w + 4 * w * c.hidden);
}

}  // namespace compare
