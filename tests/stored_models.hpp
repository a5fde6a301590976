// SPDX-License-Identifier: MIT
// Models with memory, as tests of files need them: one alone in a store, or the parts of a pipeline.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <lpo/io/parameters.hpp>
#include <lpo/model/autoencoder_kl.hpp>
#include <lpo/model/clip_text.hpp>
#include <lpo/model/unet.hpp>

/// A model in a store of its own; no weight is trainable.
template <class Model>
struct StoredModel {
  using T = typename Model::value_type;
  using Device = typename Model::device;
  std::unique_ptr<Model> model = std::make_unique<Model>();
  lpo::ParameterStore<T, Device> store;

  explicit StoredModel(const std::string& name = "") {
    store.add(name, *model);
    store.allocate_frozen();
  }
  /// With the weights of a file.
  template <class Source>
  explicit StoredModel(const Source& source, const lpo::ParameterNames& names) : StoredModel(names.model_prefix) {
    lpo::load_parameters(store, source, names);
  }

  Model& operator*() const { return *model; }
  Model* operator->() const { return model.get(); }
};

/// UNet, autoencoder and one text encoder in one store, with weights that `seed` gives.
template <lpo::UNetConfig U, lpo::VaeConfig V, lpo::ClipTextConfig C>
struct StoredPipeline {
  std::unique_ptr<lpo::UNet2DCondition<U, float, lpo::Reference>> unet{
      new lpo::UNet2DCondition<U, float, lpo::Reference>};
  std::unique_ptr<lpo::AutoencoderKL<V, float, lpo::Reference>> vae{new lpo::AutoencoderKL<V, float, lpo::Reference>};
  std::unique_ptr<lpo::CLIPTextModel<C, float, lpo::Reference>> text{new lpo::CLIPTextModel<C, float, lpo::Reference>};
  lpo::ParameterStore<float, lpo::Reference> store;

  explicit StoredPipeline(std::uint64_t seed, const std::string& text_name = "text_encoder") {
    store.add("unet", *unet);
    store.add("vae", *vae);
    store.add(text_name, *text);
    store.allocate_frozen();
    store.initialize(seed);
  }

  std::vector<float> values() { return {store.values().begin(), store.values().end()}; }
  void clear() { std::fill(store.values().begin(), store.values().end(), 0.0f); }
};
