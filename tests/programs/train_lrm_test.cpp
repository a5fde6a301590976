// SPDX-License-Identifier: MIT
// train_lrm on forty pictures of the tiny world: every form of data, interruptions, the filter, the plan, what is
// refused.
#ifdef LPO_PROGRAM_TRAIN_LRM
#include <doctest/doctest.h>

#include <algorithm>
#include <csignal>
#include <filesystem>
#include <limits>

#include <lpo/io/latent_reward_folder.hpp>
#include <lpo/train/metrics.hpp>
#include <tinyworld/tiny_config.hpp>

#include "preference_pictures.hpp"
#include "program.hpp"
#include "training_runs.hpp"

namespace {

struct Fixture : PreferencePictures {
  std::vector<std::string> arguments(const std::string& data, const std::string& out,
                                     const std::vector<std::string>& more = {}) const {
    return changed(words("--threads 1", {"--pretrained_model_name_or_path", tiny_model, "--train_data_dir", data,
                                         "--output_dir", directory.file(out)}),
                   more);
  }
  ProgramResult train(const std::string& data, const std::string& out,
                      const std::vector<std::string>& more = {}) const {
    return run_program(LPO_PROGRAM_TRAIN_LRM, arguments(data, out, more));
  }
  std::string weights(const std::string& out, const std::string& which = "lrm-last") const {
    return directory.read(out + "/" + which + "/unet/diffusion_pytorch_model.safetensors");
  }
};

const std::vector<std::string> short_run = words(
    "--max_train_steps 6 --train_batch_size 4 --num_validation_pairs 6 --validation_steps 3 --checkpointing_steps 2 "
    "--learning-rate 1e-4 --lr_scheduler constant --seed 3");

/// Starts the program and sends it a signal when it has logged so many steps; its exit status, or 128 + signal.
int interrupted_run(const Fixture& f, const std::string& out, const std::vector<std::string>& options,
                    std::size_t steps, int signal) {
  const std::string log = f.directory.file(out + "/metrics.jsonl");
  RunningProgram program(LPO_PROGRAM_TRAIN_LRM, f.arguments(f.pictures, out, options), f.directory.file("printed.txt"));
  const bool runs = program.runs_until([&] {
    if (!lpo::file_exists(log)) return false;
    const std::string text = lpo::read_text_file(log);
    return static_cast<std::size_t>(std::count(text.begin(), text.end(), '\n')) >= steps;
  });
  if (runs) program.send(signal);
  return program.wait();
}

}  // namespace

TEST_CASE("train_lrm: a folder, shards and a cache give the same training; a reward model comes out") {
  const Fixture f;
  const auto folder = f.train(f.pictures, "folder", short_run);
  CAPTURE(folder.printed);
  REQUIRE(folder.status == 0);
  CHECK(has_part(
      folder.printed,
      "kept 19 of 19 win-lose pairs and 1 of 1 ties (no filter); 0 without a label; 40 pictures, 40 encoded now"));
  const auto shards = f.train(f.shards, "shards", short_run);
  CAPTURE(shards.printed);
  REQUIRE(shards.status == 0);
  const auto cache = f.train(f.directory.file("folder/cache/train"), "cache", short_run);
  CAPTURE(cache.printed);
  REQUIRE(cache.status == 0);
  const std::string log = f.directory.read("folder/metrics.jsonl");
  CHECK(std::count(log.begin(), log.end(), '\n') == 6);
  for (const char* out : {"shards", "cache"}) {
    CHECK(f.directory.read(std::string(out) + "/metrics.jsonl") == log);
    CHECK(f.weights(out) == f.weights("folder"));
    CHECK(f.weights(out, "lrm-best") == f.weights("folder", "lrm-best"));
  }
  for (const char* metric : {"train_loss", "implicit_acc", "train_margin", "grad_norm", "lr", "epoch", "global_step"})
    CHECK(lpo::read_metric(f.directory.file("folder/metrics.jsonl"), metric).value.size() == 6);
  CHECK(lpo::read_metric(f.directory.file("folder/metrics.jsonl"), "validation_accuracy").step ==
        std::vector<double>{2, 5});
  const auto validation =
      lpo::parse_json<lpo::SortedJson>(f.directory.read("folder/validation.json"), "test", "validation.json");
  REQUIRE(validation.size() == 5);
  CHECK(validation[1]["timestep"] == 201);
  CHECK(validation[1]["low"] <= validation[1]["accuracy"]);
  CHECK(validation[1]["pairs"] == 6);
  std::size_t events = 0;
  for (const auto& entry : std::filesystem::directory_iterator(f.directory.file("folder")))
    events += entry.path().filename().string().starts_with("events.out.tfevents.") ? 1 : 0;
  CHECK(events == 1);
  const std::string report = f.directory.read("folder/report.html");
  CHECK(has_part(report, "Trained for 6 steps on 14 pairs of 28 pictures."));
  CHECK(has_part(report, "Accuracy by timestep"));
  for (const char* file : {"unet/config.json", "text_encoder/model.safetensors", "head.safetensors", "state_dict.pt",
                           "tokenizer/vocab.json"})
    CHECK(lpo::file_exists(f.directory.file("folder/lrm-last/") + file));
#ifdef LPO_PROGRAM_SCORE
  const auto scored = run_program(
      LPO_PROGRAM_SCORE, {"--lrm", f.directory.file("folder/lrm-last"), "--pretrained_model_name_or_path", tiny_model,
                          "--prompt", f.scenes.captions[0], "--format", "csv", f.pictures + "/good0.png"});
  CAPTURE(scored.printed);
  CHECK(scored.status == 0);
#endif
}

TEST_CASE("train_lrm: the saved settings repeat a run, and the command line goes before them") {
  const Fixture f;
  REQUIRE(
      f.train(f.pictures, "first", changed(short_run, {"--encode_only", "--validation_timesteps", "1,501"})).status ==
      0);
  CHECK_FALSE(std::filesystem::exists(f.directory.file("first/lrm-last")));
  const std::string config = f.directory.file("first/config.toml");
  const auto again = run_program(LPO_PROGRAM_TRAIN_LRM, {"--config", config, "--encode_only=false", "--output_dir",
                                                         f.directory.file("again"), "--seed", "4"});
  CAPTURE(again.printed);
  REQUIRE(again.status == 0);
  CHECK(has_part(f.directory.read("again/config.toml"), "seed=4"));
  CHECK(lpo::read_metric(f.directory.file("again/metrics.jsonl"), "train_loss").value.size() == 6);
  const auto validation =
      lpo::parse_json<lpo::SortedJson>(f.directory.read("again/validation.json"), "test", "validation.json");
  REQUIRE(validation.size() == 2);
  CHECK(validation[1]["timestep"] == 501);
}

TEST_CASE("train_lrm: killed or told to stop, and resumed, it ends with the same bits") {
  const Fixture f;
  const auto long_run = changed(short_run, {"--max_train_steps", "20", "--validation_steps", "8"});
  REQUIRE(f.train(f.pictures, "whole", long_run).status == 0);
  for (const int signal : {SIGKILL, SIGTERM}) {
    CAPTURE(signal);
    const std::string out = signal == SIGKILL ? "killed" : "stopped";
    const int status = interrupted_run(f, out, long_run, 3, signal);
    CHECK(status == (signal == SIGKILL ? 128 + SIGKILL : 130));
    CHECK_FALSE(std::filesystem::exists(f.directory.file(out + "/lrm-last")));
    CHECK(lpo::file_exists(f.directory.file(out + "/report.html")) == (signal == SIGTERM));
    CHECK(has_part(f.train(f.pictures, out, long_run).printed,
                   "has checkpoints of an earlier run; go on with it with --resume"));
    const auto resumed = f.train(f.pictures, out, changed(long_run, {"--resume"}));
    CAPTURE(resumed.printed);
    REQUIRE(resumed.status == 0);
    CHECK(has_part(resumed.printed, "40 pictures, 0 encoded now"));
    CHECK(f.weights(out) == f.weights("whole"));
    CHECK(f.weights(out, "lrm-best") == f.weights("whole", "lrm-best"));
    CHECK(f.directory.read(out + "/metrics.jsonl") == f.directory.read("whole/metrics.jsonl"));
  }
  const std::string config = f.directory.read("killed/config.toml");
  CHECK(has_part(f.train(f.pictures, "killed", changed(long_run, {"--train_batch_size", "3", "--resume"})).printed,
                 "train_batch_size: saved 4, now 3"));
  CHECK(f.directory.read("killed/config.toml") == config);
}

TEST_CASE("train_lrm: the filter keeps what its strategy says and prints the counts") {
  const Fixture f;
  const auto counts = [&](const std::string& strategy) {
    return f.train(f.pictures, "s" + strategy, {"--encode_only", "--score_file", f.scores, "--mpcf_strategy", strategy})
        .printed;
  };
  CHECK(has_part(
      counts("1"),
      "kept 5 of 19 win-lose pairs and 1 of 1 ties (MPCF strategy 1); 0 without a label; 12 pictures, 12 encoded now"));
  CHECK(has_part(counts("2"), "kept 10 of 19 win-lose pairs and 1 of 1 ties (MPCF strategy 2)"));
  CHECK(has_part(counts("3"), "kept 15 of 19 win-lose pairs and 1 of 1 ties (MPCF strategy 3)"));
  CHECK(has_part(f.train(f.pictures, "s1", {"--encode_only", "--score_file", f.scores}).printed, "was made with"));
}

TEST_CASE("train_lrm: options of the losses and of what is trained") {
  const Fixture f;
  for (const std::vector<std::string>& more :
       std::vector<std::vector<std::string>>{{"--loss", "both", "--pair_noise", "shared", "--freeze-text-encoder"},
                                             {"--batch_unit", "prompt", "--gradient_checkpointing", "--ema_decay",
                                              "0.9", "--lrm_guidance", "1", "--save_dtype", "bfloat16"},
                                             {"--lr_first_step", "official", "--compare_between_timestep",
                                              "--aux_loss_coeff", "0.5", "--noise_offset", "0.05"}}) {
    const std::string out = more[1];
    const auto run =
        f.train(f.shards + "/part-0.tar", out, changed({"--max_train_steps", "2", "--train_batch_size", "3"}, more));
    CAPTURE(run.printed);
    REQUIRE(run.status == 0);
    CHECK_FALSE(std::filesystem::exists(f.directory.file(out + "/lrm-best")));  // there was no validation
  }
  const lpo::SafetensorsFile before(tiny_model + "/text_encoder/model.safetensors"),
      after(f.directory.file("both/lrm-last/text_encoder/model.safetensors"));
  const auto key = after.keys().front();
  CHECK(before.read_vector<float>(key) == after.read_vector<float>(key));
  CHECK(lpo::SafetensorsFile(f.directory.file("prompt/lrm-last/unet/diffusion_pytorch_model.safetensors"))
            .info("conv_in.weight")
            .dtype == lpo::DType::BF16);
  const auto rates = lpo::read_metric(f.directory.file("official/metrics.jsonl"), "lr").value;
  CHECK(rates == std::vector<double>{1e-5, 0});  // the peak, then the warm-up's beginning
  const auto further = f.train(f.pictures, "further", changed(short_run, {"--lrm", f.directory.file("both/lrm-last")}));
  CHECK(further.status == 0);
}

TEST_CASE("train_lrm: a single-scale model is trained, goes on as it was, and is scored as it was") {
  const Fixture f;
  const auto run = f.train(f.pictures, "single", changed(short_run, {"--single_scale", "--lrm_guidance", "2"}));
  CAPTURE(run.printed);
  REQUIRE(run.status == 0);
  const std::string lrm = f.directory.file("single/lrm-last");
  CHECK(lpo::SafetensorsFile(lrm + "/head.safetensors").info("visual_projection.weight").shape ==
        std::vector<lpo::index_t>{128, tinyworld::unet_config.last_channels()});
  const auto features = lpo::read_reward_features(lrm);
  CHECK(features.options == lpo::RewardFeatureOptions{.guidance = 2, .multi_scale = false});

  const auto further = f.train(f.pictures, "further", changed(short_run, {"--lrm", lrm}));
  CAPTURE(further.printed);
  REQUIRE(further.status == 0);
  CHECK(lpo::read_reward_features(f.directory.file("further/lrm-last")).options == features.options);
  CHECK(has_part(f.directory.read("further/config.toml"), "\nsingle_scale=true\n"));
  CHECK(has_part(f.directory.read("further/config.toml"), "\nlrm_guidance=2\n"));
  CHECK(has_part(f.train(f.pictures, "wider", changed(short_run, {"--lrm", lrm, "--single_scale=false"})).printed,
                 "[train_lrm] --single_scale: " + lrm + " was trained with features of the middle alone"));
#ifdef LPO_PROGRAM_SCORE
  const auto scored = run_program(LPO_PROGRAM_SCORE, {"--lrm", lrm, "--pretrained_model_name_or_path", tiny_model,
                                                      "--prompt", "x", f.pictures + "/good0.png"});
  CAPTURE(scored.printed);
  CHECK(scored.status == 0);
  CHECK_FALSE(has_part(scored.printed, "note:"));
#endif
}

TEST_CASE("train_lrm: weights that are not finite are no beginning") {
  const Fixture f;
  const std::string base = f.directory.file("base");
  std::filesystem::copy(tiny_model, base, std::filesystem::copy_options::recursive);
  const std::string weights = base + "/text_encoder/model.safetensors";
  std::string key;
  {
    const lpo::SafetensorsFile file(tiny_model + "/text_encoder/model.safetensors");
    lpo::SafetensorsWriter writer;
    for (const std::string& name : file.keys()) {
      auto values = file.read_vector<float>(name);
      if (name.ends_with("final_layer_norm.weight")) key = name, values[0] = std::numeric_limits<float>::quiet_NaN();
      writer.add_owned(name, lpo::DType::F32, file.info(name).shape, std::move(values));
    }
    std::filesystem::remove(weights);
    writer.write(weights);
  }
  REQUIRE_FALSE(key.empty());
  const auto run = f.train(f.pictures, "out", changed(short_run, {"--pretrained_model_name_or_path", base}));
  CHECK(run.status == 1);
  CHECK_MESSAGE(has_part(run.printed, base + ": weight \"text_encoder." + key + "\" holds NaN or an infinity"), run.printed);
  CHECK_FALSE(std::filesystem::exists(f.directory.file("out/lrm-last")));
}

TEST_CASE("train_lrm: a run that diverges stops with the last good weights and says where") {
  const Fixture f;
  const auto run = f.train(f.pictures, "out",
                           {"--max_train_steps", "20", "--train_batch_size", "4", "--learning_rate", "1e25",
                            "--lr_scheduler", "constant", "--max_skipped_steps", "3"});
  CAPTURE(run.printed);
  CHECK(run.status == 1);
  CHECK(has_part(run.printed, "loss or gradients were not finite in 3 steps in a row"));
  CHECK(has_part(run.printed, "lower learning_rate"));
  CHECK(has_part(f.directory.read("out/report.html"), "Training stopped early"));
  CHECK(lpo::file_exists(f.directory.file("out/not_finite.json")));
  CHECK(lpo::file_exists(f.directory.file("out/lrm-last/head.safetensors")));
}

TEST_CASE("train_lrm: --dry-run prints the plan and touches nothing") {
  const Fixture f;
  const auto plan = f.train(f.shards, "out", changed(short_run, {"--dry-run"}));
  CAPTURE(plan.printed);
  CHECK(plan.status == 0);
  for (const char* part :
       {"2 shards, about", "latents 8 x 8 x 4", "6 of 4 pairs, 4 at once, pair loss", "6 pairs held out",
        "million trained", "memory       about", "s a step", "s a picture, once"})
    CHECK(has_part(plan.printed, part));
  CHECK(memory_for_model(plan.printed) > 11.2e6);
  CHECK(memory_for_model(plan.printed) < 2e8);
  CHECK_FALSE(std::filesystem::exists(f.directory.file("out")));
}

TEST_CASE("train_lrm says what is wrong, where, and what to do") {
  const Fixture f;
  const auto refused = [&](const std::string& data, const std::vector<std::string>& more, const char* words) {
    const auto run = f.train(data, "bad", more);
    CAPTURE(words);
    CHECK_MESSAGE(has_part(run.printed, words), run.printed);
    CHECK(run.status != 0);
    std::filesystem::remove_all(f.directory.file("bad"));
  };
  const auto lines = [&](const std::string& text) { return f.directory.write("lines.jsonl", text + "\n"); };
  refused("nowhere", {}, "[data] nowhere: there is no such file or folder");
  refused(f.directory.path(), {}, "holds neither pairs.jsonl nor *.tar shards nor the cache of an earlier run");
  refused(f.scores, {}, "is no .jsonl, .tar or .safetensors file");
  refused(lines("{\"caption\": \"x\"}"), {}, "lines.jsonl:1: has no \"label_0\"");
  refused(lines("{\"caption\": \"x\", \"winner\": \"a.png\", \"loser\": \"b.png\"}"), {},
          "a.png: No such file or directory");
  refused(lines("{\"caption\": \"x\", \"winner\": \"scores.csv\", \"loser\": \"b.png\"}"), {},
          "scores.csv: is no PNG or JPEG file");
  refused(lines("{\"caption\": \"x\", \"image_0\": \"a\", \"image_1\": \"b\", \"has_label\": false}"), {},
          "none is left to train on: 1 have no label");
  refused(f.directory.write("cut.tar", f.directory.read("shards/part-0.tar").substr(0, 5000)), {},
          "cut.tar: not a whole tar file");
  refused(f.pictures, {"--mpcf_strategy", "3"}, "--mpcf_strategy needs the scores of the pairs; give --score_file");
  refused(f.pictures,
          {"--score_file",
           f.directory.write("short.csv", "different_flag,aesthetic_gap,clipscore_gap,vqascore_gap\n1,1,1,1\n")},
          "short.csv: has 1 lines, but the set has a row 1");
  refused(f.pictures,
          {"--score_file",
           f.directory.write("tie.csv", "different_flag,aesthetic_gap,clipscore_gap,vqascore_gap\n0,1,1,1\n")},
          "tie.csv: line 2 says tie, the labels of row 0 say win-lose");
  refused(f.pictures, {"--learning_rate", "nan"}, "--learning_rate: nan is not a finite number");
  refused(f.pictures, {"--config", f.directory.write("nan.toml", "ema_decay = nan\n")}, "nan is not a finite number");
  refused(f.pictures, {"--resolution", "36"}, "--resolution is 36; this model draws multiples of 16");
  refused(f.pictures, {"--num_validation_pairs", "20", "--max_train_steps", "1"},
          "holding out 20 of 20 pairs leaves none to train on");
  refused(f.pictures, {"--num_validation_pairs", "2", "--validation_data_dir", f.shards}, "give one of them");
  refused(f.pictures, {"--loss", "both", "--micro_batch_size", "2"}, "use micro_batch_size = 0 with it");
  refused(f.pictures, {"--text_projection", f.scores}, "scores.csv");
  refused(f.pictures, {"--config", f.directory.write("wrong.toml", "learning_rat = 1\n")}, "learning_rat");
  REQUIRE(f.train(f.pictures, "good", {"--encode_only"}).status == 0);
  const std::string cache = f.directory.file("good/cache/train");
  refused(cache, {"--score_file", f.scores}, "is encoded already; filter while encoding");
  refused(cache, {"--resolution", "64"}, "cache.json: resolution is 32, this run has 64; encode the pictures again");
}
#endif
