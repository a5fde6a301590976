// SPDX-License-Identifier: MIT
// Forty pictures of the tiny world as preference pairs, in every form that programs take.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include <lpo/io/json.hpp>
#include <lpo/io/png.hpp>
#include <tinyworld/world/caption.hpp>
#include <tinyworld/world/flaws.hpp>

#include "../io/tar_archive.hpp"
#include "../io/temporary_directory.hpp"

inline lpo::RgbImage picture_of(const tinyworld::Image& image) {
  lpo::RgbImage picture(image.width, image.height);
  for (std::size_t i = 0; i < picture.pixels.size(); ++i)
    picture.pixels[i] = static_cast<std::uint8_t>(image.rgb[i] * 255.0f + 0.5f);
  return picture;
}

/// Twenty scenes, each drawn well and badly. Pair 19 is a tie.
struct Scenes {
  std::vector<std::string> captions;
  std::vector<std::string> good, bad;  ///< PNG files

  Scenes() {
    for (std::uint64_t i = 0; i < 20; ++i) {
      const auto sample = tinyworld::sample_captioned(5, i, tinyworld::Split::train);
      lpo::RandomStream random(6, 1, static_cast<std::uint32_t>(i));
      captions.push_back(sample.caption);
      good.push_back(lpo::encode_png(picture_of(tinyworld::render(sample.scene))));
      bad.push_back(lpo::encode_png(picture_of(tinyworld::attempt(random, sample.scene))));
    }
  }
  static std::string name(const char* kind, std::size_t i) { return kind + std::to_string(i) + ".png"; }
};

/// A folder with pairs.jsonl, two shards with the same pairs, and a file of scores for the filter.
struct PreferencePictures {
  TemporaryDirectory directory;
  Scenes scenes;
  std::string pictures = directory.file("pictures"), shards = directory.file("shards"), scores;

  PreferencePictures() {
    lpo::make_directories(pictures);
    lpo::make_directories(shards);
    std::string lines, gaps = "different_flag,aesthetic_gap,clipscore_gap,vqascore_gap\n";
    std::vector<std::pair<std::string, std::string>> files[2];
    for (std::size_t i = 0; i < 20; ++i) {
      const std::string good = Scenes::name("good", i), bad = Scenes::name("bad", i);
      lpo::write_text_file(pictures + "/" + good, scenes.good[i]);
      lpo::write_text_file(pictures + "/" + bad, scenes.bad[i]);
      lpo::OrderedJson line, record;
      line["caption"] = record["caption"] = scenes.captions[i];
      const bool tie = i == 19, swapped = i % 2 == 1;
      if (i % 4 == 0) {
        line["winner"] = good;
        line["loser"] = bad;
      } else {
        line["image_0"] = swapped ? bad : good;
        line["image_1"] = swapped ? good : bad;
        line["label_0"] = tie ? 0.5 : swapped ? 0.0 : 1.0;
        line["label_1"] = tie ? 0.5 : swapped ? 1.0 : 0.0;
      }
      lines += line.dump() + "\n";
      record["label_0"] = tie ? 0.5 : swapped ? 0.0 : 1.0;
      record["label_1"] = tie ? 0.5 : swapped ? 1.0 : 0.0;
      record["image_0_uid"] = swapped ? bad : good;
      record["image_1_uid"] = swapped ? good : bad;
      auto& shard = files[i / 12];
      const std::string name = std::to_string(100 + i);
      shard.emplace_back(name + ".0.png", swapped ? scenes.bad[i] : scenes.good[i]);
      shard.emplace_back(name + ".1.png", swapped ? scenes.good[i] : scenes.bad[i]);
      shard.emplace_back(name + ".json", record.dump());
      // Strategy 1 keeps the first five, 2 five more, 3 five more; the tie is kept.
      gaps += tie      ? "0,0.1,0.01,0.01\n"
              : i < 5  ? "1,0.5,1,1\n"
              : i < 10 ? "1,-0.3,1,1\n"
              : i < 15 ? "1,-0.7,1,1\n"
                       : "1,2,-1,1\n";
    }
    lpo::write_text_file(pictures + "/pairs.jsonl", lines);
    for (int i = 0; i < 2; ++i)
      lpo::write_text_file(shards + "/part-" + std::to_string(i) + ".tar", tar_archive(files[i]));
    scores = directory.write("scores.csv", gaps);
  }
};
