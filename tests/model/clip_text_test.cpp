// SPDX-License-Identifier: MIT
// CLIPTextModel against transformers: hidden states, pooling, projection and gradients; where prompts are pooled;
// sizes.
#include <doctest/doctest.h>

#include <memory>

#include <lpo/autograd/reduce.hpp>
#include <lpo/model/clip_text.hpp>

#include "model_backends.hpp"
#include "model_goldens.hpp"
#include "stored_models.hpp"

using namespace lpo;

namespace {

template <ClipTextConfig C, class T, class Device>
void check_against_transformers(const std::string& which, std::int32_t end_token, double tolerance) {
  const auto file = golden::open("clip_text");
  auto model = std::make_unique<CLIPTextModel<C, T, Device>>();
  model->end_token = end_token;
  ParameterStore<T, Device> store;
  store.add("", *model);
  store.allocate_all_trainable();
  const auto report = load_parameters(store, file, {.file_prefix = which + "/weights/"});
  CHECK(report.unused.empty());
  const auto ids = file.read_vector<std::int32_t>(which + "/in/input_ids");

  Context<Device> context(2);
  Tape<Device> tape(context);
  store.reset_gradients();
  const auto out = (*model)(tape, ids, 3);
  golden::check_value(file, which + "/out/last_hidden_state", out.last_hidden_state, tolerance);
  golden::check_value(file, which + "/out/penultimate", out.penultimate, tolerance);
  const std::string pooled_key = C.projection > 0 ? "text_embeds" : "pooled";
  const auto pooled = C.projection > 0 ? out.text_embedding : out.pooled;
  golden::check_value(file, which + "/out/" + pooled_key, pooled, tolerance);

  const auto to_last = golden::tensor<T, 3, Device>(file, which + "/in/cotangent/last_hidden_state");
  const auto to_penultimate = golden::tensor<T, 3, Device>(file, which + "/in/cotangent/penultimate");
  const auto to_pooled = golden::tensor<T, 2, Device>(file, which + "/in/cotangent/" + pooled_key);
  const Var states = out.last_hidden_state * to_last + out.penultimate * to_penultimate;
  const Var pool = pooled * to_pooled;
  const Var loss = sum(states) + sum(pool);
  backward(loss);
  store.finish_gradients();
  const int key_biases = C.layers;  // whose gradient is zero
  CHECK(golden::check_weight_gradients(file, store, tolerance, which + "/grad/") + key_biases ==
        static_cast<int>(store.entries().size()));
}

}  // namespace

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
