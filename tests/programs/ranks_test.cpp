// SPDX-License-Identifier: MIT
// Training programs under mpirun: the results of one process, who talks and writes, a rank that dies, stopping
// together.
#if defined(LPO_MPIEXEC) && defined(LPO_PROGRAM_TRAIN_LPO) && defined(LPO_PROGRAM_TRAIN_LRM)
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <iterator>

#include <lpo/io/safetensors.hpp>
#include <lpo/train/metrics.hpp>
#include <lpo/train/training_checkpoint.hpp>

#include "preference_pictures.hpp"
#include "program.hpp"
#include "tiny_reward_model.hpp"
#include "training_runs.hpp"

namespace {

/// A run of train_lpo of six iterations, in which rounding stays rounding (see tests/distributed/rank_cases.hpp).
struct RankSetting {
  TemporaryDirectory directory;
  std::string lrm = directory.file("lrm");
  std::string prompts = write_prompts(directory);

  RankSetting() { write_reward_model(lrm); }

  std::vector<std::string> arguments(const std::string& out, const std::vector<std::string>& more = {}) const {
    const auto changes = words(
        "--max_train_iterations 6 --sample_batch_size 3 --train_batch_size 5 --beta 20 --learning_rate 0.05 "
        "--adam_epsilon 1",
        {"--lrm", lrm});
    return changed(changed(lpo_arguments(prompts, directory.file(out)), changes), more);
  }
};

std::vector<std::string> over_ranks(int count, const std::string& program, const std::vector<std::string>& arguments) {
  std::vector<std::string> all = {LPO_MPIEXEC, "-n", std::to_string(count), program};
  all.insert(all.end(), arguments.begin(), arguments.end());
  return all;
}

ProgramResult run_ranks(int count, const std::string& program, const std::vector<std::string>& arguments) {
  auto all = over_ranks(count, program, arguments);
  return run_program(all.front(), {all.begin() + 1, all.end()});
}

/// The largest difference between tensors of two files.
double difference(const std::string& one, const std::string& other) {
  const lpo::SafetensorsFile a(one), b(other);
  REQUIRE(a.keys() == b.keys());
  double largest = 0;
  for (const auto& key : a.keys()) {
    const auto x = a.read_vector<float>(key), y = b.read_vector<float>(key);
    REQUIRE(x.size() == y.size());
    for (std::size_t i = 0; i < x.size(); ++i)
      largest = std::max(largest, std::fabs(static_cast<double>(x[i]) - static_cast<double>(y[i])));
  }
  return largest;
}

std::size_t occurrences(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

/// A process that runs `program` for `folder`.
pid_t process_of(const std::string& program, const std::string& folder) {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    const auto target = std::filesystem::read_symlink(entry.path() / "exe", error);
    if (error || target != std::filesystem::canonical(program)) continue;
    std::ifstream file(entry.path() / "cmdline");
    const std::string command((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
    if (command.find(folder) != std::string::npos) return std::stoi(entry.path().filename().string());
  }
  return 0;
}

}  // namespace

TEST_CASE("mpirun train_lpo makes the LoRA that one process makes; rank 0 alone talks and writes") {
  const RankSetting setting;
  const auto alone = run_program(LPO_PROGRAM_TRAIN_LPO, setting.arguments("alone"));
  CAPTURE(alone.printed);
  REQUIRE(alone.status == 0);
  for (const int ranks : {2, 3}) {
    const std::string name = "ranks-" + std::to_string(ranks), out = setting.directory.file(name);
    const std::vector<std::string> validated = {"--validation_prompt", "a red circle", "--num_validation_images", "1"};
    const auto run = run_ranks(ranks, LPO_PROGRAM_TRAIN_LPO, setting.arguments(name, validated));
    CAPTURE(run.printed);
    REQUIRE(run.status == 0);
    CHECK(occurrences(run.printed, out + "/pytorch_lora_weights.safetensors") == 1);
    CHECK(occurrences(run.printed, "reading " + tiny_model) == 1);
    const std::string lora = "/pytorch_lora_weights.safetensors";
    CHECK(difference(out + lora, setting.directory.file("alone") + lora) < 1e-5);
    const auto lines = lpo::read_metrics(out + "/metrics.jsonl");
    const auto expected = lpo::read_metrics(setting.directory.file("alone/metrics.jsonl"));
    REQUIRE(lines.size() == expected.size());
    for (std::size_t i = 0; i < lines.size(); ++i)
      for (const char* key : {"train_loss", "grad_norm", "kept", "reward_mean", "reward_std", "global_step"})
        CHECK(lines[i][key].get<double>() == doctest::Approx(expected[i][key].get<double>()).epsilon(1e-3));
    CHECK(lpo::file_exists(out + "/report.html"));
    int events = 0;
    for (const auto& entry : std::filesystem::directory_iterator(out))
      events += entry.path().filename().string().starts_with("events.out.tfevents.") ? 1 : 0;
    CHECK(events == 1);
  }
}

TEST_CASE("a rank that is killed ends the job; its last checkpoint is whole, and any number of ranks goes on") {
  const RankSetting setting;
  REQUIRE(run_program(LPO_PROGRAM_TRAIN_LPO, setting.arguments("whole")).status == 0);
  const auto command = over_ranks(3, LPO_PROGRAM_TRAIN_LPO, setting.arguments("cut"));
  const std::string out = setting.directory.file("cut"), log = setting.directory.file("log");
  {
    RunningProgram job(command.front(), {command.begin() + 1, command.end()}, log);
    REQUIRE(job.runs_until([&] { return !lpo::CheckpointFolder(out, 0).steps().empty(); }));
    const pid_t rank = process_of(LPO_PROGRAM_TRAIN_LPO, out);
    REQUIRE(rank > 0);
    ::kill(rank, SIGKILL);
    CHECK(job.wait() != 0);
  }
  CAPTURE(setting.directory.read("log"));
  CHECK(has_part(setting.directory.read("log"), "illed"));  // mpirun's words: "exited on signal 9 (Killed)"
  for (int i = 0; i < 100 && process_of(LPO_PROGRAM_TRAIN_LPO, out) > 0; ++i)  // mpirun may end a moment before them
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  CHECK(process_of(LPO_PROGRAM_TRAIN_LPO, out) == 0);
  for (const lpo::index_t step : lpo::CheckpointFolder(out, 0).steps())
    CHECK_NOTHROW(lpo::SafetensorsFile(out + "/checkpoint-" + std::to_string(step) + "/state.safetensors")
                      .read_vector<float>("weights"));
  const auto resumed = run_ranks(2, LPO_PROGRAM_TRAIN_LPO, setting.arguments("cut", {"--resume"}));
  CAPTURE(resumed.printed);
  REQUIRE(resumed.status == 0);
  CHECK(difference(out + "/pytorch_lora_weights.safetensors",
                   setting.directory.file("whole/pytorch_lora_weights.safetensors")) < 1e-5);
}

TEST_CASE("a signal to one rank stops all of them with a checkpoint") {
  const RankSetting setting;
  const std::vector<std::string> long_run = {"--max_train_iterations", "500", "--checkpointing_iterations", "1000"};
  const auto command = over_ranks(2, LPO_PROGRAM_TRAIN_LPO, setting.arguments("out", long_run));
  const std::string out = setting.directory.file("out"), metrics = out + "/metrics.jsonl";
  RunningProgram job(command.front(), {command.begin() + 1, command.end()}, setting.directory.file("log"));
  REQUIRE(job.runs_until([&] { return lpo::file_exists(metrics) && lpo::read_metrics(metrics).size() >= 2; }));
  ::kill(process_of(LPO_PROGRAM_TRAIN_LPO, out), SIGINT);
  CHECK(job.wait() == 130);
  const std::string printed = setting.directory.read("log");
  CAPTURE(printed);
  CHECK(occurrences(printed, "train_lpo: stopped: [LpoTrainer] cancelled after iteration ") == 1);
  CHECK(lpo::CheckpointFolder(out, 0).steps().size() == 1);
  CHECK(has_part(setting.directory.read("out/report.html"), "LPO stopped"));
}

TEST_CASE("what all ranks refuse is told once") {
  const RankSetting setting;
  const auto run = run_ranks(2, LPO_PROGRAM_TRAIN_LPO, setting.arguments("out", {"--sample_batch_size", "1"}));
  CAPTURE(run.printed);
  CHECK(run.status == 1);
  CHECK(occurrences(run.printed, "nothing for some of 2 ranks") == 1);
  CHECK(occurrences(run_ranks(2, LPO_PROGRAM_TRAIN_LPO, {"--help"}).printed, "mpirun -n N") == 1);
}

TEST_CASE("mpirun train_lrm trains the reward model that one process trains, encoding the pictures once") {
  const PreferencePictures fixture;
  const auto arguments = [&](const std::string& out) {
    return words(
        "--threads 1 --max_train_steps 6 --train_batch_size 5 --num_validation_pairs 6 --validation_steps 3 "
        "--checkpointing_steps 2 --learning-rate 0.01 --adam_epsilon 1 --lr_scheduler constant --seed 3",
        {"--pretrained_model_name_or_path", tiny_model, "--train_data_dir", fixture.pictures, "--output_dir",
         fixture.directory.file(out)});
  };
  REQUIRE(run_program(LPO_PROGRAM_TRAIN_LRM, arguments("alone")).status == 0);
  const auto run = run_ranks(3, LPO_PROGRAM_TRAIN_LRM, arguments("ranks"));
  CAPTURE(run.printed);
  REQUIRE(run.status == 0);
  CHECK(occurrences(run.printed, "train: kept 19 of 19 win-lose pairs") == 1);
  for (const char* which : {"lrm-last", "lrm-best"}) {
    const std::string file = std::string("/") + which + "/unet/diffusion_pytorch_model.safetensors";
    CHECK(difference(fixture.directory.file("ranks") + file, fixture.directory.file("alone") + file) < 1e-5);
  }
  CHECK(lpo::read_metrics(fixture.directory.file("ranks/metrics.jsonl")).size() == 6);
  CHECK(fixture.directory.read("ranks/validation.json") == fixture.directory.read("alone/validation.json"));
}
#endif
