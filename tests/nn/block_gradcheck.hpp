// SPDX-License-Identifier: MIT
// Finite-difference checks of whole blocks with all their weights, in double on the reference backend.
#pragma once

#include <doctest/doctest.h>

#include <string>

#include <lpo/backend/reference/attention.hpp>
#include <lpo/backend/reference/conv2d.hpp>
#include <lpo/backend/reference/copy.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/gemm.hpp>
#include <lpo/backend/reference/normalization.hpp>
#include <lpo/backend/reference/reduce.hpp>
#include <lpo/backend/reference/resample.hpp>
#include <lpo/nn/parameter_store.hpp>
#include <lpo/testing/gradcheck.hpp>
#include <lpo/testing/random_tensor.hpp>

/// A module with random weights (norms and LoRA matrices too), and options that check every weight.
template <class Module>
struct CheckedModule {
  Module module;
  lpo::ParameterStore<double, lpo::Reference> store;
  lpo::testing::GradcheckOptions options;

  template <class Prepare>
  CheckedModule(Prepare&& prepare, lpo::index_t samples) {
    prepare(module);
    store.add("", module);
    store.allocate_all_trainable();
    store.initialize(3);
    lpo::RandomStream random(11);
    for (const auto& entry : store.entries())
      for (lpo::index_t i = 0; i < entry.parameter->size(); ++i) {
        entry.parameter->data()[i] += 0.3 * static_cast<double>(random.normal());
      }
    options.samples = samples;
    for (const auto& entry : store.entries()) options.parameters.push_back({entry.name, &entry.parameter->slot});
  }
};
