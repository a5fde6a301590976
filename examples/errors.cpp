// SPDX-License-Identifier: MIT
// What lpo says when something is wrong: one example of every kind of exception, with its id.
#include <cstdio>
#include <span>
#include <vector>

#include <lpo/io/safetensors.hpp>
#include <lpo/lpo.hpp>

using lpo::Cpu;

template <class Action>
void show(Action&& action) {
  try {
    action();
  } catch (const lpo::Error& error) {
    std::printf("%s: %s\n", error.id(), error.what());
  }
}

int main() {
  lpo::Context<Cpu> context;
  lpo::Tape<Cpu> tape(context);
  const lpo::NoiseSchedule schedule;
  auto images = lpo::Tensor<float, 4>::zeros({1, 8, 8, 6});
  auto weight = lpo::Tensor<float, 4>::zeros({16, 3, 3, 4});
  auto row = lpo::Tensor<float, 2>::zeros({1, 3}), wide = lpo::Tensor<float, 2>::zeros({1, 4});

  show([&] { row = row + lpo::Tensor<float, 2>::zeros({2, 4}); });
  show([&] { conv2d(constant(tape, images), constant(tape, weight), {}, lpo::Conv2dOptions::same(3)); });
  show([&] { images.view().slice(0, 0, 2); });
  show([&] { lpo::Tensor<float, 2>::from({2, 2}, std::vector<float>{1, 2, 3}); });

  show([&] { schedule.alpha_bar(1000); });
  show([&] {
    const lpo::Var x = lpo::variable(tape, row);
    const lpo::Var loss = mean(x);
    backward(loss);
    backward(loss);
  });
  show([&] {
    lpo::Linear<4, 4, float, Cpu> layer;
    layer(constant(tape, wide));
  });
  show([&] {
    const std::vector<lpo::GaussianStep> steps{lpo::ddim_step(schedule, 501, 50, /*eta=*/0.0)};
    const auto x = lpo::Tensor<float, 4>::zeros({1, 2, 2, 4});
    lpo::lpo_loss(constant(tape, x), x, x, x, x, steps);
  });

  show([&] { lpo::SafetensorsFile file("missing.safetensors"); });

  show([&] {
    struct Zero {
      void predict(lpo::View<const float, 4, Cpu>, double, lpo::View<float, 4, Cpu>) {}
    } model;
    const auto steps = lpo::ddim_steps(schedule, 20, 0.0);
    lpo::sample(context, std::span<const lpo::GaussianStep>(steps), model, images.view(), /*seed=*/1,
                [](int done, int) { return done < 3; });
  });
}
