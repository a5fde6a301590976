// SPDX-License-Identifier: MIT
// Checkpoint folders and the metrics log: whole or not at all, newest first, damaged files named.
#include <doctest/doctest.h>

#include <cmath>
#include <fstream>

#include <lpo/train/latent_pairs.hpp>
#include <lpo/train/metrics.hpp>
#include <lpo/train/rollout_run.hpp>
#include <lpo/train/training_checkpoint.hpp>

#include "../io/temporary_directory.hpp"

using namespace lpo;

namespace {
TrainingState state_of(std::vector<float>& values, index_t step) {
  TrainingState state;
  state.step = step;
  state.settings["seed"] = 1;
  state.buffers = {{"weights", values}};
  return state;
}
}  // namespace

TEST_CASE("the newest complete checkpoint is restored and old ones are removed") {
  TemporaryDirectory folder;
  const CheckpointFolder checkpoints(folder.path(), 2);
  std::vector<float> values{1, 2, 3};
  for (index_t step : {10, 9, 100}) {
    values[0] = static_cast<float>(step);
    checkpoints.save(state_of(values, step));
  }
  CHECK(checkpoints.steps() == std::vector<index_t>{10, 100});
  std::vector<float> loaded(3);
  auto state = state_of(loaded, 0);
  CHECK(checkpoints.resume(state));
  CHECK(state.step == 100);
  CHECK(loaded == std::vector<float>{100, 2, 3});
}

TEST_CASE("nothing to resume from, a half-written folder is ignored") {
  TemporaryDirectory folder;
  const CheckpointFolder checkpoints(folder.path() + "/none", 2);
  std::vector<float> values(1);
  auto state = state_of(values, 0);
  CHECK_FALSE(checkpoints.resume(state));
  std::filesystem::create_directories(folder.path() + "/none/checkpoint-7");
  std::filesystem::create_directories(folder.path() + "/none/.partial-checkpoint-8");
  CHECK_FALSE(checkpoints.resume(state));
}

TEST_CASE("a new run does not begin among the checkpoints of an earlier one") {
  TemporaryDirectory folder;
  const CheckpointFolder checkpoints(folder.path(), 2);
  SoloCommunicator ranks;
  std::vector<float> values{1};
  auto state = state_of(values, 0);
  CHECK_FALSE(begin_together(checkpoints, false, state, ranks));
  CHECK_FALSE(begin_together(checkpoints, true, state, ranks));
  CHECK_FALSE(begin_together(CheckpointFolder("", 0), false, state, ranks));
  for (const index_t step : {900, 1000}) checkpoints.save(state_of(values, step));
  const std::string expected = "[train] the output folder " + folder.path() +
                               " has checkpoints of an earlier run; set resume to go on with it, or use another folder";
  CHECK_THROWS_WITH_AS(begin_together(checkpoints, false, state, ranks), expected.c_str(), ValueError);
  CHECK(begin_together(checkpoints, true, state, ranks));
  CHECK(state.step == 1000);
  checkpoints.clear();
  CHECK(std::filesystem::is_empty(folder.path()));
  CHECK_FALSE(begin_together(checkpoints, false, state, ranks));
}

TEST_CASE("damaged checkpoints are refused by name and change nothing") {
  TemporaryDirectory folder;
  const CheckpointFolder checkpoints(folder.path(), 0);
  std::vector<float> values{5, 6};
  checkpoints.save(state_of(values, 1));
  const std::string base = folder.path() + "/checkpoint-1/";
  std::vector<float> other(3, 9.0f);
  auto wrong_size = state_of(other, 0);
  CHECK_THROWS_WITH_AS(checkpoints.resume(wrong_size), doctest::Contains("weights holds 2 values, this model needs 3"), FileError);
  CHECK(other == std::vector<float>(3, 9.0f));
  std::filesystem::resize_file(base + "state.safetensors", 20);
  auto state = state_of(values, 0);
  CHECK_THROWS_WITH_AS(checkpoints.resume(state), doctest::Contains("; remove this folder to begin anew"), FileError);
  checkpoints.save(state_of(values, 2));
  std::filesystem::resize_file(folder.path() + "/checkpoint-2/state.safetensors", 20);
  const std::string told = message_of<FileError>([&] { checkpoints.resume(state); });
  CHECK(told.starts_with("[resume] " + folder.path() + "/checkpoint-2 cannot be read: "));
  CHECK(told.ends_with("; remove this folder to go on from step 1"));
  std::filesystem::remove_all(folder.path() + "/checkpoint-2");
  CHECK_THROWS_WITH_AS(checkpoints.resume(state), doctest::Contains("state.safetensors"), FileError);
  std::ofstream(base + "trainer_state.json") << "{\"step\": ";
  CHECK_THROWS_WITH_AS(checkpoints.resume(state), doctest::Contains("trainer_state.json"), FileError);
}

TEST_CASE("settings that differ are told shortly, long lists by where they begin to differ") {
  TemporaryDirectory folder;
  const CheckpointFolder checkpoints(folder.path(), 0);
  std::vector<float> values{5};
  auto saved = state_of(values, 1), now = saved;
  saved.settings["list"] = std::vector<int>(20, 7);
  saved.settings["pair"] = {1, 2};
  saved.settings["gone"] = std::vector<int>(60, 1);
  checkpoints.save(saved);
  now.settings["list"] = std::vector<int>(20, 7);
  now.settings["list"][3] = now.settings["list"][19] = 8;
  now.settings["pair"] = {1, 3};
  const std::string told = message_of<FileError>([&] { checkpoints.resume(now); });
  CAPTURE(told);
  CHECK(has_part(told, "\n  list: 2 of 20 differ, first number 3: saved 7, now 8\n"));
  CHECK(has_part(told, "\n  pair: saved [1,2], now [1,3]\n"));
  CHECK(has_part(told, "\n  gone: saved [1,1,1"));
  CHECK(has_part(told, "..., now nothing\n"));
  for (std::size_t at = 0, next = 0; at < told.size(); at = next + 1) {
    next = std::min(told.find('\n', at), told.size());
    if (at > 0) CHECK(next - at < 120);
  }
}

TEST_CASE("the log drops lines after the checkpoint and cut-off lines") {
  TemporaryDirectory folder;
  const std::string path = folder.path() + "/metrics.jsonl";
  std::ofstream(path) << "{\"step\":0,\"a\":1}\n{\"step\":1,\"a\":2}\n{\"step\":2,\"a\":3}\n{\"step\":3,\"a";
  {
    MetricsLog log(path, 2);
    log.write(2, {{"a", 7}, {"bad", NAN}});
  }
  CHECK(read_text_file(path) == "{\"step\":0,\"a\":1}\n{\"step\":1,\"a\":2}\n{\"step\":2,\"a\":7.0,\"bad\":null}\n");
}

TEST_CASE("batches visit every example once per epoch and depend on seed and step alone") {
  BatchOrder order(3, 4, 10, 4), again(3, 4, 10, 4);
  std::vector<int> seen(10);
  for (index_t step = 0; step < 5; ++step)
    for (index_t i : order.at(step)) ++seen[static_cast<std::size_t>(i)];
  CHECK(seen == std::vector<int>(10, 2));
  CHECK(again.at(3) == order.at(3));
  CHECK_THROWS_AS(BatchOrder(1, 1, 0, 4), ValueError);
}

TEST_CASE("a checkpoint of the same step is replaced, further files are inside, and a link names the newest") {
  TemporaryDirectory folder;
  const CheckpointFolder checkpoints(folder.path(), 2);
  std::vector<float> values{1};
  checkpoints.save(state_of(values, 4));
  values[0] = 2;
  checkpoints.save(state_of(values, 4), [](const std::string& into) { write_text_file(into + "/lora", "L"); });
  std::vector<float> loaded(1);
  auto state = state_of(loaded, 0);
  CHECK(checkpoints.resume(state));
  CHECK(loaded[0] == 2);
  CHECK(checkpoints.contains(4));
  CHECK_FALSE(checkpoints.contains(5));
  CHECK(read_text_file(folder.path() + "/latest/lora") == "L");
  for (const index_t step : {5, 6, 7}) checkpoints.save(state_of(values, step));
  CHECK(std::filesystem::read_symlink(folder.path() + "/latest") == "checkpoint-7");
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder.path()))
    names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  CHECK(names == std::vector<std::string>{"checkpoint-6", "checkpoint-7", "latest"});
}

TEST_CASE("a checkpoint that could not be completed is not there, and what is left of one is cleared away") {
  TemporaryDirectory folder;
  const CheckpointFolder checkpoints(folder.path(), 0);
  std::vector<float> values{1};
  CHECK_THROWS_AS(checkpoints.save(state_of(values, 1), [](const std::string&) { throw FileError("disk full"); }),
                  FileError);
  CHECK(checkpoints.steps().empty());
  std::filesystem::create_directories(folder.path() + "/.removed-checkpoint-9");
  checkpoints.save(state_of(values, 2));
  CHECK(checkpoints.steps() == std::vector<index_t>{2});
  CHECK_FALSE(std::filesystem::exists(folder.path() + "/.removed-checkpoint-9"));
  CHECK_FALSE(std::filesystem::exists(folder.path() + "/.partial-checkpoint-1"));
}

TEST_CASE("the mark of prompts is what older checkpoints hold") {
  const PromptTokens prompts{.tokens = 2, .ids = {1, 2, 3, 4}, .reward_tokens = 1, .reward_ids = {5, -1}};
  CHECK(fingerprint(prompts) == "2 prompts, 13856327802986016821");  // FNV-1a over the ids as unsigned 32-bit words
}
