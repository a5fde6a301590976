// SPDX-License-Identifier: MIT
// Scorer: how well a picture shows what its caption says, and how well it is made. For labels and evaluation only.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string_view>

#include "caption.hpp"
#include "objects.hpp"

namespace tinyworld {

/// The kinds of question a caption raises, in the order of Measurement::soft and ::hard.
enum class Attribute { shape, colour, size, position, relation, background };
inline constexpr int kAttributeCount = 6;
inline constexpr std::array<std::string_view, kAttributeCount> kAttributeNames = {"shape",    "colour",   "size",
                                                                                  "position", "relation", "background"};

/// Agreement of one picture with one caption. Attributes that the caption leaves open are NaN.
struct Measurement {
  std::array<float, kAttributeCount> soft;  ///< probability that the attribute is as said, in [0, 1]
  std::array<float, kAttributeCount> hard;  ///< share of right answers: 0 or 1, with two objects also 1/2
  float question_agreement = 0;  ///< mean probability over all questions of the caption ("VQA score"), in [0, 1]
  float global_agreement = 0;    ///< one number for the whole: all of it and nothing else ("CLIP score"), in [0, 1]
  float accuracy = 0;            ///< mean of hard answers over all questions, in [0, 1]
  float aesthetic = 0;           ///< quality of the drawing whatever it shows, in [0, 10]
  float score = 0;               ///< what the simulated raters look at, in [0, 1]
};

/// Weights of the overall score; they add up to one.
struct ScoreWeights {
  float question = 0.325f;
  float global = 0.325f;
  float aesthetic = 0.35f;
};

/// Quality of the drawing in [0, 10]: pure colours, clean outlines, even surfaces, a calm background, no specks.
inline float aesthetic_score(const Analysis& picture) {
  const float calm = std::exp(-picture.background_roughness / 0.10f);
  float weight = 0;
  float pure = 0;
  float clean = 0;
  float even = 0;
  for (const MeasuredObject& object : picture.objects) {
    weight += object.mass;
    pure += object.mass * object.presence * std::clamp((object.saturation - 0.35f) / 0.65f, 0.0f, 1.0f);
    const float sharp = std::clamp((1.45f - object.blur) / 1.0f, 0.0f, 1.0f);
    clean += object.mass * 0.5f * (sharp + std::clamp((object.fit - 0.6f) / 0.3f, 0.0f, 1.0f));
    even += object.mass * std::exp(-object.roughness / 0.15f);
  }
  const float tidy = std::exp(-picture.clutter / 0.02f);
  if (weight <= 0) return calm * tidy;
  const float quality = (0.30f * pure + 0.30f * clean + 0.20f * even) / weight + 0.20f * calm;
  // No picture with an object in it has less than about 0.3 on this scale, so that is where it starts.
  return 10 * std::clamp((quality - 0.3f) / 0.65f, 0.0f, 1.0f) * (0.6f + 0.4f * tidy);
}

namespace detail {

/// One answer: the probability of what was said, and whether it is the likeliest answer.
struct Answer {
  float soft = 0;
  bool right = false;
};

template <std::size_t count, class Enum>
Answer answer(const std::array<float, count>& probability, Enum said, float presence) {
  const auto index = static_cast<std::size_t>(said);
  const auto best = std::max_element(probability.begin(), probability.end()) - probability.begin();
  return {presence * probability[index], presence > 0.5f && static_cast<std::size_t>(best) == index};
}

inline Answer relation_answer(const MeasuredObject& a, const MeasuredObject& b, Relation said) {
  const float dx = b.x - a.x;
  const float dy = b.y - a.y;
  const bool horizontal = said == Relation::left_of || said == Relation::right_of;
  const bool forward = said == Relation::left_of || said == Relation::above;
  const float along = (forward ? 1.0f : -1.0f) * (horizontal ? dx : dy);
  const float across = std::fabs(horizontal ? dy : dx);
  const float presence = a.presence * b.presence;
  return {presence * logistic((along - across - 1.5f) / 0.8f), presence > 0.5f && along > across && along > 2};
}

/// Running sums over the questions of one caption.
struct Tally {
  std::array<float, kAttributeCount> soft{};
  std::array<float, kAttributeCount> hard{};
  std::array<int, kAttributeCount> asked{};
  float soft_sum = 0;
  float log_sum = 0;
  float hard_sum = 0;
  int questions = 0;

  void add(Attribute attribute, Answer given) {
    const auto i = static_cast<std::size_t>(attribute);
    soft[i] += given.soft;
    hard[i] += given.right ? 1.0f : 0.0f;
    ++asked[i];
    soft_sum += given.soft;
    log_sum += std::log(0.05f + 0.95f * given.soft);
    hard_sum += given.right ? 1.0f : 0.0f;
    ++questions;
  }
};

/// Asks about one object; a missing object (null) answers every question wrongly.
inline void ask_object(const ObjectSpec& said, const MeasuredObject* seen, Tally& tally) {
  if (said.shape) {
    tally.add(Attribute::shape, seen ? answer(seen->shape, *said.shape, seen->presence) : Answer{});
  }
  if (said.colour) {
    tally.add(Attribute::colour, seen ? answer(seen->colour, *said.colour, seen->presence) : Answer{});
  }
  if (said.size) {
    tally.add(Attribute::size, seen ? answer(seen->size, *said.size, seen->presence) : Answer{});
  }
}

inline Tally ask(const CaptionSpec& said, const Analysis& picture, const MeasuredObject* first,
                 const MeasuredObject* second) {
  Tally tally;
  ask_object(said.objects[0], first, tally);
  if (said.object_count == 2) ask_object(said.objects[1], second, tally);
  if (said.position) {
    tally.add(Attribute::position, first ? answer(first->position, *said.position, first->presence) : Answer{});
  }
  if (said.relation) {
    tally.add(Attribute::relation, first && second ? relation_answer(*first, *second, *said.relation) : Answer{});
  }
  if (said.background) tally.add(Attribute::background, answer(picture.background, *said.background, 1.0f));
  return tally;
}

}  // namespace detail

/// Compares an analysed picture with a caption: objects are matched to the caption's so that most answers are right.
inline Measurement measure(const Analysis& picture, const CaptionSpec& said, const ScoreWeights& weights = {}) {
  detail::Tally best;
  float matched_mass = 0;
  float matched_fit = 0;
  float best_value = -1;
  const std::size_t count = picture.objects.size();
  const bool pair = said.object_count == 2;
  // Index `count` stands for "not there".
  for (std::size_t i = 0; i <= count; ++i) {
    for (std::size_t j = pair ? 0 : count; j <= count; ++j) {
      if (i == j && i < count) continue;
      const MeasuredObject* first = i < count ? &picture.objects[i] : nullptr;
      const MeasuredObject* second = j < count ? &picture.objects[j] : nullptr;
      const detail::Tally tally = detail::ask(said, picture, first, second);
      const float mass = (first ? first->mass : 0.0f) + (second ? second->mass : 0.0f);
      // Equal answers go to the larger objects.
      const float value = tally.soft_sum + 1e-5f * mass;
      if (value <= best_value) continue;
      best_value = value;
      best = tally;
      matched_mass = mass;
      matched_fit = (first ? first->fit * first->presence : 0.0f) + (second ? second->fit * second->presence : 0.0f);
    }
  }
  Measurement result;
  for (std::size_t a = 0; a < kAttributeCount; ++a) {
    const auto asked = static_cast<float>(best.asked[a]);
    const float none = std::numeric_limits<float>::quiet_NaN();
    result.soft[a] = best.asked[a] > 0 ? best.soft[a] / asked : none;
    result.hard[a] = best.asked[a] > 0 ? best.hard[a] / asked : none;
  }
  const auto questions = static_cast<float>(std::max(best.questions, 1));
  result.question_agreement = best.soft_sum / questions;
  result.accuracy = best.hard_sum / questions;
  float total_mass = 0;
  for (const MeasuredObject& object : picture.objects) total_mass += object.presence * object.mass;
  const float surplus = std::max(0.0f, total_mass - matched_mass) / std::max(total_mass, 1.0f);
  const float form = std::clamp(matched_fit / static_cast<float>(pair ? 2 : 1) / 0.85f, 0.0f, 1.0f);
  result.global_agreement = std::exp(best.log_sum / questions) * (0.5f + 0.5f * form) * (1 - 0.7f * surplus);
  result.aesthetic = aesthetic_score(picture);
  result.score = weights.question * result.question_agreement + weights.global * result.global_agreement +
                 weights.aesthetic * 0.1f * result.aesthetic;
  return result;
}

/// Scores a decoded picture against the text of its caption.
inline Measurement score_image(const Image& image, std::string_view caption, const ScoreWeights& weights = {}) {
  return measure(analyse(image), parse_caption(caption), weights);
}

}  // namespace tinyworld
