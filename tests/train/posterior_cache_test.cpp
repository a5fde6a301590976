// SPDX-License-Identifier: MIT
// The cache of posteriors: what goes in comes out in 16 bits, an interrupted one goes on, another set or model is
// refused.
#include <doctest/doctest.h>

#include <lpo/train/posterior_cache.hpp>

#include "../io/temporary_directory.hpp"

using namespace lpo;

namespace {

PreferenceRecord record(int number, const std::string& caption, const std::string& first, const std::string& second) {
  PreferenceRecord one;
  one.name = "record " + std::to_string(number);
  one.caption = caption;
  one.uid = {first, second};
  one.label = {number % 2 == 0 ? 1.0f : 0.0f, number % 2 == 0 ? 0.0f : 1.0f, 0.0f, false};
  return one;
}

/// Seven pairs of three prompts; picture "b" is in two of them.
std::vector<PreferenceRecord> records() {
  return {record(0, "x", "a", "b"), record(1, "x", "b", "c"), record(2, "y", "d", "e"), record(3, "y", "f", "d"),
          record(4, "z", "g", "h"), record(5, "z", "i", "g"), record(6, "z", "a", "i")};
}

/// A picture's posterior follows from its uid.
struct FakeEncoder {
  int calls = 0;

  void add(PosteriorCacheWriter& cache, const PreferenceRecord& one) {
    cache.add(one, [&](int which, float* mean, float* deviation) {
      ++calls;
      const float value = static_cast<float>(one.uid[static_cast<std::size_t>(which)][0] - 'a') + 0.125f;
      for (int k = 0; k < 8; ++k) mean[k] = value + static_cast<float>(k) * 0.5f, deviation[k] = 0.0625f * value;
    });
  }
};

PosteriorCacheWriter open_cache(const std::string& folder, const char* model = "m") {
  OrderedJson settings;
  settings["autoencoder"] = model;
  return PosteriorCacheWriter(folder, Extents<3>{2, 2, 2}, settings, 2);
}

LatentPairs load(const std::string& folder) {
  return load_posterior_cache(folder, [](const std::string& caption) {
    return std::vector<std::int32_t>{1, caption[0], 2};
  });
}

}  // namespace

TEST_CASE("pairs, prompts and posteriors come back; a picture is encoded once for each of its prompts") {
  const TemporaryDirectory directory;
  const std::string folder = directory.file("cache");
  FakeEncoder encoder;
  auto cache = open_cache(folder);
  for (const auto& one : records()) encoder.add(cache, one);
  CHECK_THROWS_WITH_AS(load(folder), doctest::Contains("is not complete"), FileError);
  cache.finish();
  CHECK(encoder.calls == 10);  // nine pictures, one of them under two prompts
  CHECK(cache.encoded() == 10);
  const auto data = load(folder);
  data.check();
  CHECK(data.size() == 7);
  CHECK(data.images() == 10);
  CHECK(data.prompts() == 3);
  CHECK(data.height == 2);
  CHECK(data.token_ids == std::vector<std::int32_t>{1, 'x', 2, 1, 'y', 2, 1, 'z', 2});
  CHECK(data.pairs[1].first == data.pairs[0].second);
  CHECK(data.labels[1].label_1 == 1);
  CHECK(data.labels[1].num_examples == 2);  // counted
  CHECK(data.labels[6].num_examples == 3);
  CHECK(data.has_deviation());
  float mean[8], deviation[8];
  data.read_posterior(data.pairs[4].second, mean, deviation);  // "h"
  CHECK(mean[3] == 7.125f + 1.5f);                             // exact in 16 bits
  CHECK(deviation[0] == doctest::Approx(0.0625 * 7.125).epsilon(1e-3));
  CHECK(SafetensorsFile(folder + "/posteriors-000000.safetensors").info("mean").dtype == DType::F16);
}

TEST_CASE("an interrupted cache goes on with what is missing, and is the same in the end") {
  const TemporaryDirectory directory;
  const std::string whole = directory.file("whole"), cut = directory.file("cut");
  FakeEncoder encoder;
  {
    auto cache = open_cache(whole);
    for (const auto& one : records()) encoder.add(cache, one);
    cache.finish();
  }
  const auto all = records();
  for (const bool flushed : {true, false}) {
    CAPTURE(flushed);
    std::filesystem::remove_all(cut);
    {
      FakeEncoder first;
      auto cache = open_cache(cut);
      for (int i = 0; i < 5; ++i) first.add(cache, all[static_cast<std::size_t>(i)]);
      if (flushed) cache.flush();  // what a kill does not do
    }
    FakeEncoder second;
    auto cache = open_cache(cut);
    for (const auto& one : all) second.add(cache, one);
    cache.finish();
    CHECK(second.calls == (flushed ? 2 : 4));
    for (const auto& name : {"cache.json", "posteriors-000000.safetensors", "posteriors-000001.safetensors",
                             "posteriors-000002.safetensors", "posteriors-000003.safetensors"})
      CHECK(read_text_file(whole + "/" + name) == read_text_file(cut + "/" + name));
    FakeEncoder third;
    auto again = open_cache(cut);
    for (const auto& one : all) third.add(again, one);
    again.finish();
    CHECK(third.calls == 0);
  }
}

TEST_CASE("a cache of other pairs or another model is refused, and named") {
  const TemporaryDirectory directory;
  const std::string folder = directory.file("cache");
  auto all = records();
  {
    FakeEncoder encoder;
    auto cache = open_cache(folder);
    for (const auto& one : all) encoder.add(cache, one);
    cache.finish();
  }
  CHECK_THROWS_WITH_AS(open_cache(folder, "n"), doctest::Contains("was made with {\"autoencoder\":\"m\"}"), FileError);
  FakeEncoder encoder;
  {
    auto cache = open_cache(folder);
    all[1].label.label_0 = 0.5f;
    encoder.add(cache, all[0]);
    CHECK_THROWS_WITH_AS(encoder.add(cache, all[1]), doctest::Contains("its pair 1 is"), FileError);
  }
  {
    auto cache = open_cache(folder);
    all = records();
    all[1].encoded[0] = "another picture under this uid";
    encoder.add(cache, all[0]);
    CHECK_THROWS_WITH_AS(encoder.add(cache, all[1]),
                         doctest::Contains("is {\"bytes\":[0,0],\"caption\":\"x\","), FileError);
    all[1].encoded[0].clear();
    all[1].path[0] = directory.write("c.png", "12345");
    CHECK_THROWS_WITH_AS(encoder.add(cache, all[1]), doctest::Contains("now has {\"bytes\":[5,0],"), FileError);
  }
  {
    auto cache = open_cache(folder);
    all = records();
    all.pop_back();
    all.pop_back();
    for (const auto& one : all) encoder.add(cache, one);
    CHECK_THROWS_WITH_AS(cache.finish(), doctest::Contains("has more pairs than the data set, 5"), FileError);
  }
  CHECK(encoder.calls == 0);
}

TEST_CASE("a set that grew keeps what was encoded") {
  const TemporaryDirectory directory;
  const std::string folder = directory.file("cache");
  const auto all = records();
  for (const std::size_t count : {std::size_t{3}, std::size_t{7}}) {
    FakeEncoder encoder;
    auto cache = open_cache(folder);
    for (std::size_t i = 0; i < count; ++i) encoder.add(cache, all[i]);
    cache.finish();
    CHECK(encoder.calls == 5);
    CHECK(load(folder).size() == static_cast<index_t>(count));
  }
}

TEST_CASE("damaged caches are refused, and the file is named") {
  const TemporaryDirectory directory;
  const std::string folder = directory.file("cache");
  FakeEncoder encoder;
  auto cache = open_cache(folder);
  for (const auto& one : records()) encoder.add(cache, one);
  cache.finish();
  SUBCASE("an index that is none") {
    write_text_file(folder + "/cache.json", "[]");
    CHECK_THROWS_WITH_AS(load(folder), doctest::Contains("cache.json: is no index"), FileError);
  }
  SUBCASE("a file that is none") {
    SafetensorsWriter().write(folder + "/posteriors-000001.safetensors");
    CHECK_THROWS_WITH_AS(
        load(folder), doctest::Contains("posteriors-000001.safetensors: is no file of a posterior cache"), FileError);
  }
  SUBCASE("a file that is missing") {
    std::filesystem::remove(folder + "/posteriors-000003.safetensors");
    CHECK_THROWS_WITH_AS(load(folder), doctest::Contains("posteriors-000003.safetensors"), FileError);
  }
  SUBCASE("an image whose number no index can hold") {
    SafetensorsWriter writer;
    const std::vector<float> none(16, 0.0f);
    writer.add_converted("mean", DType::F16, {1, 2, 2, 4}, none.data());
    writer.add_converted("deviation", DType::F16, {1, 2, 2, 4}, none.data());
    writer.set_metadata("format_version", "1");
    writer.set_metadata("first_image", "0");
    writer.set_metadata("pairs",
                        R"([{"caption":"a","uids":["x","y"],"images":[18446744073709551000,0],"labels":[1,0,1]}])");
    writer.write(folder + "/posteriors-000000.safetensors");
    CHECK_THROWS_WITH_AS(load(folder), doctest::Contains("posteriors-000000.safetensors has a pair of image -616"),
                         FileError);
  }
  SUBCASE("files in the wrong places") {
    std::filesystem::rename(folder + "/posteriors-000002.safetensors", folder + "/posteriors-000001.safetensors");
    CHECK_THROWS_WITH_AS(load(folder), doctest::Contains("does not go on where the file before it ends"), FileError);
  }
}
