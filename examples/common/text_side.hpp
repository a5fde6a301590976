// SPDX-License-Identifier: MIT
// The text side of a model: tokenizers and text encoders, one of each or two (SDXL).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include <lpo/io/clip_tokenizer.hpp>
#include <lpo/nn/parameter_store.hpp>
#include <lpo/train/clip_text_encoder.hpp>
#include <lpo/train/latent_scorer.hpp>
#include <lpo/train/sdxl_text_encoder.hpp>

#include "device.hpp"
#include "model_families.hpp"

namespace examples {

/// Says on stderr what of prompts a text encoder does not read, because they have more tokens than it has positions.
inline void warn_cut_prompts(const char* program, const lpo::ClipTokenizer& tokenizer,
                             const std::vector<std::string>& prompts) {
  const auto most = static_cast<std::ptrdiff_t>(tokenizer.model_max_length()) - 2;  // with begin and end
  constexpr int shown = 3;
  int cut = 0;
  for (const std::string& prompt : prompts) {
    const auto ids = tokenizer.tokenize(prompt);
    if (std::ssize(ids) <= most || ++cut > shown) continue;
    std::fprintf(stderr, "%s: warning: a prompt has %td tokens, of which the text encoder reads %td; cut off is \"%s\"\n",
                 program, std::ssize(ids), most, tokenizer.decode({ids.begin() + most, ids.end()}).c_str());
  }
  if (cut > shown) std::fprintf(stderr, "%s: warning: so are %d more prompts\n", program, cut - shown);
}

/// Names in the store are "text_encoder" and "text_encoder_2".
template <const ModelFamily& F, class T>
struct TextSide {
  using First = lpo::CLIPTextModel<F.text, T, Device>;
  using Second = lpo::CLIPTextModel<F.two_text_encoders ? F.text_2 : F.text, T, Device>;

  First first;
  std::unique_ptr<Second> second;  ///< SDXL
  std::vector<lpo::ClipTokenizer> tokenizers;

  explicit TextSide(std::vector<lpo::ClipTokenizer> words) : tokenizers(std::move(words)) {
    if constexpr (F.two_text_encoders) second = std::make_unique<Second>();
  }

  void add_to(lpo::ParameterStore<T, Device>& store) {
    store.add("text_encoder", first);
    if (second) store.add("text_encoder_2", *second);
  }

  std::vector<std::int32_t> ids(const std::string& prompt) const {
    std::vector<std::int32_t> all;
    for (const auto& tokenizer : tokenizers) {
      const auto part = tokenizer.encode(prompt);
      all.insert(all.end(), part.begin(), part.end());
    }
    return all;
  }

  /// States of prompts; `negative` stands for the empty prompt, and is the empty prompt if it is empty. `empty` and the
  /// size of the picture are for SDXL.
  lpo::PromptBatch<T, Device> encode(lpo::Tape<Device>& tape, const std::vector<std::string>& prompts,
                                       const std::string& negative, lpo::EmptyPrompt empty, int height, int width) {
    std::vector<std::int32_t> all;
    for (const std::string& prompt : prompts) {
      const auto row = ids(prompt);
      all.insert(all.end(), row.begin(), row.end());
    }
    auto both = encoder(negative, empty, height, width);
    return lpo::encode_prompts<T>(tape, both, std::span<const std::int32_t>(all),
                                  static_cast<lpo::index_t>(prompts.size()));
  }

  /// The same as the TextEncoder that trainers use. It refers to this object.
  auto encoder(const std::string& negative, lpo::EmptyPrompt empty, int height, int width) {
    if constexpr (F.two_text_encoders)
      return lpo::SdxlTextEncoder<First, Second>(first, *second, ids(negative), lpo::sdxl_time_ids(height, width),
                                                 negative.empty() ? empty : lpo::EmptyPrompt::encoded);
    else
      return lpo::ClipTextEncoder<First>(first, ids(negative));
  }
};

}  // namespace examples
