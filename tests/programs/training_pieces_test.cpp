// SPDX-License-Identifier: MIT
// What training programs share: arithmetic and memory of networks beforehand, settings files, the report page.
#include <doctest/doctest.h>
#include <common/memory_plan.hpp>
#include <common/run_report.hpp>

#include <common/config_file.hpp>
#include <common/console.hpp>
#include <common/option_list.hpp>
#include <common/options.hpp>

#include "../io/temporary_directory.hpp"

TEST_CASE("the arithmetic of a UNet is that of its layers, counted one by one") {
  const auto sd15 = examples::unet_work(lpo::presets::sd15, 64, 64, 77);
  CHECK(sd15.down == doctest::Approx(249.34e9).epsilon(1e-3));
  CHECK(sd15.middle == doctest::Approx(12.10e9).epsilon(1e-3));
  CHECK(sd15.up == doctest::Approx(541.83e9).epsilon(1e-3));
  CHECK(sd15.total() == doctest::Approx(803.27e9).epsilon(1e-3));
  const auto sdxl = examples::unet_work(lpo::presets::sdxl, 128, 128, 77);
  CHECK(sdxl.down == doctest::Approx(2135.68e9).epsilon(1e-3));
  CHECK(sdxl.middle == doctest::Approx(797.29e9).epsilon(1e-3));
  CHECK(sdxl.up == doctest::Approx(3828.26e9).epsilon(1e-3));
  CHECK(examples::text_work(lpo::presets::clip_l) == doctest::Approx(13.30e9).epsilon(1e-2));
  CHECK(examples::text_work(lpo::presets::clip_bigg) == doctest::Approx(97.86e9).epsilon(1e-2));
  CHECK(examples::vae_encoder_work(lpo::presets::sd_vae, 512, 512) == doctest::Approx(1116.66e9).epsilon(1e-4));
  CHECK(examples::vae_encoder_work(lpo::presets::sd_vae, 1024, 1024) == doctest::Approx(4878.95e9).epsilon(1e-4));
  CHECK(sd15.kept_by_encoder < 0.5 * sd15.kept);
  // Checkpointing keeps a small part; adapters add to what is kept.
  CHECK(sd15.kept_by_layers < 0.1 * sd15.kept);
}

TEST_CASE("settings are written as they came out, and read back") {
  const TemporaryDirectory directory;
  struct Settings {
    std::string text = "a b", empty, path;
    int count = 3;
    double rate = 6e-5;
    bool flag = false;
    std::vector<std::string> list;
  };
  const auto parse = [](Settings& s, CLI::App& app, const std::vector<std::string>& arguments) {
    app.option_defaults()->always_capture_default();
    examples::add_config_option(app);
    app.add_option(examples::both_spellings("some_text"), s.text, "text");
    app.add_option("--empty", s.empty, "nothing");
    app.add_option("--path", s.path, "a path");
    app.add_option("--count", s.count, "count");
    app.add_option(examples::both_spellings("learning_rate"), s.rate, "rate");
    app.add_option("--list", s.list, "may be repeated")->allow_extra_args(false);
    app.add_flag("--flag", s.flag, "flag");
    std::vector<const char*> argv{"program"};
    for (const auto& argument : arguments) argv.push_back(argument.c_str());
    app.parse(static_cast<int>(argv.size()), argv.data());
  };
  Settings first, second;
  CLI::App one{"Program."}, two{"Program."};
  const std::string presets = directory.write("preset.toml", "count = 7\nlearning_rate = 1e-5\nsome_text = \"x\"\n");
  parse(first, one,
        {"--config", presets, "--count", "8", "--list", "red, blue", "--list", "it's", "--flag", "--path", "/a b/c"});
  CHECK(first.count == 8);  // the command line wins
  CHECK(first.rate == 1e-5);
  const std::string saved = directory.file("config.toml");
  lpo::write_text_file(saved, examples::resolved_config(one));
  CAPTURE(lpo::read_text_file(saved));
  parse(second, two, {"--config", saved});
  CHECK(second.count == 8);
  CHECK(second.rate == 1e-5);
  CHECK(second.text == "x");
  CHECK(second.empty.empty());
  CHECK(second.path == "/a b/c");
  CHECK(second.flag);
  CHECK(second.list == std::vector<std::string>{"red, blue", "it's"});
  // Nothing set: defaults come back, an empty list stays empty.
  Settings third, fourth;
  CLI::App three{"Program."}, four{"Program."};
  parse(third, three, {});
  lpo::write_text_file(saved, examples::resolved_config(three));
  CAPTURE(lpo::read_text_file(saved));
  parse(fourth, four, {"--config", saved});
  CHECK(fourth.text == "a b");
  CHECK(fourth.rate == 6e-5);
  CHECK_FALSE(fourth.flag);
  CHECK(fourth.list.empty());
  // Texts come back whole, whatever is in them: also those that CLI11's own reader splits or ends early.
  const std::vector<std::string> texts{"a # b",
                                       "the cat's \"toy\", red",
                                       "two\nlines\tand \x01",
                                       "[a], {b} = c",
                                       "back\\slash",
                                       " 5",
                                       "007",
                                       "1e5",
                                       "-0",
                                       "",
                                       "\xC3\xA9t\xC3\xA9 \xE7\x8C\xAB",
                                       "true"};
  for (const std::string& text : texts) {
    Settings fifth, sixth;
    CLI::App five{"Program."}, six{"Program."};
    parse(fifth, five, {"--some_text", text, "--list", text, "--list", "#"});
    lpo::write_text_file(saved, examples::resolved_config(five));
    CAPTURE(lpo::read_text_file(saved));
    parse(sixth, six, {"--config", saved});
    CHECK(sixth.text == text);
    CHECK(sixth.list == std::vector<std::string>{text, "#"});
  }
}

TEST_CASE("settings files are TOML; what they get wrong is told with its line") {
  const auto read = [](const std::string& text) {
    std::istringstream input(text);
    return examples::detail::TomlConfig().from_config(input);
  };
  const auto items = read(
      "# comment\r\na = \"x # y\" # z\r\n\n'b-c' = [ # list\n  'C:\\d', \"\\u00e9\\U0001F600\",\n]\nd=1e-5 # rate\n"
      "e=true");
  REQUIRE(items.size() == 4);
  CHECK(items[0].name == "a");
  CHECK(items[0].inputs == std::vector<std::string>{"x # y"});
  CHECK(items[1].name == "b-c");
  CHECK(items[1].inputs == std::vector<std::string>{"C:\\d", "\xC3\xA9\xF0\x9F\x98\x80"});
  CHECK(items[2].inputs == std::vector<std::string>{"1e-05"});
  CHECK(items[3].inputs == std::vector<std::string>{"true"});
  CHECK(read("").empty());
  const auto error = [&](const std::string& text) { return message_of<CLI::ConfigError>([&] { read(text); }); };
  CHECK(has_part(error("a = 1\nb"), "--config: line 2: "));
  for (const char* text : {"a =", "a = \"x\n", "a = \"x\" y", "a = [1 # one\n", "a = \"\\ud800\"", "a = 1\na = 2"})
    CHECK_MESSAGE(has_part(error(text), "--config: line "), text);
  CHECK(has_part(error("\n[a]\n"),
                 "--config: line 2: a is no text, number, true or false; settings are lines `key = value`"));
  CHECK(has_part(error("a = 2026-11-27"), "line 1: a is no text"));
}

TEST_CASE("a GPU's options: shown where there is a GPU, and cuDNN only where it is linked") {
  struct Parsed {
    examples::DeviceOptions options;
    std::string help, error;
  };
  const auto parse = [](const examples::Build& build, const std::vector<const char*>& arguments) {
    Parsed parsed;
    CLI::App app{"Program."};
    app.option_defaults()->always_capture_default();
    examples::add_device_options(examples::OptionList{app}, parsed.options, build);
    std::vector<const char*> argv{"program"};
    argv.insert(argv.end(), arguments.begin(), arguments.end());
    parsed.help = app.help();
    try {
      app.parse(static_cast<int>(argv.size()), argv.data());
    } catch (const CLI::ParseError& error) {
      parsed.error = error.what();
    }
    return parsed;
  };
  const examples::Build cpu, cuda{.cuda = true}, cudnn{.cuda = true, .cudnn = true};
  const auto plain = parse(cudnn, {});
  CHECK(plain.options.cudnn == "never");
  CHECK(plain.options.time_products);
  const auto asked = parse(cudnn, {"--cudnn", "same_bits", "--time-products", "false"});
  CHECK(asked.error == "");
  CHECK(asked.options.cudnn == "same_bits");
  CHECK_FALSE(asked.options.time_products);
  CHECK(parse(cudnn, {"--cudnn", "fastest"}).options.cudnn == "fastest");
  CHECK(has_part(parse(cudnn, {"--cudnn", "always"}).error, "--cudnn"));
  CHECK(has_part(plain.help, "--time_products,--time-products"));
  CHECK(has_part(parse(cuda, {}).help, "this program is built without it"));
  CHECK_FALSE(has_part(parse(cpu, {}).help, "--cudnn"));
  CHECK(has_part(parse(cpu, {}).help, "--keep_packed,--keep-packed"));
  CHECK_FALSE(has_part(plain.help, "--keep_packed"));
  CHECK_FALSE(plain.options.keep_packed);
  for (const auto& build : {cuda, cpu}) CHECK(parse(build, {"--keep_packed", "true"}).options.keep_packed);
  for (const auto& build : {cuda, cpu}) {
    CHECK(has_part(parse(build, {"--cudnn", "fastest"}).error, "--cudnn fastest needs a program for GPUs that is"));
    CHECK(parse(build, {"--cudnn", "never", "--time_products", "true"}).error == "");
  }
}

TEST_CASE("progress past the end, as after a resume to fewer steps, is a full bar without time left") {
  CHECK(examples::bar_text(200, 100, 24) == std::string(24, '#'));
  CHECK(examples::bar_text(0, 0, 3) == "###");
  CHECK(examples::bar_text(1, 3, 3) == "#..");
  lpo::Progress progress;
  progress.seconds = 10;
  progress.step = 5;
  progress.total = 15;
  CHECK(progress.remaining() == 20.0);
  progress.total = 4;
  CHECK(progress.remaining() == 0.0);
}

TEST_CASE("prompts come from JSON lists or from plain text, a line each") {
  const TemporaryDirectory directory;
  const std::vector<std::string> both{"a red circle", "a \"blue\" square"};
  CHECK(examples::read_captions(directory.write(
            "p.json", R"([{"caption": "a red circle", "trainset_idx": 5}, "a \"blue\" square"])")) == both);
  CHECK(examples::read_captions(directory.write("p.txt", "a red circle\r\n\n  a \"blue\" square  \n")) == both);
  CHECK(examples::read_captions(directory.write("q.txt",
                                                "\xEF\xBB\xBF"
                                                "a red circle\n[a] \"b\""))
            .at(1) == "[a] \"b\"");
  CHECK(examples::read_captions(directory.write("m.json", "\xEF\xBB\xBF[\"a red circle\"]")) ==
        std::vector<std::string>{"a red circle"});
  CHECK(has_part(message_of<lpo::FileError>([&] { examples::read_captions(directory.write("e.txt", "\n \n")); }),
                 "e.txt: has no prompts"));
  CHECK(has_part(message_of<lpo::FileError>([&] { examples::read_captions(directory.write("o.json", "{}")); }),
                 "expected a list of prompts"));
  CHECK(has_part(message_of<lpo::FileError>([&] { examples::read_captions(directory.write("b.txt", "a\n\xff\n")); }),
                 "b.txt: line 2 is not UTF-8"));
}

TEST_CASE("the report page escapes texts and stands alone") {
  const TemporaryDirectory directory;
  directory.write("metrics.jsonl",
                  "{\"step\":0,\"loss\":0.7}\n{\"step\":1,\"loss\":null}\n{\"step\":2,\"loss\":0.5}\n");
  examples::RunReport report;
  report.title = "a < b & c";
  report.lead = "<script>";
  report.tiles = {{"1", "one", "note"}};
  examples::ReportSection section{"Curves", "", {}, {}};
  section.cards.push_back(examples::metric_card(directory.file("metrics.jsonl"), "loss", "Loss", "text"));
  section.cards.push_back(examples::metric_card(directory.file("metrics.jsonl"), "none", "None", "text"));
  section.pictures.push_back({"a \"circle\"", "PNG", 32, 32});
  report.sections.push_back(section);
  report.facts = {{"prompt", "<b>"}};
  examples::write_report_page(directory.file("report.html"), report);
  const std::string page = directory.read("report.html");
  CHECK(has_part(page, "<title>a &lt; b &amp; c</title>"));
  CHECK_FALSE(has_part(page, "<script>"));
  CHECK(has_part(page, "&lt;b&gt;"));
  CHECK(has_part(page, "src=\"data:image/png;base64,UE5H\""));
  CHECK(has_part(page, "no data"));
  CHECK_FALSE(has_part(page, "http"));
}
