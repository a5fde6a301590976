// SPDX-License-Identifier: MIT
// CLIPTextModel against transformers: hidden states, pooling, projection and gradients; where prompts are pooled;
// sizes.
#include <doctest/doctest.h>

#include "clip_text_cases.hpp"
#include "model_backends.hpp"
#include "model_goldens.hpp"
#include "stored_models.hpp"

using namespace clip_text_cases;

TEST_CASE("CLIP text encoder with quick_gelu equals transformers, forward and gradients") {
  check_against_transformers<golden::quick_text, float, Cpu>("quick", -1, 1e-5);
  check_against_transformers<golden::quick_text, double, Reference>("quick", -1, 2e-7);
}
TEST_CASE("CLIP text encoder with gelu and projection equals transformers, forward and gradients") {
  check_against_transformers<golden::gelu_text, float, Cpu>("gelu", 47, 1e-5);
  check_against_transformers<golden::gelu_text, double, Reference>("gelu", 47, 2e-7);
}

TEST_CASE("prompts that cannot be encoded are refused") {
  const StoredModel<CLIPTextModel<golden::quick_text, float, Cpu>> model;
  Context<Cpu> context(1);
  Tape<Cpu> tape(context);
  const std::vector<std::int32_t> ids(24, 1);
  CHECK_THROWS_WITH_AS((*model)(tape, ids, 5), "[CLIPTextModel] 24 token ids cannot be split into 5 prompts",
                       ShapeError);
  CHECK_THROWS_WITH_AS((*model)(tape, ids, 2),
                       "[CLIPTextModel] prompts of 12 tokens, the model has 11 positions; truncate them", ShapeError);
  CHECK_THROWS_AS((*model)(tape, std::vector<std::int32_t>{48}, 1), ValueError);
}

namespace {
template <ClipTextConfig C>
index_t weights_of() {
  auto model = std::make_unique<CLIPTextModel<C, float, Cpu>>();
  index_t count = 0;
  for_each_parameter<float, Cpu>(*model, [&](const std::string&, AnyParameter<float, Cpu>& p) { count += p.size(); });
  return count;
}
}  // namespace

TEST_CASE("presets have the published sizes") {
  CHECK(weights_of<presets::clip_l>() == 123'060'480);
  CHECK(weights_of<presets::clip_h>() == 340'387'840);
  CHECK(weights_of<presets::clip_bigg>() == 694'659'840);
}
