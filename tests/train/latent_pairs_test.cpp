// SPDX-License-Identifier: MIT
// LatentPairs: checks, batch units, and the file they are kept in.
#include <doctest/doctest.h>

#include "small_world.hpp"

#include <lpo/train/latent_pairs_file.hpp>

using namespace lpo;
using namespace small_world;

TEST_CASE("batch units are single pairs, or all pairs of a prompt") {
  const auto triples = random_triples(1, 4);
  CHECK(triples.size() == 12);
  CHECK(triples.images() == 12);
  CHECK(triples.prompts() == 4);
  const auto single = batch_units(triples, BatchUnit::pair);
  CHECK(single.size() == 12);
  CHECK(single[7] == std::vector<index_t>{7});
  const auto grouped = batch_units(triples, BatchUnit::prompt);
  REQUIRE(grouped.size() == 4);
  CHECK(grouped[2] == std::vector<index_t>{6, 7, 8});

  LatentPairs unpaired = random_triples(1, 4);  // a prompt whose pairs were all filtered out is no entry of a batch
  unpaired.pairs.erase(unpaired.pairs.begin() + 3, unpaired.pairs.begin() + 6);
  unpaired.labels.resize(9);
  unpaired.check();
  CHECK(batch_units(unpaired, BatchUnit::prompt).size() == 3);
}

TEST_CASE("a set that does not fit together names what is wrong") {
  auto data = random_triples(2, 3);
  CHECK_NOTHROW(data.check());
  CHECK_NOTHROW(LatentPairs{}.check());
  SUBCASE("means") {
    data.mean.pop_back();
    CHECK_THROWS_WITH_AS(data.check(), doctest::Contains("575 means"), ShapeError);  // 9 images of 64 numbers
  }
  SUBCASE("labels") {
    data.labels.pop_back();
    CHECK_THROWS_WITH_AS(data.check(), doctest::Contains("9 pairs, 8 labels"), ShapeError);
  }
  SUBCASE("a pair beyond the images") {
    data.pairs[4].second = 9;
    CHECK_THROWS_WITH_AS(data.check(), doctest::Contains("pair 4 is of images 3 and 9"), ValueError);
  }
  SUBCASE("images of two prompts") {
    data.pairs[0].second = 5;
    CHECK_THROWS_WITH_AS(data.check(), doctest::Contains("pair 0 compares images of two prompts"), ValueError);
  }
  SUBCASE("an unknown prompt") {
    data.prompt_of_image[8] = 3;
    CHECK_THROWS_WITH_AS(data.check(), doctest::Contains("prompt 3"), ValueError);
  }
}

TEST_CASE("written and read again, every number is the same") {
  TemporaryFolder folder;
  const std::string path = folder.path() + "/pairs.safetensors";
  LatentPairs data;
  SUBCASE("pairs with deviations") { data = random_pairs(3, 5); }
  SUBCASE("triples without") { data = random_triples(3, 5); }
  SUBCASE("nothing") { data.height = data.width = data.channels = data.tokens = 1; }
  save_latent_pairs(path, data, "made by a test");
  CHECK(SafetensorsFile(path).metadata().at("about") == "made by a test");
  const auto read = load_latent_pairs(path);
  CHECK(read.height == data.height);
  CHECK(read.channels == data.channels);
  CHECK(read.tokens == data.tokens);
  CHECK(read.mean == data.mean);
  CHECK(read.deviation == data.deviation);
  CHECK(read.token_ids == data.token_ids);
  CHECK(read.prompt_of_image == data.prompt_of_image);
  REQUIRE(read.size() == data.size());
  for (std::size_t i = 0; i < data.labels.size(); ++i) {
    CHECK(read.pairs[i].first == data.pairs[i].first);
    CHECK(read.pairs[i].second == data.pairs[i].second);
    CHECK(read.labels[i].label_0 == data.labels[i].label_0);
    CHECK(read.labels[i].num_examples == data.labels[i].num_examples);
  }
}

TEST_CASE("a file that is not a set of pairs is refused with its name") {
  TemporaryFolder folder;
  const std::string path = folder.path() + "/other.safetensors";
  SafetensorsWriter writer;
  const float value = 0;
  writer.add("mean", DType::F32, {1}, &value);
  writer.write(path);
  CHECK_THROWS_WITH_AS(load_latent_pairs(path), doctest::Contains("other.safetensors: mean has shape [1]"), FileError);
}
