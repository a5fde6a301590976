// SPDX-License-Identifier: MIT
// One fused expression, its derivative, and an error that says what is wrong.
#include <cstdio>
#include <vector>

#include <lpo/lpo.hpp>

int main() {
  lpo::Context<lpo::Cpu> context;
  lpo::Tape<lpo::Cpu> tape(context);
  auto x = lpo::Tensor<float, 2>::from({2, 3}, std::vector<float>{-2, -1, 0, 1, 2, 3});
  const auto ones = lpo::Tensor<float, 2>::full({2, 3}, 1);

  const lpo::Var in = lpo::variable(tape, x);
  const lpo::Var y = 0.5 * in + lpo::exp(-in);  // one pass over memory, [2, 3]
  const lpo::Tensor values = y.view();          // backward gives the tape's memory back, so keep a copy
  lpo::backward(y, ones.view());                // one more pass
  const auto slopes = lpo::read_gradient(in);   // 0.5 - exp(-x)
  for (int i = 0; i < 6; ++i)
    std::printf("x %5.1f   y %8.4f   dy/dx %8.4f\n", double(x.data()[i]), double(values.data()[i]),
                double(slopes.data()[i]));

  try {
    const lpo::Tensor sum = x + lpo::Tensor<float, 2>::zeros({2, 1});
  } catch (const lpo::ShapeError& error) {
    std::printf("%s: %s\n", error.id(), error.what());
  }
}
