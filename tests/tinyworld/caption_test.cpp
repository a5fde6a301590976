// SPDX-License-Identifier: MIT
// Captions: reading back what was written, the closed word list, and splits that do not share a meaning.
#include "../../examples/tinyworld/world/caption.hpp"

#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <set>
#include <string>

using namespace tinyworld;

TEST_CASE("parse_caption gives back what write_caption said, in every split") {
  const std::vector<std::string> words = caption_words();
  const std::set<std::string> known(words.begin(), words.end());
  CHECK(known.size() == words.size());
  std::set<std::string> used;
  for (const Split split : {Split::train, Split::validation, Split::evaluation}) {
    for (std::uint64_t i = 0; i < 5000; ++i) {
      const CaptionedScene sample = sample_captioned(5, i, split);
      INFO(sample.caption);
      REQUIRE(canonical(parse_caption(sample.caption)) == canonical(sample.spec));
      REQUIRE(agrees(sample.spec, sample.scene));
      REQUIRE(agrees(parse_caption(sample.caption), sample.scene));
      REQUIRE(split_of(parse_caption(sample.caption)) == split);
      const auto said = split_words(sample.caption);
      REQUIRE(said.size() <= 19);
      REQUIRE(sample.caption.size() < 127);
      for (const std::string& word : said) REQUIRE(known.count(word) == 1);
      used.insert(said.begin(), said.end());
    }
  }
  CHECK(used == known);
}

TEST_CASE("no caption of one split occurs in another") {
  std::array<std::set<std::string>, 3> captions;
  for (std::size_t split = 0; split < 3; ++split) {
    for (std::uint64_t i = 0; i < 5000; ++i) {
      captions[split].insert(sample_captioned(1, i, static_cast<Split>(split)).caption);
    }
  }
  for (std::size_t a = 0; a < 3; ++a) {
    for (std::size_t b = 0; b < a; ++b) {
      std::vector<std::string> common;
      std::set_intersection(captions[a].begin(), captions[a].end(), captions[b].begin(), captions[b].end(),
                            std::back_inserter(common));
      CHECK(common.empty());
    }
  }
}

TEST_CASE("about 80, 10 and 10 percent of captions fall into the splits") {
  lpo::RandomStream random(8);
  std::array<int, 3> counts{};
  for (int i = 0; i < 20000; ++i) {
    const Scene scene = sample_scene(random);
    ++counts[static_cast<std::size_t>(split_of(sample_spec(random, scene)))];
  }
  // Short captions repeat, so these are not 20000 independent draws.
  CHECK(counts[0] == doctest::Approx(16000).epsilon(0.04));
  CHECK(counts[1] == doctest::Approx(2000).epsilon(0.3));
  CHECK(counts[2] == doctest::Approx(2000).epsilon(0.3));
}

TEST_CASE("parse_caption reads a user's own words") {
  const CaptionSpec one = parse_caption("There is a BIG red circle, in the top left corner of a white background!");
  CHECK(one.object_count == 1);
  CHECK(one.objects[0] == ObjectSpec{Shape::circle, Colour::red, Size::large});
  CHECK(one.position == Position::top_left);
  CHECK(one.background == Background::white);

  const CaptionSpec two = parse_caption("a blue square with a tiny ring to its left");
  CHECK(two.object_count == 2);
  CHECK(two.objects[0] == ObjectSpec{Shape::square, Colour::blue, std::nullopt});
  CHECK(two.objects[1] == ObjectSpec{Shape::ring, std::nullopt, Size::small});
  CHECK(two.relation == Relation::right_of);  // the square is right of the ring
  CHECK_FALSE(two.position.has_value());

  const CaptionSpec middle = parse_caption("in the middle, a cross");
  CHECK(middle.position == Position::centre);
  CHECK_FALSE(middle.objects[0].colour.has_value());

  CHECK(parse_caption("hello world").object_count == 0);
  CHECK(parse_caption("").object_count == 0);
}

TEST_CASE("canonical makes mirrored statements equal") {
  CHECK(canonical(parse_caption("a red circle left of a blue square")) ==
        canonical(parse_caption("a blue square to the right of a red circle")));
  CHECK(canonical(parse_caption("a red circle with a blue square above it")) ==
        canonical(parse_caption("a red circle under a blue square")));
  CHECK(canonical(parse_caption("a red circle and a blue square")) ==
        canonical(parse_caption("a blue square and a red circle")));
  CHECK_FALSE(canonical(parse_caption("a red circle left of a blue square")) ==
              canonical(parse_caption("a red circle right of a blue square")));
}
