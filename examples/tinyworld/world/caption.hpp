// SPDX-License-Identifier: MIT
// Captions: what a sentence about a scene constrains, how it is phrased, and how it is read back.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "scene.hpp"

namespace tinyworld {

/// What a caption says about one object; an empty field is left to the painter.
struct ObjectSpec {
  std::optional<Shape> shape;
  std::optional<Colour> colour;
  std::optional<Size> size;
  bool operator==(const ObjectSpec&) const = default;
};

/// What a caption says about a picture. `position` occurs with one object, `relation` with two.
struct CaptionSpec {
  int object_count = 1;
  std::array<ObjectSpec, 2> objects;
  std::optional<Position> position;
  std::optional<Relation> relation;
  std::optional<Background> background;
  bool operator==(const CaptionSpec&) const = default;
};

/// Disjoint sets of captions: what a model saw in training never occurs, in any phrasing, in the other two.
enum class Split { train, validation, evaluation };

inline constexpr std::array<std::string_view, kShapeCount> kShapeWords = {"circle", "square", "triangle", "ring",
                                                                          "cross"};
inline constexpr std::array<std::string_view, kColourCount> kColourWords = {"red",  "yellow", "green", "cyan",
                                                                            "blue", "purple", "pink"};
inline constexpr std::array<std::string_view, kBackgroundCount> kBackgroundWords = {"white", "gray", "black", "beige",
                                                                                    "brown"};

namespace detail {

inline constexpr std::array<std::string_view, 3> kSmallWords = {"small", "little", "tiny"};
inline constexpr std::array<std::string_view, 2> kLargeWords = {"large", "big"};
inline constexpr std::array<std::string_view, kPositionCount> kPositionWords = {
    "top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right"};

template <class Words>
int find_word(const Words& words, std::string_view word) {
  for (std::size_t i = 0; i < words.size(); ++i) {
    if (words[i] == word) return static_cast<int>(i);
  }
  return -1;
}

inline Relation opposite(Relation relation) {
  switch (relation) {
    case Relation::left_of:
      return Relation::right_of;
    case Relation::right_of:
      return Relation::left_of;
    case Relation::above:
      return Relation::below;
    default:
      return Relation::above;
  }
}

/// A small number that names an ObjectSpec uniquely.
inline std::uint32_t object_code(const ObjectSpec& object) {
  const std::uint32_t shape = object.shape ? 1 + static_cast<std::uint32_t>(*object.shape) : 0;
  const std::uint32_t colour = object.colour ? 1 + static_cast<std::uint32_t>(*object.colour) : 0;
  const std::uint32_t size = object.size ? 1 + static_cast<std::uint32_t>(*object.size) : 0;
  return shape + 8 * (colour + 8 * size);
}

}  // namespace detail

/// The same meaning in one fixed form: "b right of a" becomes "a left of b", an unrelated pair is sorted.
inline CaptionSpec canonical(CaptionSpec spec) {
  if (spec.object_count != 2) return spec;
  const bool swap = spec.relation ? (*spec.relation == Relation::right_of || *spec.relation == Relation::below)
                                  : detail::object_code(spec.objects[0]) > detail::object_code(spec.objects[1]);
  if (swap) {
    std::swap(spec.objects[0], spec.objects[1]);
    if (spec.relation) spec.relation = detail::opposite(*spec.relation);
  }
  return spec;
}

/// The set a caption belongs to, by its meaning: 80 % train, 10 % validation, 10 % evaluation.
inline Split split_of(const CaptionSpec& any_spec) {
  const CaptionSpec spec = canonical(any_spec);
  const auto code = [](auto field) { return field ? 1 + static_cast<std::uint32_t>(*field) : 0u; };
  const std::uint32_t rest = code(spec.position) + 16 * (code(spec.relation) + 8 * code(spec.background)) +
                             4096 * static_cast<std::uint32_t>(spec.object_count);
  const std::uint32_t bucket = lpo::philox4x32_10(detail::object_code(spec.objects[0]),
                                                  detail::object_code(spec.objects[1]), rest, 0, 0x74696e79u, 0)
                                   .v[0] %
                               10;
  return bucket < 8 ? Split::train : bucket == 8 ? Split::validation : Split::evaluation;
}

/// True if nothing that `spec` says contradicts `scene`.
inline bool agrees(const CaptionSpec& spec, const Scene& scene) {
  if (spec.object_count != scene.object_count) return false;
  if (spec.background && *spec.background != scene.background) return false;
  const auto object_agrees = [](const ObjectSpec& said, const SceneObject& shown) {
    return (!said.shape || *said.shape == shown.shape) && (!said.colour || *said.colour == shown.colour) &&
           (!said.size || *said.size == shown.size);
  };
  if (scene.object_count == 1) {
    return object_agrees(spec.objects[0], scene.objects[0]) && (!spec.position || *spec.position == scene.position);
  }
  const bool direct = object_agrees(spec.objects[0], scene.objects[0]) &&
                      object_agrees(spec.objects[1], scene.objects[1]) &&
                      (!spec.relation || *spec.relation == scene.relation);
  const bool swapped = object_agrees(spec.objects[0], scene.objects[1]) &&
                       object_agrees(spec.objects[1], scene.objects[0]) &&
                       (!spec.relation || *spec.relation == detail::opposite(scene.relation));
  return direct || swapped;
}

/// Chooses which facts of `scene` a caption mentions; each object keeps its shape or its colour.
inline CaptionSpec sample_spec(lpo::RandomStream& random, const Scene& scene) {
  CaptionSpec spec;
  spec.object_count = scene.object_count;
  const bool single = scene.object_count == 1;
  for (int i = 0; i < scene.object_count; ++i) {
    const SceneObject& shown = scene.objects[static_cast<std::size_t>(i)];
    ObjectSpec& said = spec.objects[static_cast<std::size_t>(i)];
    const std::uint32_t omit = random.uniform_int(24);
    if (omit != 0) said.shape = shown.shape;
    if (omit != 1 && omit != 2) said.colour = shown.colour;
    if (random.bernoulli(single ? 0.65f : 0.35f)) said.size = shown.size;
  }
  if (single && random.bernoulli(0.75f)) spec.position = scene.position;
  if (!single && random.bernoulli(0.85f)) spec.relation = scene.relation;
  if (random.bernoulli(single ? 0.6f : 0.4f)) spec.background = scene.background;
  return spec;
}

namespace detail {

inline std::string object_phrase(lpo::RandomStream& random, const ObjectSpec& object) {
  std::string text = "a ";
  if (object.size) {
    text += *object.size == Size::small ? kSmallWords[random.uniform_int(3)] : kLargeWords[random.uniform_int(2)];
    text += ' ';
  }
  if (object.colour) {
    text += kColourWords[static_cast<std::size_t>(*object.colour)];
    text += ' ';
  }
  return text += object.shape ? kShapeWords[static_cast<std::size_t>(*object.shape)] : std::string_view("shape");
}

inline std::string position_phrase(lpo::RandomStream& random, Position position) {
  const std::string where(kPositionWords[static_cast<std::size_t>(position)]);
  const bool second = random.bernoulli(0.5f);
  switch (position) {
    case Position::centre:
      return second ? "in the center" : "in the middle";
    case Position::left:
    case Position::right:
      return (second ? "on the " : "at the ") + where + (second ? "" : " edge");
    case Position::top:
    case Position::bottom:
      return (second ? "at the " : "near the ") + where;
    default:
      return (second ? "in the " : "at the ") + where + (second ? " corner" : "");
  }
}

inline std::string background_phrase(lpo::RandomStream& random, Background background) {
  static constexpr std::array<std::string_view, 3> kLinks = {"on a ", "against a ", "with a "};
  std::string text(kLinks[random.uniform_int(3)]);
  text += kBackgroundWords[static_cast<std::size_t>(background)];
  return text += " background";
}

inline std::string between_phrase(lpo::RandomStream& random, Relation relation) {
  const bool second = random.bernoulli(0.5f);
  switch (relation) {
    case Relation::left_of:
      return second ? " to the left of " : " left of ";
    case Relation::right_of:
      return second ? " to the right of " : " right of ";
    case Relation::above:
      return second ? " above " : " over ";
    default:
      return second ? " below " : " under ";
  }
}

inline std::string_view aside_phrase(Relation relation) {
  switch (relation) {
    case Relation::left_of:
      return "to its left";
    case Relation::right_of:
      return "to its right";
    case Relation::above:
      return "above it";
    default:
      return "below it";
  }
}

/// "a red circle left of a blue square", or "a blue square with a red circle to its left", or without a relation.
inline std::string pair_phrase(lpo::RandomStream& random, const CaptionSpec& spec) {
  std::string first = object_phrase(random, spec.objects[0]);
  std::string second = object_phrase(random, spec.objects[1]);
  const bool reverse = random.bernoulli(0.5f);
  if (reverse) std::swap(first, second);
  if (!spec.relation) return first + " and " + second;
  const Relation relation = reverse ? opposite(*spec.relation) : *spec.relation;
  if (random.bernoulli(0.75f)) return first + between_phrase(random, relation) + second;
  return second + " with " + first + ' ' + std::string(aside_phrase(relation));
}

}  // namespace detail

/// Says `spec` in one of several phrasings, in lower case. parse_caption() of the result gives the meaning back.
inline std::string write_caption(lpo::RandomStream& random, const CaptionSpec& spec) {
  static constexpr std::array<std::string_view, 4> kOpenings = {"a picture of ", "a drawing of ", "an image of ",
                                                                "there is "};
  const std::string what =
      spec.object_count == 2 ? detail::pair_phrase(random, spec) : detail::object_phrase(random, spec.objects[0]);
  const std::string where = spec.position ? detail::position_phrase(random, *spec.position) : std::string();
  const std::string back = spec.background ? detail::background_phrase(random, *spec.background) : std::string();
  const std::uint32_t style = random.uniform_int(10);
  if (style == 0 && !where.empty()) return where + ", " + what + (back.empty() ? "" : ' ' + back);
  if (style == 1 && !back.empty()) return back + ", " + what + (where.empty() ? "" : ' ' + where);
  std::string text(style >= 2 && style < 6 ? kOpenings[style - 2] : std::string_view());
  text += what;
  if (!where.empty()) text += ' ' + where;
  if (!back.empty()) text += ' ' + back;
  return text;
}

/// Every word that write_caption() can use, each once, in a fixed order; "," is the only punctuation.
inline std::vector<std::string> caption_words() {
  std::vector<std::string> words = {
      "a",   "an",     "and",    "at",     "against", "in",    "it",         "its",     "is",      "near",  "of",
      "on",  "the",    "there",  "to",     "with",    "above", "below",      "over",    "under",   "left",  "right",
      "top", "bottom", "center", "middle", "corner",  "edge",  "background", "picture", "drawing", "image", "shape"};
  const auto append = [&words](const auto& more) { words.insert(words.end(), more.begin(), more.end()); };
  append(kShapeWords);
  append(kColourWords);
  append(kBackgroundWords);
  append(detail::kSmallWords);
  append(detail::kLargeWords);
  return words;
}

/// Splits into lower-case words; anything but letters separates.
inline std::vector<std::string> split_words(std::string_view text) {
  std::vector<std::string> words;
  bool inside = false;
  for (char c : text) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    const bool letter = c >= 'a' && c <= 'z';
    if (letter && !inside) words.emplace_back();
    if (letter) words.back() += c;
    inside = letter;
  }
  return words;
}

/// Reads what a caption constrains. Words it does not know are skipped, so free user text gives its understood part;
/// `object_count` is 0 if the text names no object.
inline CaptionSpec parse_caption(std::string_view text) {
  CaptionSpec spec;
  spec.object_count = 0;
  ObjectSpec pending;
  int column = 0;
  int row = 0;
  bool middle = false;
  std::optional<Relation> direction;
  int direction_after = 0;  // how many objects had been named when the direction word came
  bool towards_it = false;
  for (const std::string& word : split_words(text)) {
    if (const int i = detail::find_word(kColourWords, word); i >= 0) pending.colour = static_cast<Colour>(i);
    if (const int i = detail::find_word(kBackgroundWords, word); i >= 0) spec.background = static_cast<Background>(i);
    if (detail::find_word(detail::kSmallWords, word) >= 0) pending.size = Size::small;
    if (detail::find_word(detail::kLargeWords, word) >= 0) pending.size = Size::large;
    const int shape = detail::find_word(kShapeWords, word);
    if (shape >= 0 || word == "shape") {
      if (shape >= 0) pending.shape = static_cast<Shape>(shape);
      if (spec.object_count < 2) spec.objects[static_cast<std::size_t>(spec.object_count++)] = pending;
      pending = {};
    }
    if (word == "it" || word == "its") towards_it = true;
    if (word == "left" || word == "right") {
      column = word == "left" ? -1 : 1;
      direction = word == "left" ? Relation::left_of : Relation::right_of;
      direction_after = spec.object_count;
    }
    if (word == "above" || word == "over" || word == "below" || word == "under") {
      direction = word == "above" || word == "over" ? Relation::above : Relation::below;
      direction_after = spec.object_count;
    }
    if (word == "top") row = -1;
    if (word == "bottom") row = 1;
    if (word == "center" || word == "middle") middle = true;
  }
  if (spec.object_count == 2 && direction) {
    // "first left of second" says it directly; "first with second to its left" says it of the second.
    if (direction_after == 1 && !towards_it) spec.relation = direction;
    if (towards_it) spec.relation = detail::opposite(*direction);
  }
  if (spec.object_count == 1 && (row != 0 || column != 0 || middle)) {
    spec.position = static_cast<Position>((row + 1) * 3 + column + 1);
  }
  return spec;
}

/// A scene and a sentence about it.
struct CaptionedScene {
  Scene scene;
  CaptionSpec spec;
  std::string caption;
};

/// Draws scenes until one gets a caption of the wanted split; number `index` of the data set `seed`.
inline CaptionedScene sample_captioned(std::uint64_t seed, std::uint64_t index, Split split,
                                       const SceneOptions& options = {}) {
  lpo::RandomStream random(seed, static_cast<std::uint32_t>(index), static_cast<std::uint32_t>(index >> 32));
  CaptionedScene result;
  do {
    result.scene = sample_scene(random, options);
    result.spec = sample_spec(random, result.scene);
  } while (split_of(result.spec) != split);
  result.caption = write_caption(random, result.spec);
  return result;
}

}  // namespace tinyworld
