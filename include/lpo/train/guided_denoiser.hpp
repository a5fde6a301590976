// SPDX-License-Identifier: MIT
// GuidedDenoiser: a UNet and a batch of prompts as a NoisePredictor with classifier-free guidance.
#pragma once

#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include <lpo/autograd/concat.hpp>
#include <lpo/diffusion/guidance.hpp>
#include <lpo/diffusion/noise_predictor.hpp>
#include <lpo/model/unet.hpp>
#include <lpo/tensor/repeated_work.hpp>

namespace lpo::inline LPO_ABI {

/// Text states of a batch of prompts, computed once and kept off the tape.
template <class T, class Device>
struct PromptBatch {
  Tensor<T, 3, Device> context;        ///< [n, tokens, width]
  Tensor<T, 3, Device> context_empty;  ///< of the empty prompt [1, tokens, width]
  Tensor<T, 2, Device> pooled;         ///< [n, width]; for scoring, and what SDXL adds to the time embedding
  Tensor<T, 2, Device> pooled_empty;   ///< [1, width]
  std::vector<float> time_ids;         ///< SDXL: 6 numbers, the same for all rows; empty otherwise

  index_t size() const { return context.extent(0); }
};

namespace detail {

/// What `rows` stand for: a prompt of the batch, or empty_prompt.
inline constexpr index_t empty_prompt = -1;

/// The rows [u ; c] of text, for guidance.
inline std::vector<index_t> unguided_and_guided(std::span<const index_t> rows) {
  std::vector<index_t> halves(rows.size(), empty_prompt);
  halves.insert(halves.end(), rows.begin(), rows.end());
  return halves;
}

/// Writes one row of `states` [n, ...] for each number in `rows`, or of `empty` [1, ...] for empty_prompt, in as few
/// copies as the rows have runs of neighbours. `out` is dense.
template <class T, int Rank, class Device>
void gather_rows_to(Context<Device>& context, const Tensor<T, Rank, Device>& states, const Tensor<T, Rank, Device>& empty,
                    std::span<const index_t> rows, T* out) {
  const index_t width = empty.size();
  const index_t n = static_cast<index_t>(rows.size());
  for (index_t begin = 0, end = 0; begin < n; begin = end) {
    const index_t first = rows[static_cast<std::size_t>(begin)];
    const auto follows = [&](index_t row, index_t distance) { return row == (first == empty_prompt ? first : first + distance); };
    do ++end;
    while (end < n && follows(rows[static_cast<std::size_t>(end)], end - begin));
    const T* const source = first == empty_prompt ? empty.data() : states.data() + first * width;
    kernel::CopyRows<Device>::run(context, end - begin, width, source, first == empty_prompt ? 0 : width,
                                  out + begin * width, width, false);
  }
}

/// `extents` of one row, for `rows` rows.
template <int Rank>
Extents<Rank> with_rows(Extents<Rank> extents, std::size_t rows) {
  extents[0] = static_cast<index_t>(rows);
  return extents;
}

/// The rows of gather_rows_to on the tape.
template <class T, int Rank, class Device>
Var<T, Rank, Device> gathered_rows(Tape<Device>& tape, const Tensor<T, Rank, Device>& states, const Tensor<T, Rank, Device>& empty,
                                   std::span<const index_t> rows) {
  const auto out = make_output<T>(tape, with_rows(states.extents(), rows.size()), false);
  gather_rows_to(tape.context(), states, empty, rows, out.data());
  return out;
}

/// Latents on a tape in the storage of the network that reads them: as they are, or a rounded copy.
template <class T, class Latent, class Device>
Var<T, 4, Device> network_input(Tape<Device>& tape, const View<const Latent, 4, Device>& latents) {
  if constexpr (std::is_same_v<T, Latent>) {
    return constant(tape, latents);
  } else {
    const auto rounded = make_output<T>(tape, latents.extents, false);
    evaluate(&tape.context(), rounded.view(), latents);
    return rounded;
  }
}

/// Gives `tensor` these extents; returns whether it had them.
template <class T, int Rank, class Device>
bool fit(Tensor<T, Rank, Device>& tensor, const Extents<Rank>& extents) {
  if (tensor.data() != nullptr && tensor.extents() == extents) return true;
  tensor = Tensor<T, Rank, Device>(extents);
  return false;
}

/// `time_ids` once per row.
template <class T, class Device>
std::vector<float> repeated_time_ids(const PromptBatch<T, Device>& prompts, index_t rows) {
  std::vector<float> ids;
  for (index_t i = 0; i < rows; ++i) ids.insert(ids.end(), prompts.time_ids.begin(), prompts.time_ids.end());
  return ids;
}

/// ShapeError unless the prompts carry what a UNet with added conditioning needs.
template <class UNet, class T, class Device>
void expect_added_conditioning(const char* operation, const PromptBatch<T, Device>& prompts) {
  if constexpr (UNet::config.addition_width > 0)
    if (prompts.time_ids.size() != 6 || prompts.pooled.size() == 0 || prompts.pooled_empty.size() == 0)
      throw ShapeError(message("[", operation, "] this UNet also needs pooled text and 6 time ids, the prompts have ",
                               prompts.time_ids.size(), " ids; encode them with SdxlTextEncoder"));
}

/// What a UNet reads beside its latents, at addresses that stay from pass to pass while extents do, as RepeatedWork needs.
template <class UNet>
class ConditionBuffers {
 public:
  using T = typename UNet::value_type;
  using Device = typename UNet::device;

  /// Copies the texts of `rows` (see gather_rows_to). Returns whether passes that were captured before read them.
  bool set_texts(const char* operation, Context<Device>& context, const PromptBatch<T, Device>& prompts,
                 std::span<const index_t> rows) {
    expect_added_conditioning<UNet>(operation, prompts);
    bool same = fit(texts_, with_rows(prompts.context.extents(), rows.size()));
    gather_rows_to(context, prompts.context, prompts.context_empty, rows, texts_.data());
    if (prompts.pooled.size() > 0 && prompts.pooled_empty.size() > 0) {
      same = fit(pooled_, with_rows(prompts.pooled.extents(), rows.size())) && same;
      gather_rows_to(context, prompts.pooled, prompts.pooled_empty, rows, pooled_.data());
    }
    auto ids = repeated_time_ids(prompts, static_cast<index_t>(rows.size()));
    same = same && ids == time_ids_;
    time_ids_ = std::move(ids);
    return same;
  }
  /// One per latent. Returns whether passes that were captured before read them.
  bool set_timesteps(Context<Device>& context, std::span<const float> timesteps) {
    const bool same = fit(time_, Extents<2>{static_cast<index_t>(timesteps.size()), UNet::config.level_channels(0)});
    const std::vector<T> features = sinusoidal_features<T>(timesteps, UNet::config.level_channels(0));
    context.copy_from_host(time_.data(), features.data(), features.size() * sizeof(T));
    return same;
  }

  Var<T, 3, Device> texts(Tape<Device>& tape) const { return constant(tape, texts_); }
  Var<T, 2, Device> pooled(Tape<Device>& tape) const { return constant(tape, pooled_); }
  Var<T, 2, Device> time_features(Tape<Device>& tape) const { return constant(tape, time_); }
  std::span<const float> time_ids() const { return time_ids_; }

  UNetCondition<T, Device> on(Tape<Device>& tape) const {
    UNetCondition<T, Device> condition{{}, texts(tape), {}, {}, time_features(tape)};
    if constexpr (UNet::config.addition_width > 0) {
      condition.text_embedding = pooled(tape);
      condition.time_ids = time_ids_;
    }
    return condition;
  }

 private:
  Tensor<T, 3, Device> texts_;
  Tensor<T, 2, Device> pooled_, time_;
  std::vector<float> time_ids_;
};

}  // namespace detail

/// Unguided prediction on a tape: `latents` [n, h, w, c], row i at timesteps[i] under prompt rows[i], or under the empty prompt
/// where rows[i] is detail::empty_prompt -> [n, h, w, c]. With m n rows: all latents under the first n, then again under the
/// next; what comes before the text in the network is computed once -> [m n, h, w, c].
template <class UNet, class T, class Device>
Var<T, 4, Device> conditional_prediction(UNet& unet, const PromptBatch<T, Device>& prompts, std::span<const index_t> rows,
                                         const Var<T, 4, Device>& latents, std::span<const float> timesteps) {
  auto& tape = latents.tape();
  UNetCondition<T, Device> condition{timesteps, detail::gathered_rows(tape, prompts.context, prompts.context_empty, rows), {}, {}};
  std::vector<float> time_ids;
  if constexpr (UNet::config.addition_width > 0) {
    detail::expect_added_conditioning<UNet>("conditional_prediction", prompts);
    condition.text_embedding = detail::gathered_rows(tape, prompts.pooled, prompts.pooled_empty, rows);
    time_ids = detail::repeated_time_ids(prompts, static_cast<index_t>(rows.size()));
    condition.time_ids = time_ids;
  }
  return unet(latents, condition);
}

/// Guided prediction on a tape, by one UNet pass: `latents` [n, h, w, c], row i belongs to prompt rows[i] at timesteps[i];
/// the rows [u ; c] are combined to eps_u + w (eps_c - eps_u), [n, h, w, c]. In float also of a 16-bit network, whose
/// rounding the weights w and 1 - w would multiply.
template <class UNet, class T, class Device>
Var<compute_t<T>, 4, Device> guided_prediction(UNet& unet, const PromptBatch<T, Device>& prompts,
                                               std::span<const index_t> rows, const Var<T, 4, Device>& latents,
                                               std::span<const float> timesteps, double guidance_scale) {
  return scoped(latents.tape(), [&] {
    const auto halves = detail::unguided_and_guided(rows);
    const auto both = conditional_prediction(unet, prompts, std::span<const index_t>(halves), latents, timesteps);
    return Var<compute_t<T>, 4, Device>(guided_rows(both, guidance_scale));
  });
}

/// The same under a condition with the rows [u ; c].
template <class UNet, class T, class Device>
Var<compute_t<T>, 4, Device> guided_prediction(UNet& unet, const UNetCondition<T, Device>& condition,
                                               const Var<T, 4, Device>& latents, double guidance_scale) {
  return scoped(latents.tape(), [&] {
    const auto both = unet(latents, condition);
    return Var<compute_t<T>, 4, Device>(guided_rows(both, guidance_scale));
  });
}

/// Satisfies NoisePredictor: predicts for row b of a batch under prompt b. At scale 1 there is nothing to guide, and the
/// unconditional half is not computed. On devices that can, passes of one size are captured once and replayed.
template <class UNet>
class GuidedDenoiser {
 public:
  using T = typename UNet::value_type;
  using Device = typename UNet::device;

  /// `guidance_rescale` (0: off) is for v-prediction models with zero terminal SNR, usually 0.7; see rescale_guidance.
  GuidedDenoiser(Tape<Device>& tape, UNet& unet, double guidance_scale, double guidance_rescale = 0)
      : tape_(tape), unet_(unet), scale_(guidance_scale), rescale_(guidance_rescale) {}

  /// Copies the prompts. Keys and values of their text are computed once: until the next call the UNet's weights may not
  /// change.
  void set_prompts(const PromptBatch<T, Device>& prompts) {
    std::vector<index_t> rows(static_cast<std::size_t>(prompts.size()));
    std::iota(rows.begin(), rows.end(), index_t{0});
    prompts_ = prompts.size();
    if (scale_ != 1) rows = detail::unguided_and_guided(std::span<const index_t>(rows));
    if (!condition_.set_texts("GuidedDenoiser", tape_.context(), prompts, std::span<const index_t>(rows))) pass_.reset();
    kept_.clear();
    text_is_kept_ = false;
  }

  void predict(View<const T, 4, Device> latents, double timestep, View<T, 4, Device> prediction) {
    predict_guided(latents, timestep, prediction);
  }
  /// Latents in float around a 16-bit network: the last steps add less than the spacing of 16-bit numbers.
  void predict(View<const compute_t<T>, 4, Device> latents, double timestep,
               View<compute_t<T>, 4, Device> prediction) requires(!std::is_same_v<T, compute_t<T>>) {
    predict_guided(latents, timestep, prediction);
  }

 private:
  template <class Latent>
  void predict_guided(const View<const Latent, 4, Device>& latents, double timestep,
                      const View<Latent, 4, Device>& prediction) {
    if (prompts_ < 0) throw ValueError("[GuidedDenoiser] set_prompts() first");
    if (latents.extent(0) != prompts_)
      throw ShapeError(message("[GuidedDenoiser] ", latents.extent(0), " latents, ", prompts_, " prompts"));
    auto& context = tape_.context();
    const auto guard = tape_.inference();
    const auto keeping = tape_.keeping(kept_);
    const auto start = tape_.snapshot();
    const std::vector<float> timesteps(static_cast<std::size_t>(prompts_), static_cast<float>(timestep));
    const bool known = detail::fit(input_, latents.extents);
    if (!condition_.set_timesteps(context, timesteps) || !known) pass_.reset();
    evaluate(&context, input_.view(), latents);
    run_pass();
    const View<const T, 4, Device> rows = output_;  // [2n, h, w, c], at scale 1 [n, h, w, c]
    if (scale_ == 1) {
      evaluate(&context, prediction, 1.0 * rows);
    } else {
      evaluate(&context, prediction, guided_rows(rows, scale_));
      if (rescale_ != 0)
        rescale_guidance<Latent, Device, T>(context, prediction, rows.slice(0, rows.extent(0) / 2, rows.extent(0)),
                                            rescale_);
    }
    tape_.rewind(start);
  }

  /// The first pass under new texts or other adapters fills what is kept of the texts, so it is not like the others.
  void run_pass() {
    const auto pass = [this] { output_ = unet_(constant(tape_, input_), condition_.on(tape_)).view(); };
    if (tape_.adapters() != adapters_) {
      adapters_ = tape_.adapters();
      text_is_kept_ = false;
      pass_.reset();
    }
    if (!std::exchange(text_is_kept_, true)) return pass();
    pass_.begin(tape_.context());
    pass_.run(tape_.context(), pass);
  }

  Tape<Device>& tape_;
  UNet& unet_;
  double scale_, rescale_;
  index_t prompts_ = -1;
  detail::ConditionBuffers<UNet> condition_;
  Tensor<T, 4, Device> input_;
  View<const T, 4, Device> output_;  ///< of the last pass, until the tape is rewound
  RepeatedWork<Device> pass_;
  KeptProjections<Device> kept_;
  bool text_is_kept_ = false, adapters_ = true;
};

}  // namespace lpo::inline LPO_ABI
