// SPDX-License-Identifier: MIT
// SdxlTextEncoder: SDXL's two CLIP text encoders and its size conditioning as the TextEncoder that trainers use.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include <lpo/autograd/concat.hpp>
#include <lpo/model/clip_text.hpp>
#include <lpo/train/text_states.hpp>

namespace lpo::inline LPO_ABI {

/// What stands for the empty prompt: the diffusion model was trained with zeros in place of both text states and pooled
/// text, a reward model with the encoded "".
enum class EmptyPrompt { zeros, encoded };

/// The six numbers that SDXL adds to the time embedding, in pixels: original size, upper left corner of the crop,
/// target size; each vertical first. By default the whole of a picture of the target size.
inline std::vector<float> sdxl_time_ids(index_t height, index_t width, index_t top = 0, index_t left = 0) {
  std::vector<float> ids;
  for (const index_t number : {height, width, top, left, height, width}) ids.push_back(static_cast<float>(number));
  return ids;
}

/// Context is [penultimate states of the first ; of the second], pooled text the second's projected embedding (arXiv
/// 2307.01952 section 2.1). Token ids are, for each prompt, those of the first tokenizer followed by those of the
/// second, equally many; the tokenizers differ in what they pad with.
template <class First, class Second>
class SdxlTextEncoder {
 public:
  using T = typename First::value_type;
  using Device = typename First::device;
  static_assert(Second::config.projection > 0, "lpo SdxlTextEncoder: the second encoder must have a projection");

  /// `empty_ids`: those of "", laid out like any prompt's. `time_ids`: see sdxl_time_ids.
  SdxlTextEncoder(First& first, Second& second, std::vector<std::int32_t> empty_ids, std::vector<float> time_ids,
                  EmptyPrompt empty = EmptyPrompt::zeros)
      : first_(first),
        second_(second),
        empty_ids_(std::move(empty_ids)),
        time_ids_(std::move(time_ids)),
        empty_(empty) {
    if (time_ids_.size() != 6)
      throw ValueError(message("[SdxlTextEncoder] ", time_ids_.size(), " time ids, expected 6; see sdxl_time_ids"));
  }

  TextStates<T, Device> encode(Tape<Device>& tape, std::span<const std::int32_t> ids, index_t n) {
    const index_t count = static_cast<index_t>(ids.size()), row = n > 0 ? count / n : 0, tokens = row / 2;
    if (n <= 0 || row * n != count || 2 * tokens != row || tokens == 0)
      throw ShapeError(
          message("[SdxlTextEncoder] ", count, " token ids cannot be split into ", n, " prompts for two encoders"));
    std::vector<std::int32_t> halves[2];
    for (index_t i = 0; i < count; ++i) halves[i % row < tokens ? 0 : 1].push_back(ids[static_cast<std::size_t>(i)]);
    const auto one = first_(tape, halves[0], n);
    const auto two = second_(tape, halves[1], n);
    return {concat_channels(one.penultimate, two.penultimate), two.text_embedding, time_ids_};
  }

  TextStates<T, Device> encode_empty(Tape<Device>& tape) {
    if (empty_ == EmptyPrompt::encoded) return encode(tape, empty_ids_, 1);
    const index_t tokens = static_cast<index_t>(empty_ids_.size()) / 2;
    const auto zeros = [&](const auto& extents) {
      const auto out = make_output<T>(tape, extents, false);
      tape.context().fill_zero(out.data(), static_cast<std::size_t>(out.size()) * sizeof(T));
      return out;
    };
    return {zeros(Extents<3>{1, tokens, First::config.width + Second::config.width}),
            zeros(Extents<2>{1, Second::config.projection}), time_ids_};
  }

  const std::vector<std::int32_t>& empty_ids() const { return empty_ids_; }

 private:
  First& first_;
  Second& second_;
  std::vector<std::int32_t> empty_ids_;
  std::vector<float> time_ids_;
  EmptyPrompt empty_;
};

}  // namespace lpo::inline LPO_ABI
