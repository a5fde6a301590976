// SPDX-License-Identifier: MIT
// Weights that are not finite: found and named, and never kept as a checkpoint.
#include <lpo/train/finite_guard.hpp>

#include <doctest/doctest.h>

#include <limits>
#include <string>
#include <vector>

#include <lpo/nn/linear.hpp>

#include "../io/temporary_directory.hpp"

using namespace lpo;

namespace {

/// Two projections, of which the second trains.
struct Model {
  Linear<2, 3, float, Cpu> frozen, trained;
  ParameterStore<float, Cpu> store;

  Model() {
    store.add("frozen", frozen);
    store.add("trained", trained);
    store.allocate([](const std::string& name) { return name.starts_with("trained"); });
    store.initialize(1);
  }
};

}  // namespace

TEST_CASE("the first weight that is not finite is named") {
  Model model;
  CHECK(first_non_finite_weight(model.store).empty());
  CHECK_NOTHROW(expect_finite_weights(model.store, "here"));
  model.trained.bias.data()[2] = std::numeric_limits<float>::infinity();
  CHECK(first_non_finite_weight(model.store) == "trained.bias");
  model.frozen.weight.data()[5] = std::numeric_limits<float>::quiet_NaN();
  CHECK(first_non_finite_weight(model.store) == "frozen.weight");
  CHECK(first_non_finite_weight(model.store, true) == "trained.bias");
  CHECK(message_of<FileError>([&] { expect_finite_weights(model.store, "here"); })
            .starts_with("[model] here: weight \"frozen.weight\" holds NaN or an infinity"));
}

TEST_CASE("checkpoints hold finite weights, and the last good one is the newest of them") {
  const TemporaryDirectory directory;
  const CheckpointFolder folder(directory.file("run"), 0);
  Model model;
  TrainingState state;
  state.buffers.push_back(device_buffer<Cpu>("weights", model.store.trainable_values(),
                                             static_cast<std::size_t>(model.store.trainable_size())));
  state.step = 2;
  CHECK(save_finite(folder, state, model.store));
  state.step = 3;
  model.trained.weight.data()[0] = std::numeric_limits<float>::quiet_NaN();
  CHECK_FALSE(save_finite(folder, state, model.store));
  CHECK(folder.steps() == std::vector<index_t>{2});
  CHECK(save_last_good(folder, state, model.store) == directory.file("run") + "/checkpoint-2");
  CHECK(save_last_good(CheckpointFolder(directory.file("empty"), 0), state, model.store).empty());
  model.trained.weight.data()[0] = 0;
  CHECK(save_last_good(folder, state, model.store) == directory.file("run") + "/checkpoint-3");
  CHECK(folder.steps() == std::vector<index_t>{2, 3});
}
