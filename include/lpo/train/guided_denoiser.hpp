// SPDX-License-Identifier: MIT
// GuidedDenoiser: a UNet and a batch of prompts as a NoisePredictor with classifier-free guidance.
#pragma once

#include <span>
#include <vector>

#include <lpo/autograd/concat.hpp>
#include <lpo/diffusion/guidance.hpp>
#include <lpo/diffusion/noise_predictor.hpp>
#include <lpo/model/unet.hpp>

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

/// One row of `states` [n, ...] for each number in `rows`, or of `empty` [1, ...] for empty_prompt. Dense, on the tape, in as
/// few copies as the rows have runs of neighbours.
template <class T, int Rank, class Device>
Var<T, Rank, Device> gathered_rows(Tape<Device>& tape, const Tensor<T, Rank, Device>& states, const Tensor<T, Rank, Device>& empty,
                                   std::span<const index_t> rows) {
  auto extents = states.extents();
  extents[0] = static_cast<index_t>(rows.size());
  const index_t width = empty.size();
  const auto out = make_output<T>(tape, extents, false);
  const index_t n = static_cast<index_t>(rows.size());
  for (index_t begin = 0, end = 0; begin < n; begin = end) {
    const index_t first = rows[static_cast<std::size_t>(begin)];
    const auto follows = [&](index_t row, index_t distance) { return row == (first == empty_prompt ? first : first + distance); };
    do ++end;
    while (end < n && follows(rows[static_cast<std::size_t>(end)], end - begin));
    const T* const source = first == empty_prompt ? empty.data() : states.data() + first * width;
    kernel::CopyRows<Device>::run(tape.context(), end - begin, width, source, first == empty_prompt ? 0 : width,
                                  out.data() + begin * width, width, false);
  }
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

/// Both predictions on a tape, by one UNet pass. `latents` [n, h, w, c], row i belongs to prompt rows[i] at timesteps[i] ->
/// [2n, h, w, c], the rows [u ; c].
template <class UNet, class T, class Device>
Var<T, 4, Device> paired_prediction(UNet& unet, const PromptBatch<T, Device>& prompts, std::span<const index_t> rows,
                                    const Var<T, 4, Device>& latents, std::span<const float> timesteps) {
  std::vector<index_t> halves(rows.size(), detail::empty_prompt);
  halves.insert(halves.end(), rows.begin(), rows.end());
  return conditional_prediction(unet, prompts, std::span<const index_t>(halves), latents, timesteps);
}

/// Guided prediction on a tape: the rows [u ; c] combined to eps_u + w (eps_c - eps_u), [n, h, w, c]. In float also of
/// a 16-bit network, whose rounding the weights w and 1 - w would multiply.
template <class UNet, class T, class Device>
Var<compute_t<T>, 4, Device> guided_prediction(UNet& unet, const PromptBatch<T, Device>& prompts,
                                               std::span<const index_t> rows, const Var<T, 4, Device>& latents,
                                               std::span<const float> timesteps, double guidance_scale) {
  return scoped(latents.tape(), [&] {
    const auto both = paired_prediction(unet, prompts, rows, latents, timesteps);
    return Var<compute_t<T>, 4, Device>(guided_rows(both, guidance_scale));
  });
}

/// Satisfies NoisePredictor: predicts for row b of a batch under prompt b. At scale 1 there is nothing to guide, and the
/// unconditional half is not computed.
template <class UNet>
class GuidedDenoiser {
 public:
  using T = typename UNet::value_type;
  using Device = typename UNet::device;

  /// `guidance_rescale` (0: off) is for v-prediction models with zero terminal SNR, usually 0.7; see rescale_guidance.
  GuidedDenoiser(Tape<Device>& tape, UNet& unet, double guidance_scale, double guidance_rescale = 0)
      : tape_(tape), unet_(unet), scale_(guidance_scale), rescale_(guidance_rescale) {}

  /// The prompts must outlive their use. Keys and values of their text are computed once: until the next call the UNet's
  /// weights may not change.
  void set_prompts(const PromptBatch<T, Device>& prompts) {
    prompts_ = &prompts;
    kept_.clear();
    rows_.resize(static_cast<std::size_t>(prompts.size()));
    for (std::size_t i = 0; i < rows_.size(); ++i) rows_[i] = static_cast<index_t>(i);
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
    if (prompts_ == nullptr) throw ValueError("[GuidedDenoiser] set_prompts() first");
    if (latents.extent(0) != prompts_->size())
      throw ShapeError(message("[GuidedDenoiser] ", latents.extent(0), " latents, ", prompts_->size(), " prompts"));
    const auto guard = tape_.inference();
    const auto keeping = tape_.keeping(kept_);
    const auto start = tape_.snapshot();
    const std::vector<float> timesteps(rows_.size(), static_cast<float>(timestep));
    const auto input = detail::network_input<T>(tape_, latents);
    if (scale_ == 1) {
      evaluate(&tape_.context(), prediction, 1.0 * conditional(input, timesteps));
      tape_.rewind(start);
      return;
    }
    const auto both = paired_prediction(unet_, *prompts_, std::span<const index_t>(rows_), input,
                                        std::span<const float>(timesteps));  // [2n, h, w, c]
    const View<const T, 4, Device> rows = both.view();
    evaluate(&tape_.context(), prediction, guided_rows(rows, scale_));
    if (rescale_ != 0)
      rescale_guidance<Latent, Device, T>(tape_.context(), prediction,
                                          rows.slice(0, rows.extent(0) / 2, rows.extent(0)), rescale_);
    tape_.rewind(start);
  }

  Var<T, 4, Device> conditional(const Var<T, 4, Device>& latents, std::span<const float> timesteps) {
    UNetCondition<T, Device> condition{timesteps, constant(tape_, prompts_->context), {}, {}};
    std::vector<float> time_ids;
    if constexpr (UNet::config.addition_width > 0) {
      detail::expect_added_conditioning<UNet>("GuidedDenoiser", *prompts_);
      condition.text_embedding = constant(tape_, prompts_->pooled);
      time_ids = detail::repeated_time_ids(*prompts_, prompts_->size());
      condition.time_ids = time_ids;
    }
    return unet_(latents, condition);
  }

  Tape<Device>& tape_;
  UNet& unet_;
  double scale_, rescale_;
  const PromptBatch<T, Device>* prompts_ = nullptr;
  std::vector<index_t> rows_;
  KeptProjections<Device> kept_;
};

}  // namespace lpo::inline LPO_ABI
