// SPDX-License-Identifier: MIT
// A down block of a UNet as a type: its weights under the names of a checkpoint, and one forward pass.
#include <cstdio>

#include <lpo/lpo.hpp>

int main() {
  using lpo::Cpu;
  constexpr lpo::UNetBlockSpec spec{.time_width = 128, .groups = 8, .context_width = 48};
  // 32 channels in, 64 out, one layer, downsampling, a transformer of depth 1 with 4 heads
  lpo::DownBlock2D<32, 64, 1, true, lpo::TransformerSpec{1, 4}, spec, float, Cpu> block;
  lpo::ParameterStore<float, Cpu> store;
  store.add("unet.down_blocks.1", block);
  store.allocate_all_trainable();
  store.initialize(/*seed=*/1);
  std::printf("%lld parameters in %zu weights, the last is %s\n", static_cast<long long>(store.parameter_count()),
              store.entries().size(), store.entries().back().name.c_str());

  lpo::Context<Cpu> context;
  lpo::Tape<Cpu> tape(context);
  lpo::Tensor<float, 4> x({2, 16, 16, 32});
  lpo::Tensor<float, 2> time({2, 128});
  lpo::Tensor<float, 3> text({2, 7, 48});
  lpo::fill_normal(context, x.view(), {/*seed=*/2});
  lpo::fill_normal(context, time.view(), {3});
  lpo::fill_normal(context, text.view(), {4});

  lpo::Var<float, 4, Cpu> skips[2];
  const auto y = block(constant(tape, x), constant(tape, time), constant(tape, text), skips);  // [2, 8, 8, 64]
  std::printf("in %s   skip %s   out %s\n", to_string(x.extents()).c_str(), to_string(skips[0].extents()).c_str(),
              to_string(y.extents()).c_str());
  const lpo::Var squares = lpo::square(y);
  std::printf("mean square of the output: %.4f\n", item(lpo::mean(squares)));
}
