// SPDX-License-Identifier: MIT
// The scorer: right on clean pictures with nuisance, low for another caption, graded for flawed ones.
#include "../../examples/tinyworld/world/scorer.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cmath>
#include <limits>

#include "../../examples/tinyworld/world/flaws.hpp"

using namespace tinyworld;

namespace {

/// A one-object scene without nuisance.
Scene plain(Shape shape, Colour colour, Size size, Position position, Background background) {
  Scene scene;
  scene.background = background;
  scene.position = position;
  SceneObject& object = scene.objects[0];
  object.shape = shape;
  object.colour = colour;
  object.size = size;
  object.radius = kRadius[static_cast<std::size_t>(size)];
  const auto cell = static_cast<int>(position);
  object.x = 16.0f + 7.0f * static_cast<float>(cell % 3 - 1);
  object.y = 16.0f + 7.0f * static_cast<float>(cell / 3 - 1);
  return scene;
}

float attribute(const Measurement& measured, Attribute which) { return measured.soft[static_cast<std::size_t>(which)]; }

}  // namespace

TEST_CASE("rendered pictures agree with their captions and not with others") {
  const int total = 1500;
  std::array<double, kAttributeCount> right{}, wrong{}, asked{};
  double own_score = 0, other_score = 0, own_global = 0, other_global = 0;
  for (std::uint64_t i = 0; i < total; ++i) {
    const CaptionedScene own = sample_captioned(21, i, Split::evaluation);
    const CaptionedScene other = sample_captioned(22, i, Split::evaluation);
    const Analysis own_picture = analyse(render(own.scene));
    const Analysis other_picture = analyse(render(other.scene));
    CHECK(static_cast<int>(own_picture.objects.size()) == own.scene.object_count);
    const Measurement match = measure(own_picture, parse_caption(own.caption));
    const Measurement mismatch = measure(other_picture, parse_caption(own.caption));
    for (std::size_t a = 0; a < kAttributeCount; ++a) {
      if (std::isnan(match.hard[a])) continue;
      right[a] += match.hard[a], wrong[a] += mismatch.hard[a], asked[a] += 1;
    }
    own_score += match.score / total, other_score += mismatch.score / total;
    own_global += match.global_agreement / total, other_global += mismatch.global_agreement / total;
  }
  for (std::size_t a = 0; a < kAttributeCount; ++a) {
    INFO(kAttributeNames[a]);
    CHECK(asked[a] > 200);
    CHECK(right[a] / asked[a] >= 0.99);
    // Guessing would give 1/5, 1/7, 1/2, 1/9, 1/4 and 1/5; the best match of two objects lies a little above.
    CHECK(wrong[a] / asked[a] <= (a == static_cast<std::size_t>(Attribute::size) ? 0.62 : 0.32));
  }
  CHECK(own_score > 0.85);
  CHECK(other_score < 0.45);
  CHECK(own_global > 0.95);
  CHECK(other_global < 0.2);
}

TEST_CASE("attributes that a caption leaves open are NaN and do not count") {
  const Image image = render(plain(Shape::ring, Colour::blue, Size::large, Position::left, Background::white));
  const Measurement measured = score_image(image, "a ring");
  CHECK(attribute(measured, Attribute::shape) > 0.95f);
  for (const Attribute open :
       {Attribute::colour, Attribute::size, Attribute::position, Attribute::relation, Attribute::background}) {
    CHECK(std::isnan(attribute(measured, open)));
  }
  CHECK(measured.accuracy == 1.0f);
}

TEST_CASE("one wrong attribute costs that attribute only") {
  const Image image = render(plain(Shape::ring, Colour::blue, Size::large, Position::left, Background::white));
  const Measurement right = score_image(image, "a large blue ring on the left with a white background");
  CHECK(right.accuracy == 1.0f);
  CHECK(right.question_agreement > 0.97f);
  struct Case {
    const char* caption;
    Attribute attribute;
  };
  for (const Case& c : {Case{"a large blue cross on the left with a white background", Attribute::shape},
                        Case{"a large green ring on the left with a white background", Attribute::colour},
                        Case{"a small blue ring on the left with a white background", Attribute::size},
                        Case{"a large blue ring at the top with a white background", Attribute::position},
                        Case{"a large blue ring on the left with a gray background", Attribute::background}}) {
    INFO(c.caption);
    const Measurement wrong = score_image(image, c.caption);
    CHECK(wrong.accuracy == doctest::Approx(0.8));
    CHECK(attribute(wrong, c.attribute) < 0.1f);
    CHECK(wrong.question_agreement == doctest::Approx(0.8 * right.question_agreement).epsilon(0.03));
    CHECK(wrong.score < right.score - 0.1f);
    CHECK(wrong.aesthetic == right.aesthetic);
  }
}

TEST_CASE("a missing, a swapped and a surplus object are noticed") {
  Scene scene;
  scene.object_count = 2;
  scene.objects[0] = {Shape::circle, Colour::red, Size::small, 8, 16, 5, 0, {}};
  scene.objects[1] = {Shape::square, Colour::blue, Size::small, 24, 16, 5, 0, {}};
  const Image both = render(scene);
  const Measurement right = score_image(both, "a red circle left of a blue square");
  CHECK(right.accuracy == 1.0f);
  CHECK(right.global_agreement > 0.95f);

  const Measurement swapped = score_image(both, "a red circle right of a blue square");
  CHECK(attribute(swapped, Attribute::relation) < 0.05f);
  CHECK(attribute(swapped, Attribute::colour) > 0.95f);

  scene.object_count = 1;
  const Measurement missing = score_image(render(scene), "a red circle left of a blue square");
  CHECK(missing.accuracy == doctest::Approx(0.4));  // shape and colour of one of two objects, no relation
  CHECK(attribute(missing, Attribute::shape) == doctest::Approx(0.5).epsilon(0.05));
  CHECK(missing.score < right.score - 0.3f);

  const Measurement surplus = score_image(both, "a red circle");
  CHECK(surplus.accuracy == 1.0f);
  CHECK(surplus.global_agreement < 0.75f);
}

TEST_CASE("blur, noise and pale paint cost aesthetics step by step") {
  Scene scene = plain(Shape::triangle, Colour::green, Size::large, Position::centre, Background::white);
  const auto aesthetic = [](const Scene& s) { return aesthetic_score(analyse(render(s))); };
  const float clean = aesthetic(scene);
  CHECK(clean > 9.0f);
  for (float Nuisance::*knob : {&Nuisance::softness, &Nuisance::mottle, &Nuisance::grain}) {
    float last = clean + 1e-4f;
    for (const float level : {1.0f, 2.0f, 3.0f}) {
      Scene flawed = scene;
      flawed.nuisance.*knob = (knob == &Nuisance::softness ? 1.0f : 0.015f) * level;
      const float now = aesthetic(flawed);
      CHECK(now < last);
      last = now;
    }
    CHECK(last < clean - 0.5f);
  }
  float last = clean + 1e-4f;
  for (const float saturation : {0.9f, 0.75f, 0.6f}) {
    scene.nuisance.saturation = saturation;
    CHECK(aesthetic(scene) < last);
    last = aesthetic(scene);
  }
}

TEST_CASE("moving and repainting change the answers smoothly and the right way") {
  Scene scene = plain(Shape::circle, Colour::red, Size::large, Position::left, Background::gray);
  float last = 2;
  for (float x = 9; x <= 23; x += 0.25f) {
    scene.objects[0].x = x;
    const float now = attribute(score_image(render(scene), "a circle on the left"), Attribute::position);
    CHECK(now <= last + 0.02f);
    CHECK(last - now < (last > 1 ? 2.0f : 0.25f));
    last = now;
  }
  CHECK(last < 0.05f);

  const Image red = render(plain(Shape::circle, Colour::red, Size::large, Position::centre, Background::gray));
  const Image pink = render(plain(Shape::circle, Colour::pink, Size::large, Position::centre, Background::gray));
  last = 2;
  for (int step = 0; step <= 10; ++step) {
    Image mixed = red;
    const float t = 0.1f * static_cast<float>(step);
    for (std::size_t i = 0; i < mixed.rgb.size(); ++i) mixed.rgb[i] = (1 - t) * red.rgb[i] + t * pink.rgb[i];
    const float now = attribute(score_image(mixed, "a red circle"), Attribute::colour);
    CHECK(now <= last + 0.02f);
    last = now;
  }
  CHECK(last < 0.05f);
}

TEST_CASE("degenerate pictures score low and finite") {
  Image blank;
  const Measurement nothing = score_image(blank, "a red circle on the left");
  CHECK(nothing.accuracy == 0.0f);
  CHECK(nothing.score < 0.2f);
  lpo::RandomStream random(4);
  Image noise;
  for (float& value : noise.rgb) value = random.uniform();
  CHECK(score_image(noise, "a red circle on the left").score < 0.5f);
  Image broken;
  for (float& value : broken.rgb) value = std::numeric_limits<float>::quiet_NaN();
  CHECK(std::isfinite(score_image(broken, "a red circle").score));
  for (float& value : broken.rgb) value = std::numeric_limits<float>::infinity();
  CHECK(std::isfinite(score_image(broken, "a red circle").score));
  CHECK(std::isfinite(score_image(noise, "words without an object").score));
  Image small;
  small.width = 16;
  CHECK_THROWS_AS(score_image(small, "a red circle"), std::invalid_argument);
}

TEST_CASE("the score falls as the stand-in generator gets worse") {
  double last = 1;
  for (const float level : {0.0f, 0.15f, 0.3f, 0.5f}) {
    FlawOptions options;
    options.wrong_attribute = level;
    options.missing_object = level;
    options.max_blur = 0.3f + 2 * level;
    options.max_stain = level;
    double mean = 0;
    const int total = 300;
    for (std::uint64_t i = 0; i < total; ++i) {
      const CaptionedScene sample = sample_captioned(31, i, Split::evaluation);
      lpo::RandomStream random(32, static_cast<std::uint32_t>(i));
      mean += score_image(attempt(random, sample.scene, options), sample.caption).score / total;
    }
    CHECK(mean < last - 0.05);
    last = mean;
  }
}
