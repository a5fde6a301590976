// SPDX-License-Identifier: MIT
// Preference sets: JSONL lines, tar shards and score files; what they must hold, and what is refused with which words.
#include <doctest/doctest.h>

#include <lpo/io/preference_folder.hpp>
#include <lpo/io/preference_gaps.hpp>

#if __has_include(<archive.h>)
#include <lpo/io/preference_shards.hpp>
#endif

#include "tar_archive.hpp"
#include "temporary_directory.hpp"

using namespace lpo;

namespace {

std::vector<PreferenceRecord> lines(const std::string& text) {
  std::vector<PreferenceRecord> records;
  parse_preference_lines(text, "data/pairs.jsonl", [&](PreferenceRecord record) {
    records.push_back(std::move(record));
    return true;
  });
  return records;
}

}  // namespace

TEST_CASE("lines name pictures and labels, or a winner and a loser") {
  const auto records = lines(
      R"({"caption": "a red circle", "image_0": "a.png", "image_1": "sub/b.jpg", "label_0": 0, "label_1": 1, "num_example_per_prompt": 3})"
      "\r\n\n"
      R"({"caption": "", "winner": "/abs/w.png", "loser": "l.png", "row": 7})"
      "\n"
      R"({"caption": "t", "image_0": "a.png", "image_1": "c.png", "label_0": 0.5, "label_1": 0.5, "image_0_uid": "u", "extra": [1]})");
  REQUIRE(records.size() == 3);
  CHECK(records[0].name == "data/pairs.jsonl:1");
  CHECK(records[0].path == std::array<std::string, 2>{"data/a.png", "data/sub/b.jpg"});
  CHECK(records[0].uid == std::array<std::string, 2>{"a.png", "sub/b.jpg"});
  CHECK(records[0].label.label_1 == 1);
  CHECK(records[0].label.num_examples == 3);
  CHECK(records[0].row == 0);
  CHECK(records[1].name == "data/pairs.jsonl:3");
  CHECK(records[1].path == std::array<std::string, 2>{"/abs/w.png", "data/l.png"});
  CHECK(records[1].label.label_0 == 1);
  CHECK(records[1].label.num_examples == 0);
  CHECK(records[1].row == 7);
  CHECK(records[2].label.tie());
  CHECK(records[2].uid == std::array<std::string, 2>{"u", "c.png"});
  CHECK(records[2].row == 2);
  CHECK(lines("").empty());
}

TEST_CASE("a record without a label says so and needs none") {
  const auto records = lines(R"({"caption": "x", "image_0": "a.png", "image_1": "b.png", "has_label": false})");
  REQUIRE(records.size() == 1);
  CHECK_FALSE(records[0].has_label);
}

TEST_CASE("what is wrong with a line is said with its number and key") {
  const auto refused = [](const std::string& line, const char* words) {
    CAPTURE(line);
    CHECK_THROWS_WITH_AS(lines("\n" + line), doctest::Contains(words), FileError);
    CHECK_THROWS_WITH_AS(lines("\n" + line), doctest::Contains("data/pairs.jsonl:2: "), FileError);
  };
  refused("{", "not valid JSON");
  refused("[1]", "is an array of 1, expected an object");
  refused(R"({"image_0": "a", "image_1": "b", "label_0": 1, "label_1": 0})", "has no \"caption\"");
  refused(R"({"caption": 3, "image_0": "a", "image_1": "b", "label_0": 1, "label_1": 0})",
          "\"caption\" is 3, expected a text");
  refused(R"({"caption": "x", "image_0": "a", "label_0": 1, "label_1": 0})", "has no \"image_1\"");
  refused(R"({"caption": "x", "image_0": "a", "image_1": "b", "label_0": 1})", "has no \"label_1\"");
  refused(R"({"caption": "x", "image_0": "a", "image_1": "b", "label_0": 1, "label_1": 1})", "labels are 1 and 1");
  refused(R"({"caption": "x", "image_0": "a", "image_1": "b", "label_0": "1", "label_1": 0})",
          "\"label_0\" is \"1\", expected a number");
  refused(R"({"caption": "x", "winner": "a", "loser": "b", "label_0": 1})", "has both \"label_0\" and a \"winner\"");
  refused(R"({"caption": "x", "winner": "a"})", "has no \"loser\"");
  refused(R"({"caption": "x", "winner": "a", "loser": "b", "num_example_per_prompt": 0})", "expected at least 1");
  refused(R"({"caption": "x", "winner": "a", "loser": "b", "row": -1})", "\"row\" is -1");
}

TEST_CASE("score files are found by their column names") {
  const auto rows = parse_preference_gaps(
      "\xef\xbb\xbf,\"caption\",different_flag,vqascore_gap,clipscore_gap,aesthetic_gap\r\n"
      "0,\"a, \"\"b\"\"\",1,0.5,0.25,-0.125\r\n"
      "1,x,False,1e-2,-3,0\r\n\r\n",
      "s.csv");
  REQUIRE(rows.size() == 2);
  CHECK(rows[0].gaps.aesthetic == -0.125f);
  CHECK(rows[0].gaps.clip == 0.25f);
  CHECK(rows[0].gaps.vqa == 0.5f);
  CHECK_FALSE(rows[0].tie);
  CHECK(rows[1].tie);
  CHECK(rows[1].gaps.vqa == 0.01f);
}

TEST_CASE("what is wrong with a score file is said with line and column") {
  const std::string header = "different_flag,aesthetic_gap,clipscore_gap,vqascore_gap\n";
  const auto refused = [](const std::string& text, const char* words) {
    CHECK_THROWS_WITH_AS(parse_preference_gaps(text, "s.csv"), doctest::Contains(words), FileError);
  };
  refused("", "s.csv: has no column \"different_flag\"");
  refused("different_flag,aesthetic_gap,vqascore_gap\n", "has no column \"clipscore_gap\"");
  refused(header + "1,1,1\n", "line 2 has 3 fields, expected 4");
  refused(header + "1,1,1,1\n\n1,1,1,1\n", "line 3 has 1 fields");
  refused(header + "1,1,nan,1\n", "line 2: clipscore_gap is \"nan\", expected a number");
  refused(header + "1,1,,1\n", "clipscore_gap is \"\"");
  refused(header + "1,1,1x,1\n", "clipscore_gap is \"1x\"");
  refused(header + "2,1,1,1\n", "different_flag is 2, expected 1 or 0");
}

TEST_CASE("the filter keeps the pairs of each strategy, the ties of all, and counts them") {
  const TemporaryDirectory directory;
  // aesthetic: 0.5, -0.3, -0.8, -2 with the others positive; one with a negative clip score; ties inside and outside.
  const std::string path =
      directory.write("scores.csv",
                      "different_flag,aesthetic_gap,clipscore_gap,vqascore_gap\n"
                      "1,0.5,0.1,0.1\n1,-0.3,0.1,0.1\n1,-0.8,0.1,0.1\n1,-2,0.1,0.1\n1,0.5,-0.1,0.1\n"
                      "0,0.1,0.01,0.01\n0,-0.1,-0.01,-0.01\n0,-0.3,0,0\n");
  const auto kept = [&](MpcfOptions options) {
    PreferenceFilter filter(path, options);
    for (index_t row = 0; row < 8; ++row) filter.keeps(row, row >= 5);
    CHECK(filter.counts().win_lose == 5);
    CHECK(filter.counts().ties == 3);
    CHECK(filter.counts().kept() == filter.counts().kept_win_lose + filter.counts().kept_ties);
    return std::pair(filter.counts().kept_win_lose, filter.counts().kept_ties);
  };
  CHECK(kept({.strategy = 1}) == std::pair<index_t, index_t>(1, 2));
  CHECK(kept({.strategy = 2}) == std::pair<index_t, index_t>(2, 2));
  CHECK(kept({.strategy = 3}) == std::pair<index_t, index_t>(3, 2));
  CHECK(kept({.strategy = 2, .tie_abs = false}) == std::pair<index_t, index_t>(2, 3));
  CHECK(kept({.strategy = 0}) == std::pair<index_t, index_t>(5, 3));
  PreferenceFilter filter(path, {});
  CHECK_THROWS_WITH_AS(filter.keeps(8, false), doctest::Contains("has 8 lines, but the set has a row 8"), FileError);
  CHECK_THROWS_WITH_AS(filter.keeps(5, false), doctest::Contains("line 7 says tie, the labels of row 5 say win-lose"),
                       FileError);
  PreferenceFilter all;
  CHECK(all.keeps(99, true));
  CHECK(all.counts().seen() == 1);
}

#if __has_include(<archive.h>)
namespace {

const char* const good = R"({"caption": "x", "label_0": 1, "label_1": 0})";

std::vector<PreferenceRecord> shard(const std::string& bytes) {
  std::vector<PreferenceRecord> records;
  parse_preference_shard(bytes, "data/s.tar", 10, [&](PreferenceRecord record) {
    records.push_back(std::move(record));
    return true;
  });
  return records;
}

}  // namespace

TEST_CASE("shards are runs of files of one name") {
  const auto records = shard(tar_archive(
      {{"a/00.json", good},
       {"a/00.0.jpg", "first"},
       {"a/00.1.PNG", "second"},
       {"README", "not a record"},
       {"a/._00.json", "of a Mac"},
       {"a/01.jpg_1", "fourth"},
       {"a/01.cls", "1"},
       {"a/01.jpg_0", std::string(70000, 'x')},
       {"a/01.json", R"({"caption": "y", "label_0": 0.5, "label_1": 0.5, "row": 3, "image_0_uid": "u"})"}}));
  REQUIRE(records.size() == 2);
  CHECK(records[0].name == "data/s.tar:a/00.json");
  CHECK(records[0].encoded == std::array<std::string, 2>{"first", "second"});
  CHECK(records[0].uid == std::array<std::string, 2>{"s.tar:a/00.0", "s.tar:a/00.1"});
  CHECK(records[0].row == 10);
  CHECK(records[1].encoded[0].size() == 70000);
  CHECK(records[1].encoded[1] == "fourth");
  CHECK(records[1].uid == std::array<std::string, 2>{"u", "s.tar:a/01.1"});
  CHECK(records[1].row == 3);
  CHECK(shard(tar_archive({})).empty());
}

TEST_CASE("a shard can be left in the middle, and says how many records it gave") {
  const auto bytes = tar_archive(
      {{"0.json", good}, {"0.0.png", "a"}, {"0.1.png", "b"}, {"1.json", good}, {"1.0.png", "a"}, {"1.1.png", "b"}});
  CHECK(parse_preference_shard(bytes, "s.tar", 0, [](const PreferenceRecord&) { return true; }) == 2);
  CHECK(parse_preference_shard(bytes, "s.tar", 0, [](const PreferenceRecord&) { return false; }) == 1);
}

TEST_CASE("what is wrong with a shard is said with the file in it") {
  const auto refused = [](const std::string& bytes, const char* words) {
    CAPTURE(words);
    CHECK_THROWS_WITH_AS(shard(bytes), doctest::Contains(words), FileError);
  };
  refused(tar_archive({{"7.0.jpg", "a"}, {"7.1.jpg", "b"}}), "data/s.tar:7: has pictures but no 7.json");
  refused(tar_archive({{"7.json", good}, {"7.1.jpg", "b"}}), "data/s.tar:7: has no picture 0; expected 7.0.jpg");
  refused(tar_archive({{"7.json", "{}"}, {"7.0.jpg", "a"}, {"7.1.jpg", "b"}}), "data/s.tar:7.json: has no \"caption\"");
  refused(tar_archive({{"7.json", good}, {"7.0.jpg", "a"}, {"7.0.png", "b"}}), "7.0.png: the record has it twice");
  refused(tar_archive({{"7.json", good}, {"7.0.jpg", ""}}), "7.0.jpg: is empty");
  refused("this is no tar file", "data/s.tar: not a whole tar file");
  const std::string whole = tar_archive({{"7.json", good}, {"7.0.jpg", std::string(3000, 'a')}});
  refused(whole.substr(0, 512 + 512 + 512 + 1000), "data/s.tar: not a whole tar file");
}
#endif
