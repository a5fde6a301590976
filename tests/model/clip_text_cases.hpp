// SPDX-License-Identifier: MIT
// CLIPTextModel on any device against transformers: hidden states, pooling, projection and gradients.
#pragma once

#include <memory>

#include <lpo/autograd/reduce.hpp>
#include <lpo/model/clip_text.hpp>

#include "model_goldens.hpp"

namespace clip_text_cases {

using namespace lpo;

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

  auto context = testing::test_context<Device>(2);
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

}  // namespace clip_text_cases
