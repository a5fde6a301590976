// SPDX-License-Identifier: MIT
// Group norm, layer norm and softmax: closed forms, central differences, and the CPU backend against the reference.
#include <lpo/backend/cpu/normalization.hpp>
#include <lpo/backend/reference/normalization.hpp>

#include <backend/normalization_cases.hpp>

using namespace normalization_cases;

TEST_CASE("norms of small vectors have their textbook values") {
  check_known_norms<lpo::Reference>();
  check_known_norms<lpo::Cpu>();
}

TEST_CASE("softmax of small rows has its textbook values and does not overflow") {
  check_known_softmax<lpo::Reference>();
  check_known_softmax<lpo::Cpu>();
}

TEST_CASE("reference group norm gradients agree with central differences") {
  for (const bool silu : {false, true}) {
    const lpo::kernel::GroupNormShape shape{2, 3, 6, 2, 1e-5f, silu};
    lpo::Context<lpo::Reference> ctx(1);
    auto x = noise<double>(36, 1), weight = noise<double>(6, 2, 0.5, 1.0), bias = noise<double>(6, 3);
    const auto dy = noise<double>(36, 4);
    std::vector<double> y(36), mean(4), inverse(4), dx(36), dweight(6), dbias(6);
    const auto loss = [&] {
      lpo::kernel::GroupNorm<lpo::Reference>::forward(ctx, shape, x.data(), weight.data(), bias.data(), y.data(),
                                                      mean.data(), inverse.data());
      return dot(y, dy);
    };
    loss();
    lpo::kernel::GroupNorm<lpo::Reference>::backward(ctx, shape, x.data(), weight.data(), bias.data(), mean.data(),
                                                     inverse.data(), dy.data(), dx.data(), false, dweight.data(), false,
                                                     dbias.data(), false);
    CHECK(gradient_error(x, dx, loss) < 1e-8);
    CHECK(gradient_error(weight, dweight, loss) < 1e-8);
    CHECK(gradient_error(bias, dbias, loss) < 1e-8);
  }
}

TEST_CASE("reference layer norm and softmax gradients agree with central differences") {
  lpo::Context<lpo::Reference> ctx(1);
  auto x = noise<double>(15, 1), weight = noise<double>(5, 2, 0.5, 1.0), bias = noise<double>(5, 3);
  const auto dy = noise<double>(15, 4);
  std::vector<double> y(15), mean(3), inverse(3), dx(15), dweight(5), dbias(5);
  const auto loss = [&] {
    lpo::kernel::LayerNorm<lpo::Reference>::forward(ctx, 3, 5, 1e-5f, x.data(), weight.data(), bias.data(), y.data(),
                                                    mean.data(), inverse.data());
    return dot(y, dy);
  };
  loss();
  lpo::kernel::LayerNorm<lpo::Reference>::backward(ctx, 3, 5, x.data(), weight.data(), mean.data(), inverse.data(),
                                                   dy.data(), dx.data(), false, dweight.data(), false, dbias.data(),
                                                   false);
  CHECK(gradient_error(x, dx, loss) < 1e-8);
  CHECK(gradient_error(weight, dweight, loss) < 1e-8);
  CHECK(gradient_error(bias, dbias, loss) < 1e-8);

  const auto softmax_loss = [&] {
    lpo::kernel::Softmax<lpo::Reference>::forward(ctx, 3, 5, x.data(), y.data());
    return dot(y, dy);
  };
  softmax_loss();
  lpo::kernel::Softmax<lpo::Reference>::backward(ctx, 3, 5, y.data(), dy.data(), dx.data(), false);
  CHECK(gradient_error(x, dx, softmax_loss) < 1e-8);
}

TEST_CASE("cpu group norm agrees with the reference, for any thread count") { compare_all_group_norms<lpo::Cpu>(); }

TEST_CASE("cpu layer norm agrees with the reference, for any thread count") { compare_all_layer_norms<lpo::Cpu>(); }

TEST_CASE("norm gradients that nobody asked for are not written") { check_unwanted_gradients<lpo::Cpu>(); }

TEST_CASE("a large mean does not eat the variance") { check_large_means<lpo::Cpu>(); }

TEST_CASE("cpu softmax agrees with the reference, for any thread count") { compare_all_softmax<lpo::Cpu>(); }

TEST_CASE("norms of nothing do nothing") {
  lpo::Context<lpo::Cpu> ctx(1);
  float weight[4] = {1, 1, 1, 1}, out[4] = {5, 5, 5, 5};
  lpo::kernel::GroupNorm<lpo::Cpu>::forward<float>(ctx, {0, 4, 4, 2, 1e-5f, true}, nullptr, weight, weight, nullptr,
                                                   nullptr, nullptr);
  lpo::kernel::LayerNorm<lpo::Cpu>::forward<float>(ctx, 0, 4, 1e-5f, nullptr, weight, weight, nullptr, nullptr,
                                                   nullptr);
  lpo::kernel::Softmax<lpo::Cpu>::forward<float>(ctx, 0, 4, nullptr, nullptr);
  lpo::kernel::LayerNorm<lpo::Cpu>::backward<float>(ctx, 0, 4, nullptr, weight, nullptr, nullptr, nullptr, nullptr,
                                                    false, out, false, nullptr, false);
  CHECK(out[0] == 0.0f);  // a sum over no rows
}
