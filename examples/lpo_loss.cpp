// SPDX-License-Identifier: MIT
// Latent preference optimization of a small UNet's LoRA on two pairs of latents.
#include <cstdio>
#include <vector>

#include <lpo/lpo.hpp>

constexpr lpo::UNetConfig tiny{.levels = 2,
                               .channels = {16, 32},
                               .layers_per_block = 1,
                               .transformer_depth = {1, 1},
                               .heads = {2, 2},
                               .context_width = 24,
                               .groups = 8};

int main() {
  using lpo::Cpu;
  lpo::Context<Cpu> context;
  lpo::Tape<Cpu> tape(context);
  lpo::UNet2DCondition<tiny, float, Cpu> unet;
  lpo::enable_lora<float, Cpu>(unet, /*rank=*/4, /*alpha=*/4);
  lpo::ParameterStore<float, Cpu> store;
  store.add("unet", unet);
  store.allocate(lpo::is_lora_name);  // only the LoRA is trained
  store.initialize(/*seed=*/1);
  lpo::AdamW<float, Cpu> optimizer(
      context, {{store.trainable_values(), store.trainable_gradients(), store.trainable_size()}}, {});

  const lpo::NoiseSchedule schedule;
  const std::vector<lpo::GaussianStep> steps(2, lpo::ddim_step(schedule, /*timestep=*/501, /*stride=*/50, /*eta=*/1.0));
  const std::vector<float> timesteps(2, 501.0f);
  lpo::Tensor<float, 4> x({2, 8, 8, 4}), z_win({2, 8, 8, 4}), z_lose({2, 8, 8, 4});
  lpo::Tensor<float, 3> text({2, 6, 24});
  lpo::fill_normal(context, x.view(), {2});
  lpo::fill_normal(context, z_win.view(), {3});
  lpo::fill_normal(context, z_lose.view(), {4});
  lpo::fill_normal(context, text.view(), {5});
  const auto predict = [&] { return unet(constant(tape, x), {timesteps, constant(tape, text), {}, {}}); };

  lpo::Tensor<float, 4> reference;  // the same weights with the LoRA off
  {
    const lpo::Tape<Cpu>::ModeGuard mode(tape, /*recording=*/false, /*adapters=*/false);
    reference = predict().view();
    tape.clear();
  }
  const lpo::Tensor x_win = steps[0].next(x, reference, z_win), x_lose = steps[0].next(x, reference, z_lose);

  for (int i = 0; i <= 5; ++i) {
    store.reset_gradients();
    const auto loss = lpo::lpo_loss(predict(), reference, x, x_win, x_lose, steps, {.beta = 500});
    std::printf("step %d   loss %.6f\n", i, item(loss));
    backward(loss);
    store.finish_gradients();
    tape.clear();
    optimizer.step(/*learning_rate=*/1e-3, /*gradient_scale=*/1);
  }
}
