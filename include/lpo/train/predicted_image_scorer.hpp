// SPDX-License-Identifier: MIT
// PredictedImageScorer: SPO's scorer — candidates are denoised once more, and the picture that they promise is rated.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include <lpo/preference/concepts.hpp>
#include <lpo/reward/step_aware_preference_model.hpp>
#include <lpo/train/guided_denoiser.hpp>
#include <lpo/train/predicted_images.hpp>

namespace lpo::inline LPO_ABI {

/// A TransitionScorer. Each candidate [k*b, h, w, c] goes through the policy at its arrival timestep, under guidance;
/// the clean latent that this predicts is decoded and rated by a step-aware preference model, told the arrival. Where
/// the chain ends the candidate itself is decoded, at timestep 0. The prediction for the candidate with which a prompt
/// goes on is the next step's: it is kept (known_prediction). Source: arXiv 2406.04314.
template <class UNet, class Vae, class Preference>
class PredictedImageScorer {
 public:
  using T = typename UNet::value_type;
  using Device = typename UNet::device;
  using Number = compute_t<T>;
  using P = typename Preference::value_type;

  /// `max_rows` bounds the candidates of one pass (memory); 0 = all at once.
  PredictedImageScorer(Tape<Device>& tape, UNet& policy, Vae& vae, Preference& preference,
                       const NoiseSchedule& schedule, double guidance_scale, index_t max_rows)
      : tape_(tape),
        policy_(policy),
        preference_(preference),
        images_(vae, schedule),
        scale_(guidance_scale),
        max_rows_(max_rows) {}

  /// `prompts` must outlive their use; `ids`: the same n prompts for the preference model.
  void set_prompts(const PromptBatch<T, Device>& prompts, std::span<const std::int32_t> ids, index_t n) {
    prompts_ = &prompts;
    known_at_ = -1;
    const auto guard = tape_.inference();
    const auto start = tape_.snapshot();
    texts_ = Tensor<P, 2, Device>::copy_of(preference_.text(tape_, ids, n).view());
    tape_.rewind(start);
  }

  void score(View<const Number, 4, Device> latents, const GaussianStep& step, std::span<float> scores) {
    if (prompts_ == nullptr) throw ValueError("[PredictedImageScorer] set_prompts() first");
    const index_t n = latents.extent(0), b = prompts_->size(), width = latents.size() / std::max<index_t>(n, 1);
    if (b == 0 || n % b != 0 || static_cast<index_t>(scores.size()) != n)
      throw ShapeError(message("[PredictedImageScorer] ", n, " latents and ", static_cast<index_t>(scores.size()),
                               " scores for ", b, " prompts"));
    if (predictions_.size() != latents.size()) predictions_ = Tensor<Number, 4, Device>(latents.extents);
    const bool finished = step.arrival <= 0;
    const index_t chunk = max_rows_ > 0 ? max_rows_ : n;
    for (index_t begin = 0; begin < n; begin += chunk) {
      const index_t end = std::min(n, begin + chunk);
      const auto at = static_cast<std::size_t>(begin), count = static_cast<std::size_t>(end - begin);
      score_rows(latents.slice(0, begin, end),
                 {predictions_.data() + begin * width, latents.slice(0, begin, end).extents}, begin,
                 finished ? 0 : step.arrival, scores.subspan(at, count));
    }
    candidates_at_ = finished ? -1 : step.arrival;
  }

  /// Prompt b goes on with candidate chosen[b].
  void continue_with(std::span<const int> chosen) {
    known_at_ = candidates_at_;
    if (known_at_ < 0) return;
    const index_t b = static_cast<index_t>(chosen.size()), width = predictions_.size() / predictions_.extent(0);
    auto extents = predictions_.extents();
    extents[0] = b;
    if (!(known_.extents() == extents)) known_ = Tensor<Number, 4, Device>(extents);
    for (index_t i = 0; i < b; ++i)
      kernel::CopyRows<Device>::run(
          tape_.context(), 1, width,
          static_cast<const Number*>(predictions_.data()) + (chosen[static_cast<std::size_t>(i)] * b + i) * width,
          width, known_.data() + i * width, width, false);
  }

  /// The policy's prediction at `timestep` for the latents that continue_with left, if it is known; then true.
  bool known_prediction(double timestep, View<Number, 4, Device> prediction) {
    const bool known =
        known_at_ >= 0 && static_cast<double>(known_at_) == timestep && known_.extents() == prediction.extents;
    known_at_ = -1;
    if (known) evaluate(&tape_.context(), prediction, 1.0 * known_.view());
    return known;
  }

 private:
  void score_rows(const View<const Number, 4, Device>& latents, const View<Number, 4, Device>& prediction,
                  index_t first, int timestep, std::span<float> scores) {
    const auto guard = tape_.inference();
    const auto start = tape_.snapshot();
    const index_t n = latents.extent(0), b = prompts_->size();
    std::vector<index_t> rows;
    std::vector<std::int32_t> texts;
    for (index_t i = 0; i < n; ++i) {
      rows.push_back((first + i) % b);
      texts.push_back(static_cast<std::int32_t>((first + i) % b));
    }
    const std::vector<float> timesteps(static_cast<std::size_t>(n), static_cast<float>(timestep));
    if (timestep > 0) {
      const auto guided =
          guided_prediction(policy_, *prompts_, std::span<const index_t>(rows),
                            detail::network_input<T>(tape_, latents), std::span<const float>(timesteps), scale_);
      evaluate(&tape_.context(), prediction, 1.0 * guided);
      tape_.rewind(start);
    }
    constexpr index_t size = Preference::vision_config.image_size;
    const auto pixels = make_output<Number>(tape_, Extents<4>{n, size, size, 3}, false);
    images_.prepare(tape_, latents, prediction, timesteps, pixels.view());
    const auto z =
        preference_.score(detail::network_input<P>(tape_, View<const Number, 4, Device>(pixels.view())), timesteps,
                          embedding(constant(tape_, texts_), std::span<const std::int32_t>(texts)));
    std::vector<compute_t<P>> host(scores.size());
    tape_.context().copy_to_host(host.data(), z.data(), host.size() * sizeof(host.front()));
    for (std::size_t i = 0; i < host.size(); ++i) scores[i] = static_cast<float>(host[i]);
    tape_.rewind(start);
  }

  Tape<Device>& tape_;
  UNet& policy_;
  Preference& preference_;
  PredictedImages<Vae> images_;
  double scale_;
  index_t max_rows_;
  const PromptBatch<T, Device>* prompts_ = nullptr;
  Tensor<P, 2, Device> texts_;
  Tensor<Number, 4, Device> predictions_, known_;
  int candidates_at_ = -1, known_at_ = -1;  ///< timesteps of predictions_ and known_; -1: none
};

}  // namespace lpo::inline LPO_ABI
