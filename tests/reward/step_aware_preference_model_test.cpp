// SPDX-License-Identifier: MIT
// CLIPVisionModel against transformers; the step-aware preference model and its preparation of pictures against
// PyTorch: values and gradients; files as PickScore and SPO are released.
#include <doctest/doctest.h>

#include <memory>

#include <lpo/io/step_aware_preference_file.hpp>
#include <lpo/reward/clip_pixels.hpp>
#include <lpo/reward/loss.hpp>
#include <lpo/reward/step_aware_preference_model.hpp>

#include "../model/model_backends.hpp"
#include "../model/model_goldens.hpp"

#include <lpo/backend/cpu/cross_entropy.hpp>
#include <lpo/backend/reference/cross_entropy.hpp>
#include <lpo/testing/test_context.hpp>

using namespace lpo;

namespace {

inline constexpr ClipVisionConfig plain{.width = 16,
                                        .hidden = 40,
                                        .layers = 2,
                                        .heads = 2,
                                        .image_size = 12,
                                        .patch = 4,
                                        .quick_gelu = false,
                                        .projection = 12};
inline constexpr ClipVisionConfig modulated{.width = 16,
                                            .hidden = 40,
                                            .layers = 2,
                                            .heads = 2,
                                            .image_size = 12,
                                            .patch = 4,
                                            .quick_gelu = false,
                                            .projection = 12,
                                            .time_modulated = true};
const std::vector<float> timesteps = {7, 601, 7, 601};
const std::vector<PreferenceLabel> labels = {{1.0f, 0.0f, 1.0f, false}, {0.5f, 0.5f, 3.0f, false}};

template <class T, class Device>
void check_tower(double tolerance) {
  const auto file = golden::open("clip_vision");
  auto model = std::make_unique<CLIPVisionModel<plain, T, Device>>();
  ParameterStore<T, Device> store;
  store.add("", *model);
  store.allocate_all_trainable();
  load_parameters(store, file, {.file_prefix = "weights/"});
  auto context = testing::test_context<Device>(2);
  Tape<Device> tape(context);
  store.reset_gradients();
  const auto pixels = golden::tensor<T, 4, Device>(file, "in/pixel_values");
  const auto out = (*model)(constant(tape, pixels));
  golden::check_value(file, "plain/out/last_hidden_state", out.last_hidden_state, tolerance);
  golden::check_value(file, "plain/out/image_embeds", out.image_embedding, tolerance);
  const auto to_last = golden::tensor<T, 3, Device>(file, "in/cotangent/last_hidden_state");
  const auto to_embeds = golden::tensor<T, 2, Device>(file, "in/cotangent/image_embeds");
  const Var states = out.last_hidden_state * to_last;
  const Var embeds = out.image_embedding * to_embeds;
  const Var loss = sum(states) + sum(embeds);
  backward(loss);
  store.finish_gradients();
  CHECK(golden::check_weight_gradients(file, store, tolerance, "plain/grad/") + plain.layers ==
        static_cast<int>(store.entries().size()));
}

template <class T, class Device>
void check_preference_model(double tolerance, double scale_tolerance) {
  const auto file = golden::open("clip_vision");
  auto model = std::make_unique<StepAwarePreferenceModel<modulated, golden::gelu_text, T, Device>>();
  ParameterStore<T, Device> store;
  store.add("", *model);
  store.allocate_all_trainable();
  CHECK(load_parameters(store, file, {.file_prefix = "weights/"}).unused.empty());
  auto context = testing::test_context<Device>(2);
  Tape<Device> tape(context);
  store.reset_gradients();
  const auto pixels = golden::tensor<T, 4, Device>(file, "in/pixel_values");
  const auto ids = file.template read_vector<std::int32_t>("in/input_ids");
  const auto visual = model->visual(constant(tape, pixels), timesteps);
  golden::check_value(file, "step/out/embeds", visual, tolerance);
  const auto texts = model->text(tape, ids, 2);
  const auto first = contiguous(visual.slice(0, 0, 2)), second = contiguous(visual.slice(0, 2, 4));
  const auto scale = model->logit_scale.on(tape);
  {
    const auto guard = tape.inference();
    const auto both = concat_batch(cosine_score(first, texts, scale), cosine_score(second, texts, scale));
    golden::check_value(file, "step/out/scores", both.reshape(Extents<2>{2, 2}), tolerance);
  }
  const auto loss = reward_loss(first, second, texts, scale, labels);
  golden::check_value(file, "step/out/loss", loss, tolerance);
  backward(loss);
  store.finish_gradients();
  // A key bias has no gradient; logit_scale's is a difference that nearly cancels.
  const int checked = golden::check_weight_gradients(file, store, std::max(tolerance, scale_tolerance), "step/grad/");
  CHECK(checked + modulated.layers + golden::gelu_text.layers == static_cast<int>(store.entries().size()));
}

template <class T, class Device>
void check_pixels(double tolerance) {
  const auto file = golden::open("clip_vision");
  auto context = testing::test_context<Device>(2);
  Tape<Device> tape(context);
  const auto pictures = golden::tensor<T, 4, Device>(file, "in/pictures");
  const auto pixels = make_output<T>(tape, Extents<4>{2, 12, 12, 3}, false);
  clip_pixels<T>(context, pictures.view(), pixels.view());
  golden::check_value(file, "prepared/out/pixels", pixels, tolerance);
}

}  // namespace

TEST_CASE("CLIP vision tower equals transformers, forward and gradients") {
  check_tower<float, Cpu>(1e-5);
  check_tower<double, Reference>(2e-7);
}

TEST_CASE("step-aware preference model equals PyTorch: embeddings, scores, pair loss and gradients") {
  check_preference_model<float, Cpu>(1e-5, 1e-4);
  check_preference_model<double, Reference>(2e-7, 1e-6);
}

TEST_CASE("pictures are prepared as PyTorch's bicubic interpolation and CLIP's normalisation do it") {
  check_pixels<float, Cpu>(1e-5);
  check_pixels<double, Reference>(2e-7);
}

TEST_CASE("pictures that are not square: the shorter side fits, the middle of the longer one stays") {
  Context<Reference> context(1);
  Tensor<double, 4, Reference> wide(Extents<4>{1, 2, 6, 3}), pixels(Extents<4>{1, 2, 2, 3});
  for (index_t i = 0; i < wide.size(); ++i) wide.data()[i] = static_cast<double>((i / 3) % 6) / 10 - 0.2;  // by column
  clip_pixels<double>(context, wide.view(), pixels.view());
  const double mean[] = {0.48145466, 0.4578275, 0.40821073}, deviation[] = {0.26862954, 0.26130258, 0.27577711};
  for (int column = 0; column < 2; ++column)
    for (int c = 0; c < 3; ++c)
      CHECK(pixels.data()[3 * column + c] ==
            doctest::Approx(((0.1 * (2 + column) - 0.2) / 2 + 0.5 - mean[c]) / deviation[c]));
  CHECK_THROWS_AS(clip_pixels<double>(context, wide.view(), wide.view()), ShapeError);
}

TEST_CASE("with modulation as it is initialised, time does not matter and the tower is the plain one") {
  const auto file = golden::open("clip_vision");
  auto tower = std::make_unique<CLIPVisionModel<plain, double, Reference>>();
  auto timed = std::make_unique<CLIPVisionModel<modulated, double, Reference>>();
  ParameterStore<double, Reference> store, timed_store;
  store.add("", *tower);
  timed_store.add("", *timed);
  store.allocate_frozen();
  timed_store.allocate_frozen();
  timed_store.initialize(3);
  timed->open_gates();
  load_parameters(store, file, {.file_prefix = "weights/"});
  for (const auto& entry : timed_store.entries())
    for (const auto& same : store.entries())
      if (same.name == entry.name) std::copy_n(same.parameter->data(), same.parameter->size(), entry.parameter->data());
  Context<Reference> context(1);
  Tape<Reference> tape(context);
  const auto pixels = golden::tensor<double, 4, Reference>(file, "in/pixel_values");
  const auto time = golden::tensor<double, 3, Reference>(file, "in/cotangent/last_hidden_state");  // any numbers
  const auto a = (*tower)(constant(tape, pixels)).image_embedding;
  const auto b =
      (*timed)(constant(tape, pixels), contiguous(constant(tape, time).reshape(Extents<2>{40, 16}).slice(0, 0, 4)))
          .image_embedding;
  for (index_t i = 0; i < a.size(); ++i) CHECK(b.data()[i] == doctest::Approx(a.data()[i]).epsilon(1e-12));
}

TEST_CASE("files that transformers saved of a CLIPModel, and a torch file of SPO's names, give their scores") {
  const std::string folder = std::string(LPO_TEST_GOLDEN_DIR) + "/pickscore";
  const SafetensorsFile file(folder + "/expected.safetensors");
  auto model = std::make_unique<StepAwarePreferenceModel<modulated, golden::gelu_text, float, Cpu>>();
  ParameterStore<float, Cpu> store;
  store.add("", *model);
  store.allocate_frozen();
  store.initialize(1);
  Context<Cpu> context(1);
  Tape<Cpu> tape(context);
  const auto pixels = golden::tensor<float, 4, Cpu>(file, "in/pixel_values");
  const auto ids = file.read_vector<std::int32_t>("in/input_ids");
  const auto check_scores = [&](const char* expected) {
    const auto guard = tape.inference();
    const std::vector<float> times{7, 601};
    golden::check_value(file, expected, model->score(constant(tape, pixels), times, model->text(tape, ids, 2)), 1e-5);
    tape.clear();
  };
  model->vision.open_gates();  // modulation as it is initialised is none
  const auto report = load_clip_model(folder, *model, store);
  CHECK(report.unused == std::vector<std::string>{"text_model.embeddings.position_ids",
                                                  "vision_model.embeddings.position_ids"});
  check_scores("clip/scores");
  load_preference_model(folder + "/step_aware.bin", *model, store);
  check_scores("step/scores");
}

TEST_CASE("pictures of another size and missing times are refused") {
  auto tower = std::make_unique<CLIPVisionModel<modulated, float, Cpu>>();
  Context<Cpu> context(1);
  Tape<Cpu> tape(context);
  Tensor<float, 4, Cpu> small(Extents<4>{1, 8, 8, 3}), right(Extents<4>{1, 12, 12, 3});
  CHECK_THROWS_WITH_AS((*tower)(constant(tape, small)), doctest::Contains("prepare them with clip_pixels"), ShapeError);
  CHECK_THROWS_WITH_AS((*tower)(constant(tape, right)), doctest::Contains("time embedding for each of 1"), ShapeError);
}

namespace {
template <class Model>
index_t weights_of() {
  auto model = std::make_unique<Model>();
  index_t count = 0;
  for_each_parameter<float, Cpu>(*model, [&](const std::string&, AnyParameter<float, Cpu>& p) { count += p.size(); });
  return count;
}
}  // namespace

TEST_CASE("presets have the published sizes") {
  CHECK(weights_of<CLIPVisionModel<presets::clip_vision_l, float, Cpu>>() == 303'966'208);
  CHECK(weights_of<CLIPVisionModel<presets::clip_vision_h, float, Cpu>>() == 632'076'800);
}
