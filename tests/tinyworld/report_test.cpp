// SPDX-License-Identifier: MIT
// The demo's report: files, keys, escaping, the sentence that says whether it worked, and plots of awkward data.
#include "tinyworld/report.hpp"

#include <doctest/doctest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>

#include <lpo/io/json.hpp>

#include "io/temporary_directory.hpp"
#include "tinyworld/world/flaws.hpp"

using namespace tinyworld;

namespace {

DemoReport small_report() {
  DemoReport report;
  report.seed = 7;
  report.lpo_version = "0.1.0";
  report.compiler = "g++ <12>";
  report.command = "demo --seed 7";
  report.threads = 2;
  report.peak_rss_mb = 321.5;
  report.seconds = {{"rated pairs", 10.5}, {"reward model", 20}, {"LPO", 30.25}};
  report.pairs_rated = 100;
  report.pairs_kept = 70;
  report.pairs_tied = 9;
  report.lrm_accuracy = 0.75;
  report.lrm_accuracy_by_timestep = {{1, 0.75}, {501, 0.625}};
  report.rater_ceiling = 0.875;
  for (int i = 0; i < 30; ++i) {
    report.lrm_loss.step.push_back(i);
    report.lrm_loss.value.push_back(0.7 - 0.01 * i);
  }
  report.lpo_loss = {{0, 1, 2}, {0.69, std::nan(""), 0.67}};
  report.timesteps = {951, 51};
  report.kept_share = {0.5, 0.25};
  report.thresholds = {0.5, 0.35};
  EvaluationReport& e = report.evaluation;
  e.captions = 200;
  e.pictures = 800;
  e.win_rate = 0.75;
  e.win_rate_ci95 = {0.70, 0.80};
  e.score_before = 0.5;
  e.score_after = 0.625;
  e.attribute_accuracy_before = 0.6;
  e.attribute_accuracy_after = 0.7;
  e.accuracy_before.fill(0.5);
  e.accuracy_after.fill(0.75);
  e.accuracy_before[4] = e.accuracy_after[4] = std::nan("");
  e.diversity_ratio = 0.9;
  const CaptionedScene sample = sample_captioned(3, 0, Split::evaluation);
  lpo::RandomStream random(1, 2);
  report.grid.push_back({"a <b> & \"c\"", attempt(random, sample.scene), render(sample.scene), 0.25, 0.75});
  report.settings = {{"beta", 500}};
  return report;
}

std::size_t count_of(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1)) ++count;
  return count;
}

}  // namespace

TEST_CASE("write_report makes the folder and three files; the numbers of report.json are those given") {
  const TemporaryDirectory folder;
  const std::string out = folder.file("new/out");
  write_report(out, small_report());
  const auto json = lpo::parse_json<lpo::OrderedJson>(lpo::read_text_file(out + "/report.json"), "test", "report.json");
  CHECK(json["lrm_accuracy"] == 0.75);
  CHECK(json["win_rate"] == 0.75);
  CHECK(json["win_rate_ci95"] == lpo::OrderedJson::array({0.70, 0.80}));
  CHECK(json["score_before"] == 0.5);
  CHECK(json["score_after"] == 0.625);
  CHECK(json["attribute_accuracy_before"] == 0.6);
  CHECK(json["attribute_accuracy_after"] == 0.7);
  CHECK(json["diversity_ratio"] == 0.9);
  CHECK(json["seed"] == 7);
  CHECK(json["seconds"]["LPO"] == 30.25);
  CHECK(json["seconds"]["total"] == 60.75);
  CHECK(json["pairs"]["kept"] == 70);
  CHECK(json["lpo"]["by_timestep"][1]["threshold"] == 0.35);
  CHECK(json["accuracy_by_attribute_after"]["shape"] == 0.75);
  CHECK(json["accuracy_by_attribute_after"]["relation"].is_null());
  CHECK(json["goals_reached"]["win_rate"] == true);
  const auto picture = lpo::read_png(out + "/before_after.png");
  CHECK(picture.image.width > 2 * 32 * 5);
  CHECK(lpo::read_text_file(out + "/report.html").starts_with("<!doctype html>"));
}

TEST_CASE("before_after.png holds the pictures enlarged, with ink above and below them") {
  const DemoReport report = small_report();
  const lpo::RgbImage sheet = draw_grid(report.grid);
  const lpo::RgbImage small = enlarged(report.grid[0].after);
  int found = 0;
  for (int top = 0; top + 160 <= sheet.height; ++top) {
    bool same = true;
    for (int y = 0; y < 32 && same; ++y)
      for (int x = 0; x < 32 && same; ++x)
        same = std::equal(small.at(x, y), small.at(x, y) + 3, sheet.at(28 + 166 + 5 * x + 2, top + 5 * y + 3));
    found += same ? 1 : 0;
  }
  CHECK(found >= 1);
  CHECK(draw_grid({}).width > 0);
}

TEST_CASE("report.html stands alone and shows captions as text") {
  const std::string html = report_html(small_report());
  CHECK(html.find("a &lt;b&gt; &amp; &quot;c&quot;") != std::string::npos);
  CHECK(html.find("a <b>") == std::string::npos);
  CHECK(html.find("g++ &lt;12&gt;") != std::string::npos);
  CHECK(count_of(html, "src=\"") == count_of(html, "src=\"data:image/png;base64,"));
  for (const char* outside : {"http:", "https:", "<script", "<link", "@import", "url("})
    CHECK(html.find(outside) == std::string::npos);
  for (const char* bad : {"nan", "inf\"", "-nan"}) CHECK(html.find(std::string(">") + bad) == std::string::npos);
  for (const char* element : {"div", "section", "table", "tbody", "tr", "td", "th", "svg", "p", "figure", "ul", "li"}) {
    INFO(element);
    const std::string name = element;
    CHECK(count_of(html, "<" + name + ">") + count_of(html, "<" + name + " ") == count_of(html, "</" + name + ">"));
  }
}

TEST_CASE("a report without any data is still a page") {
  const std::string html = report_html(DemoReport{});
  CHECK(html.find("no data") != std::string::npos);
  CHECK(html.find("</html>") != std::string::npos);
}

TEST_CASE("the headline follows the interval, not the mean, and does not hide lost diversity") {
  DemoReport report = small_report();
  CHECK(headline(report).starts_with("It worked: "));
  report.evaluation.win_rate_ci95 = {0.48, 0.9};
  CHECK(headline(report).starts_with("No clear effect: "));
  report.evaluation.win_rate_ci95 = {0.3, 0.4};
  CHECK(headline(report).starts_with("It did not work: "));
  report.evaluation.diversity_ratio = 0.6;
  CHECK(headline(report).find("60 % of the diversity is left") != std::string::npos);
  CHECK_FALSE(goals(report)[3].reached);
}

TEST_CASE("axes end at round numbers that enclose the data") {
  const auto axis = examples::detail::make_axis(0.613, 0.702, 4, true, true);
  CHECK(axis.step == doctest::Approx(0.025));
  CHECK(axis.low == doctest::Approx(0.6));
  CHECK(axis.high == doctest::Approx(0.725));
  CHECK(axis.decimals == 3);
  const auto wide = examples::detail::make_axis(0, 12000, 4, true, true);
  CHECK(wide.step == doctest::Approx(5000));
  CHECK(wide.decimals == 0);
  const auto point = examples::detail::make_axis(3, 3, 4, true, true);
  CHECK(point.low < 3);
  CHECK(point.high > 3);
}

TEST_CASE("a value that is not finite interrupts a curve and is left out of its mean") {
  const double none = std::numeric_limits<double>::quiet_NaN();
  const std::string plot = examples::line_plot({{"", {0, 1, 2, 3}, {1, none, 2, 3}}}, {});
  const std::size_t begin = plot.find("class=\"line s-a\" d=\"") + 20;
  const std::string path = plot.substr(begin, plot.find('"', begin) - begin);
  CHECK(count_of(path, "M") == 2);
  CHECK(count_of(path, "L") == 1);
  const auto means = examples::detail::running_mean({1, none, 3, 5}, 1);
  CHECK(means[0] == 1);
  CHECK(means[1] == 2);
  CHECK(means[2] == 4);
  CHECK(means[3] == 4);
}

TEST_CASE("the bitmap font knows every letter of a caption and wraps at spaces") {
  std::array<std::string_view, examples::kFontRows> rows;
  for (const std::string& word : caption_words())
    for (const char letter : word) CHECK(examples::detail::find_glyph(letter, rows));
  CHECK(examples::text_width("il") == 4);
  CHECK(examples::text_width("") == 0);
  const auto lines = examples::wrap_text("a small red circle", examples::text_width("a small red"));
  REQUIRE(lines.size() == 2);
  CHECK(lines[0] == "a small red");
  CHECK(lines[1] == "circle");
  lpo::RgbImage image(8, 9, 255);
  examples::draw_text(image, -3, -2, "m", {0, 0, 0}, 3);
  CHECK(std::count(image.pixels.begin(), image.pixels.end(), 0) > 0);
}
