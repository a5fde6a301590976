// SPDX-License-Identifier: MIT
// LatentRewardModel against the same written in PyTorch: features, scores, losses and all gradients; its options.
#include <doctest/doctest.h>

#include "../model/model_backends.hpp"
#include "../model/model_goldens.hpp"

#include <lpo/backend/cpu/cross_entropy.hpp>
#include <lpo/backend/reference/cross_entropy.hpp>
#include <lpo/reward/latent_reward_model.hpp>
#include <lpo/reward/loss.hpp>

using namespace lpo;

namespace {

/// A golden LRM: weights and inputs of the file, 3 pairs (6 latents).
template <UNetConfig C, int TextWidth, int Width, bool TextProjection, class T, class Device>
struct Golden {
  using Model = LatentRewardModel<C, TextWidth, Width, TextProjection, T, Device>;
  static constexpr index_t pairs = 3;

  SafetensorsFile file;
  Model lrm;
  ParameterStore<T, Device> store;
  Tensor<T, 4, Device> latents;
  Tensor<T, 3, Device> context, context_empty;
  Tensor<T, 2, Device> text, text_empty;
  std::vector<float> timesteps, time_ids;
  std::vector<PreferenceLabel> labels;
  Context<Device> device{2};
  Tape<Device> tape{device};

  Golden(const char* name, const char* base, const RewardFeatureOptions& features = {}) : file(golden::open(name)) {
    lrm.use_features(features);
    store.add("", lrm);
    store.allocate_all_trainable();
    load_parameters(store, golden::open(base), {.model_prefix = "unet", .file_prefix = "weights/"});
    const auto all = golden::tensor<T, 2, Device>(file, "in/visual_projection");
    const index_t width = C.feature_width(features.multi_scale), skipped = C.feature_width() - width;
    for (index_t o = 0; o < Width; ++o)  // the middle's columns are the last
      for (index_t i = 0; i < width; ++i) lrm.visual_projection.weight.data()[o * width + i] = all(o, skipped + i);
    if constexpr (TextProjection)
      file.read("in/text_projection", lrm.text_projection.weight.data(), lrm.text_projection.weight.size());
    file.read("in/logit_scale", lrm.logit_scale.data(), 1);
    latents = golden::tensor<T, 4, Device>(file, "in/latents");
    context = golden::tensor<T, 3, Device>(file, "in/context");
    context_empty = golden::tensor<T, 3, Device>(file, "in/context_uncond");
    text = golden::tensor<T, 2, Device>(file, "in/text");
    if (file.contains("in/text_uncond")) {
      text_empty = golden::tensor<T, 2, Device>(file, "in/text_uncond");
      for (index_t i = 0; i < 2 * pairs; ++i)
        for (const float id : file.read_vector<float>("in/time_ids")) time_ids.push_back(id);
    }
    for (int image = 0; image < 2; ++image)
      for (const auto t : file.read_vector<std::int64_t>("in/timestep")) timesteps.push_back(static_cast<float>(t));
    const auto label = file.read_vector<float>("in/labels"), count = file.read_vector<float>("in/num_examples");
    for (std::size_t i = 0; i < count.size(); ++i) labels.push_back({label[2 * i], label[2 * i + 1], count[i], false});
  }

  struct Inputs {
    Var<T, 4, Device> latents;
    Var<T, 3, Device> context, context_empty;
    Var<T, 2, Device> text, text_empty;
  };
  Inputs inputs() {
    Inputs in{variable(tape, latents), variable(tape, context), variable(tape, context_empty), variable(tape, text), {}};
    if (text_empty.size() > 0) in.text_empty = variable(tape, text_empty);
    return in;
  }

  template <int Rank>
  static Var<T, Rank, Device> repeat(const Var<T, Rank, Device>& row, index_t count) {
    auto all = row;
    for (index_t i = 1; i < count; ++i) all = concat_batch(all, row);
    return all;
  }

  RewardPrompt<T, Device> prompt(const Inputs& in) {
    RewardPrompt<T, Device> p;
    p.context = concat_batch(in.context, in.context);
    p.context_empty = repeat(in.context_empty, 2 * pairs);
    if (in.text_empty.present()) {
      p.text_embedding = concat_batch(in.text, in.text);
      p.text_embedding_empty = repeat(in.text_empty, 2 * pairs);
      p.time_ids = time_ids;
    }
    return p;
  }

  void check(double tolerance) {
    const auto in = inputs();
    const auto features = lrm.features(in.latents, timesteps, prompt(in));
    golden::check_value(file, "out/features", features, tolerance);
    const auto visual = lrm.visual_projection(features);
    golden::check_value(file, "out/visual", visual, tolerance);
    const Var<T, 2, Device> plain = visual;
    const Var<T, 2, Device> q = lrm.text(in.text);
    golden::check_value(file, "out/text", q, tolerance);
    const auto scale = lrm.logit_scale.on(tape);
    golden::check_value(file, "out/scores", cosine_score(plain, concat_batch(q, q), scale), tolerance);
    const auto first = plain.slice(0, 0, pairs), second = plain.slice(0, pairs, 2 * pairs);
    golden::check_value(file, "out/pair_losses", pair_losses(cosine_score(first, q, scale), cosine_score(second, q, scale), labels), tolerance);
    golden::check_value(file, "out/batch_losses", batch_losses(first, second, q, scale, labels), tolerance);
    const auto loss = reward_loss(first, second, q, scale, labels);
    golden::check_value(file, "out/loss_pair", loss, tolerance);

    store.reset_gradients();
    backward(loss);
    store.finish_gradients();
    golden::check_gradient(file, "grad/in/latents", in.latents, tolerance);
    golden::check_gradient(file, "grad/in/context", in.context, tolerance);
    golden::check_gradient(file, "grad/in/context_uncond", in.context_empty, tolerance);
    golden::check_gradient(file, "grad/in/text", in.text, tolerance);
    if (in.text_empty.present()) golden::check_gradient(file, "grad/in/text_uncond", in.text_empty, tolerance);
    check_head("grad/in/", tolerance);
    CHECK(golden::check_weight_gradients(file, store, tolerance, "grad/", "unet.") > 40);
    CHECK(golden::check_gradient_statistics(file, store, tolerance, "unet.") > 60);
    tape.clear();
  }

  void check_batch(double tolerance) {
    const auto in = inputs();
    const Var<T, 2, Device> visual = lrm.visual(in.latents, timesteps, prompt(in));
    const Var<T, 2, Device> q = lrm.text(in.text);
    const auto loss = reward_loss(visual.slice(0, 0, pairs), visual.slice(0, pairs, 2 * pairs), q, lrm.logit_scale.on(tape), labels,
                                  {.kind = RewardLossOptions::Kind::batch});
    golden::check_value(file, "out/loss_batch", loss, tolerance);
    store.reset_gradients();
    backward(loss);
    store.finish_gradients();
    check_head("grad_batch/in/", tolerance);
    tape.clear();
  }

  void check_head(const std::string& prefix, double tolerance) {
    const auto check_one = [&](const std::string& name, const AnyParameter<T, Device>& p) {
      const auto truth = file.read_vector<double>(prefix + name);
      CAPTURE(name);
      CHECK(golden::relative_error(p.gradient(), truth.data(), p.size()) <= tolerance);
    };
    check_one("visual_projection", lrm.visual_projection.weight);
    if constexpr (TextProjection) check_one("text_projection", lrm.text_projection.weight);
    check_one("logit_scale", lrm.logit_scale);
  }
};

}  // namespace

// Guidance 7.5 amplifies rounding: PyTorch itself misses the truth by up to 9e-6 in float, so gradients get 3e-5.
TEST_CASE("the reward model of SD1.5's shape equals PyTorch") {
  Golden<golden::sd15, 14, 10, true, float, Cpu> golden("lrm_sd15", "unet_sd15");
  golden.check(3e-5);
  golden.check_batch(3e-5);
}
TEST_CASE("the reward model of SDXL's shape equals PyTorch") {
  Golden<golden::sdxl, 16, 16, false, float, Cpu> golden("lrm_sdxl", "unet_sdxl");
  golden.check(3e-5);
  golden.check_batch(3e-5);
}
TEST_CASE("in double the reward model equals the truth to the file's rounding") {
  Golden<golden::sd15, 14, 10, true, double, Reference> golden("lrm_sd15", "unet_sd15");
  golden.check(3e-7);
  golden.check_batch(3e-7);
}

TEST_CASE("feature options: no guidance, middle only, guided levels") {
  Golden<golden::sd15, 14, 10, true, double, Reference> g("lrm_sd15", "unet_sd15");
  const auto guard = g.tape.inference();
  const auto in = g.inputs();
  const auto prompt = g.prompt(in);
  const auto mid_c = golden::tensor<double, 2, Reference>(g.file, "out/pooled/mid_cond");
  const auto mid_u = golden::tensor<double, 2, Reference>(g.file, "out/pooled/mid_uncond");
  const auto stage_1 = golden::tensor<double, 2, Reference>(g.file, "out/pooled/stage1");

  g.lrm.options.guidance = 1.0f;  // the unconditional pass is off: no text states of "" are needed
  auto without = prompt;
  without.context_empty = {};
  const auto plain = g.lrm.features(in.latents, g.timesteps, without);
  CHECK(plain.extent(1) == 72);
  for (index_t c = 0; c < 16; ++c) CHECK(plain.view()(2, 56 + c) == doctest::Approx(mid_c(2, c)).epsilon(1e-5));

  g.lrm.options.guidance = 7.5f;
  g.lrm.options.multi_scale = false;
  const auto middle = g.lrm.features(in.latents, g.timesteps, prompt);
  CHECK(middle.extent(1) == 16);
  for (index_t c = 0; c < 16; ++c)
    CHECK(middle.view()(1, c) == doctest::Approx(mid_u(1, c) + 7.5 * (mid_c(1, c) - mid_u(1, c))).epsilon(1e-5));

  g.lrm.options.multi_scale = true;
  g.lrm.options.multi_scale_cfg = true;
  const auto guided = g.lrm.features(in.latents, g.timesteps, prompt);
  CHECK(std::fabs(guided.view()(0, 0) - stage_1(0, 0)) > 1e-6);
  g.lrm.options.sdxl_first_unguided = true;
  const auto first_plain = g.lrm.features(in.latents, g.timesteps, prompt);
  for (index_t c = 0; c < 8; ++c) CHECK(first_plain.view()(0, c) == doctest::Approx(stage_1(0, c)).epsilon(1e-5));
  CHECK_THROWS_WITH_AS(g.lrm.features(in.latents, g.timesteps, without), doctest::Contains("empty prompt"), ValueError);
}

TEST_CASE("a single-scale model projects the guided middle alone, as wide as it is") {
  using G = Golden<golden::sd15, 14, 10, true, double, Reference>;
  G g("lrm_sd15", "unet_sd15", {.multi_scale = false});
  CHECK(g.lrm.visual_projection.weight.extents[0] == 10);
  CHECK(g.lrm.visual_projection.weight.extents[1] == 16);
  const auto in = g.inputs();
  const auto prompt = g.prompt(in);
  const Var<double, 2, Reference> q = g.lrm.text(in.text);
  const auto visual = g.lrm.visual(in.latents, g.timesteps, prompt);
  const auto scores = cosine_score(visual, concat_batch(q, q), g.lrm.logit_scale.on(g.tape));

  // The same from PyTorch's pooled maps, text features and the last columns of its projection.
  const auto mid_c = golden::tensor<double, 2, Reference>(g.file, "out/pooled/mid_cond");
  const auto mid_u = golden::tensor<double, 2, Reference>(g.file, "out/pooled/mid_uncond");
  const auto projection = golden::tensor<double, 2, Reference>(g.file, "in/visual_projection");
  const auto text = golden::tensor<double, 2, Reference>(g.file, "out/text");
  const double scale = std::exp(g.file.read_vector<double>("in/logit_scale")[0]);
  for (index_t row = 0; row < 6; ++row) {
    double dot = 0, v2 = 0, q2 = 0;
    for (index_t o = 0; o < 10; ++o) {
      double v = 0;
      for (index_t c = 0; c < 16; ++c)
        v += projection(o, 56 + c) * (mid_u(row, c) + 7.5 * (mid_c(row, c) - mid_u(row, c)));
      const double t = text(row % 3, o);
      dot += v * t, v2 += v * v, q2 += t * t;
    }
    CHECK(scores.data()[row] == doctest::Approx(scale * dot / std::sqrt(v2 * q2)).epsilon(1e-5));
  }

  g.store.reset_gradients();
  backward(reward_loss(visual.slice(0, 0, 3), visual.slice(0, 3, 6), q, g.lrm.logit_scale.on(g.tape), g.labels));
  g.store.finish_gradients();
  double size = 0;
  for (index_t i = 0; i < 160; ++i) size += std::fabs(g.lrm.visual_projection.weight.gradient()[i]);
  CHECK(size > 1e-6);
  CHECK_THROWS_WITH_AS(g.lrm.use_features({}), doctest::Contains("16 features wide"), ValueError);
}
