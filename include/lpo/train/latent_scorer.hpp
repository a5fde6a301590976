// SPDX-License-Identifier: MIT
// LatentScorer: a latent reward model and a batch of prompts as a StepScorer of K candidates per prompt.
#pragma once

#include <span>
#include <utility>
#include <vector>

#include <lpo/preference/concepts.hpp>
#include <lpo/reward/latent_reward_model.hpp>
#include <lpo/train/guided_denoiser.hpp>

namespace lpo::inline LPO_ABI {

/// Scores latents [k*b, h, w, c], row k*B + b under prompt b, with the LRM's own text states. On devices that can, passes
/// are captured once and replayed.
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
    for (Pass& pass : passes_) pass.has_texts = false;
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
  /// Some rows of the candidates: what the model reads for them, and what is kept of their texts.
  struct Pass {
    Tensor<T, 4, Device> latents;
    detail::ConditionBuffers<Lrm> condition;  ///< rows [c ; u] of text
    KeptProjections<Device> kept;
    bool has_texts = false, text_is_kept = false;
    RepeatedWork<Device> work;
    View<const compute_t<T>, 1, Device> scores;  ///< of the last pass, until the tape is rewound
  };

  template <class Latent>
  void score_all(const View<const Latent, 4, Device>& latents, int timestep, std::span<float> scores) {
    if (prompts_ == nullptr) throw ValueError("[LatentScorer] set_prompts() first");
    const index_t n = latents.extent(0), b = prompts_->size();
    if (b == 0 || n % b != 0 || static_cast<index_t>(scores.size()) != n)
      throw ShapeError(message("[LatentScorer] ", n, " latents and ", static_cast<index_t>(scores.size()), " scores for ", b, " prompts"));
    const index_t step = max_rows_ > 0 ? max_rows_ : n;
    if (n != latents_) {  // other rows for the same prompts
      passes_ = std::vector<Pass>(static_cast<std::size_t>((n + step - 1) / step));
      latents_ = n;
    }
    for (index_t begin = 0; begin < n; begin += step) {
      const index_t end = std::min(n, begin + step);
      score_rows(passes_[static_cast<std::size_t>(begin / step)], latents.slice(0, begin, end), begin, timestep,
                 scores.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)));
    }
  }

  template <class Latent>
  void score_rows(Pass& pass, const View<const Latent, 4, Device>& latents, index_t first, int timestep,
                  std::span<float> scores) {
    auto& context = tape_.context();
    const auto guard = tape_.inference();
    const auto keeping = tape_.keeping(pass.kept);
    const auto start = tape_.snapshot();
    const index_t n = latents.extent(0);
    const std::vector<float> timesteps(static_cast<std::size_t>(n), static_cast<float>(timestep));
    const bool known = detail::fit(pass.latents, latents.extents);
    if (!pass.condition.set_timesteps(context, timesteps) || !known) pass.work.reset();
    if (!std::exchange(pass.has_texts, true)) set_texts(pass, first, n);
    evaluate(&context, pass.latents.view(), latents);
    run(pass);
    std::vector<compute_t<T>> host(scores.size());
    context.copy_to_host(host.data(), pass.scores.data, host.size() * sizeof(host.front()));
    for (std::size_t i = 0; i < host.size(); ++i) scores[i] = static_cast<float>(host[i]);
    tape_.rewind(start);
  }

  void set_texts(Pass& pass, index_t first, index_t n) {
    std::vector<index_t> rows;
    for (index_t i = 0; i < n; ++i) rows.push_back((first + i) % prompts_->size());
    rows.resize(static_cast<std::size_t>(2 * n), detail::empty_prompt);
    if (!pass.condition.set_texts("LatentScorer", tape_.context(), *prompts_, std::span<const index_t>(rows)))
      pass.work.reset();
    pass.kept.clear();
    pass.text_is_kept = false;
  }

  /// The first pass under new texts fills what is kept of them, so it is not like the others.
  void run(Pass& pass) {
    const auto work = [&] { pass.scores = score_on_tape(pass).view(); };
    if (!std::exchange(pass.text_is_kept, true)) return work();
    pass.work.begin(tape_.context());
    pass.work.run(tape_.context(), work);
  }

  Var<compute_t<T>, 1, Device> score_on_tape(const Pass& pass) {
    const index_t n = pass.latents.extent(0);
    const auto half = [&](const auto& rows, bool empty) { return rows.slice(0, empty ? n : 0, empty ? 2 * n : n); };
    const auto texts = pass.condition.texts(tape_);
    const auto pooled = pass.condition.pooled(tape_);
    RewardPrompt<T, Device> prompt;
    prompt.context = half(texts, false);
    prompt.context_empty = half(texts, true);
    prompt.time_features = pass.condition.time_features(tape_);
    if constexpr (Lrm::config.addition_width > 0) {
      prompt.text_embedding = half(pooled, false);
      prompt.text_embedding_empty = half(pooled, true);
      prompt.time_ids = pass.condition.time_ids().first(static_cast<std::size_t>(6 * n));
    }
    return lrm_.score(constant(tape_, pass.latents), {}, prompt, half(pooled, false));
  }

  Tape<Device>& tape_;
  Lrm& lrm_;
  index_t max_rows_;
  const PromptBatch<T, Device>* prompts_ = nullptr;
  std::vector<Pass> passes_;  ///< for `latents_` candidates
  index_t latents_ = 0;
};

/// Runs a TextEncoder over n prompts (and the empty one) and keeps the result off the tape: in the memory of `prompts`
/// where it fits.
template <class T, class Device, class Encoder>
void encode_prompts(Tape<Device>& tape, Encoder& encoder, std::span<const std::int32_t> ids, index_t n,
                    PromptBatch<T, Device>& prompts) {
  const auto guard = tape.inference();
  const auto start = tape.snapshot();
  const auto states = encoder.encode(tape, ids, n);
  const auto empty = encoder.encode_empty(tape);
  const auto keep = [&](auto& kept, const auto& state) {
    detail::fit(kept, state.extents());
    evaluate(&tape.context(), kept.view(), state.view());
  };
  keep(prompts.context, states.context);
  keep(prompts.context_empty, empty.context);
  keep(prompts.pooled, states.pooled);
  keep(prompts.pooled_empty, empty.pooled);
  prompts.time_ids = states.time_ids;
  tape.rewind(start);
}
template <class T, class Device, class Encoder>
PromptBatch<T, Device> encode_prompts(Tape<Device>& tape, Encoder& encoder, std::span<const std::int32_t> ids, index_t n) {
  PromptBatch<T, Device> prompts;
  encode_prompts(tape, encoder, ids, n, prompts);
  return prompts;
}

}  // namespace lpo::inline LPO_ABI
