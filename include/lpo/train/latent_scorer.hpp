// SPDX-License-Identifier: MIT
// LatentScorer: a latent reward model and a batch of prompts as a StepScorer of K candidates per prompt.
#pragma once

#include <span>
#include <vector>

#include <lpo/preference/concepts.hpp>
#include <lpo/reward/latent_reward_model.hpp>
#include <lpo/train/guided_denoiser.hpp>

namespace lpo::inline LPO_ABI {

/// Scores latents [k*b, h, w, c], row k*B + b under prompt b, with the LRM's own text states.
template <class Lrm>
class LatentScorer {
 public:
  using T = typename Lrm::value_type;
  using Device = typename Lrm::device;

  /// `max_rows` bounds the rows of one UNet pass (memory); 0 = all candidates at once.
  LatentScorer(Tape<Device>& tape, Lrm& lrm, index_t max_rows = 0) : tape_(tape), lrm_(lrm), max_rows_(max_rows) {}

  /// The prompts must outlive their use. Keys and values of their text are computed once: until the next call the reward
  /// model's weights may not change.
  void set_prompts(const PromptBatch<T, Device>& prompts) {
    prompts_ = &prompts;
    for (auto& kept : kept_) kept.clear();
  }

  void score(View<const T, 4, Device> latents, int timestep, std::span<float> scores) {
    score_all(latents, timestep, scores);
  }
  /// Latents in float for a 16-bit network.
  void score(View<const compute_t<T>, 4, Device> latents, int timestep,
             std::span<float> scores) requires(!std::is_same_v<T, compute_t<T>>) {
    score_all(latents, timestep, scores);
  }

 private:
  template <class Latent>
  void score_all(const View<const Latent, 4, Device>& latents, int timestep, std::span<float> scores) {
    if (prompts_ == nullptr) throw ValueError("[LatentScorer] set_prompts() first");
    const index_t n = latents.extent(0), b = prompts_->size();
    if (b == 0 || n % b != 0 || static_cast<index_t>(scores.size()) != n)
      throw ShapeError(message("[LatentScorer] ", n, " latents and ", static_cast<index_t>(scores.size()), " scores for ", b, " prompts"));
    const index_t step = max_rows_ > 0 ? max_rows_ : n;
    if (n != latents_) {  // other rows for the same prompts
      kept_.clear();
      kept_.resize(static_cast<std::size_t>((n + step - 1) / step));
      latents_ = n;
    }
    for (index_t begin = 0; begin < n; begin += step) {
      const auto keeping = tape_.keeping(kept_[static_cast<std::size_t>(begin / step)]);
      const index_t end = std::min(n, begin + step);
      score_rows(latents.slice(0, begin, end), begin, timestep, scores.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)));
    }
  }

  template <class Latent>
  void score_rows(const View<const Latent, 4, Device>& latents, index_t first, int timestep, std::span<float> scores) {
    const auto guard = tape_.inference();
    const auto start = tape_.snapshot();
    const index_t n = latents.extent(0), b = prompts_->size();
    std::vector<index_t> rows;
    for (index_t i = 0; i < n; ++i) rows.push_back((first + i) % b);
    const std::vector<float> timesteps(static_cast<std::size_t>(n), static_cast<float>(timestep));
    const auto per_latent = [&](const auto& states, const auto& empty, const std::vector<index_t>& which) {
      return detail::gathered_rows(tape_, states, empty, std::span<const index_t>(which));
    };
    const std::vector<index_t> unprompted(rows.size(), detail::empty_prompt);
    RewardPrompt<T, Device> prompt;
    prompt.context = per_latent(prompts_->context, prompts_->context_empty, rows);
    prompt.context_empty = per_latent(prompts_->context, prompts_->context_empty, unprompted);
    const auto pooled = per_latent(prompts_->pooled, prompts_->pooled_empty, rows);
    std::vector<float> time_ids;
    if constexpr (Lrm::config.addition_width > 0) {
      detail::expect_added_conditioning<Lrm>("LatentScorer", *prompts_);
      prompt.text_embedding = pooled;
      prompt.text_embedding_empty = per_latent(prompts_->pooled, prompts_->pooled_empty, unprompted);
      time_ids = detail::repeated_time_ids(*prompts_, n);
      prompt.time_ids = time_ids;
    }
    const auto z = lrm_.score(detail::network_input<T>(tape_, latents), timesteps, prompt, pooled);
    std::vector<compute_t<T>> host(scores.size());
    tape_.context().copy_to_host(host.data(), z.data(), host.size() * sizeof(host.front()));
    for (std::size_t i = 0; i < host.size(); ++i) scores[i] = static_cast<float>(host[i]);
    tape_.rewind(start);
  }

  Tape<Device>& tape_;
  Lrm& lrm_;
  index_t max_rows_;
  const PromptBatch<T, Device>* prompts_ = nullptr;
  std::vector<KeptProjections<Device>> kept_;  ///< of each pass's rows
  index_t latents_ = 0;                        ///< of the passes that filled them
};

/// Runs a TextEncoder over n prompts (and the empty one) and keeps the result off the tape.
template <class T, class Device, class Encoder>
PromptBatch<T, Device> encode_prompts(Tape<Device>& tape, Encoder& encoder, std::span<const std::int32_t> ids, index_t n) {
  const auto guard = tape.inference();
  const auto start = tape.snapshot();
  const auto states = encoder.encode(tape, ids, n);
  const auto empty = encoder.encode_empty(tape);
  PromptBatch<T, Device> prompts;
  prompts.context = Tensor<T, 3, Device>::copy_of(states.context.view());
  prompts.context_empty = Tensor<T, 3, Device>::copy_of(empty.context.view());
  prompts.pooled = Tensor<T, 2, Device>::copy_of(states.pooled.view());
  prompts.pooled_empty = Tensor<T, 2, Device>::copy_of(empty.pooled.view());
  prompts.time_ids = states.time_ids;
  tape.rewind(start);
  return prompts;
}

}  // namespace lpo::inline LPO_ABI
