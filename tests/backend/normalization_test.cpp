// SPDX-License-Identifier: MIT
// Group norm, layer norm and softmax: closed forms, central differences, and the CPU backend against the reference.
#include <lpo/backend/cpu/normalization.hpp>
#include <lpo/backend/reference/normalization.hpp>

#include <doctest/doctest.h>

#include <backend/case_data.hpp>

#include <cmath>
#include <vector>

namespace {

using namespace lpo_test;
using lpo::index_t;

/// Everything a norm writes.
template <class T>
struct NormResult {
  std::vector<T> y, dx, dweight, dbias;
  std::vector<lpo::compute_t<T>> mean, inverse;

  bool operator==(const NormResult& other) const {
    return same_bits(y, other.y) && same_bits(dx, other.dx) && same_bits(dweight, other.dweight) &&
           same_bits(dbias, other.dbias) && same_bits(mean, other.mean) && same_bits(inverse, other.inverse);
  }
};

struct Wanted {
  bool dx = true, dweight = true, dbias = true, accumulate = false;
};

template <class Device, class T>
NormResult<T> group_norm(const lpo::kernel::GroupNormShape& shape, int threads, const Wanted& wanted, double offset) {
  lpo::Context<Device> ctx(threads);
  const index_t size = shape.n * shape.spatial * shape.c;
  const auto x = noise<T>(size, 1, 1.0, offset), dy = noise<T>(size, 2);
  const auto weight = noise<T>(shape.c, 3, 0.5, 1.0), bias = noise<T>(shape.c, 4);
  NormResult<T> r{noise<T>(size, 5), noise<T>(size, 6), noise<T>(shape.c, 7), noise<T>(shape.c, 8), {}, {}};
  r.mean.resize(static_cast<std::size_t>(shape.n * shape.groups));
  r.inverse = r.mean;
  lpo::kernel::GroupNorm<Device>::forward(ctx, shape, x.data(), weight.data(), bias.data(), r.y.data(), r.mean.data(),
                                          r.inverse.data());
  lpo::kernel::GroupNorm<Device>::backward(
      ctx, shape, x.data(), weight.data(), bias.data(), r.mean.data(), r.inverse.data(), dy.data(),
      wanted.dx ? r.dx.data() : nullptr, wanted.accumulate, wanted.dweight ? r.dweight.data() : nullptr,
      wanted.accumulate, wanted.dbias ? r.dbias.data() : nullptr, wanted.accumulate);
  return r;
}

template <class Device, class T>
NormResult<T> layer_norm(index_t rows, index_t c, int threads, const Wanted& wanted, double offset) {
  lpo::Context<Device> ctx(threads);
  const auto x = noise<T>(rows * c, 1, 1.0, offset), dy = noise<T>(rows * c, 2);
  const auto weight = noise<T>(c, 3, 0.5, 1.0), bias = noise<T>(c, 4);
  NormResult<T> r{noise<T>(rows * c, 5), noise<T>(rows * c, 6), noise<T>(c, 7), noise<T>(c, 8), {}, {}};
  r.mean.resize(static_cast<std::size_t>(rows));
  r.inverse = r.mean;
  lpo::kernel::LayerNorm<Device>::forward(ctx, rows, c, 1e-5f, x.data(), weight.data(), bias.data(), r.y.data(),
                                          r.mean.data(), r.inverse.data());
  lpo::kernel::LayerNorm<Device>::backward(ctx, rows, c, x.data(), weight.data(), r.mean.data(), r.inverse.data(),
                                           dy.data(), wanted.dx ? r.dx.data() : nullptr, wanted.accumulate,
                                           wanted.dweight ? r.dweight.data() : nullptr, wanted.accumulate,
                                           wanted.dbias ? r.dbias.data() : nullptr, wanted.accumulate);
  return r;
}

/// Sums over many elements differ by the rounding of float: parameters get a tolerance that grows with the count.
template <class T>
void check_close(const NormResult<T>& cpu, const NormResult<T>& reference, double terms) {
  const double limit = tolerance<T>();
  CHECK(distance(cpu.mean, reference.mean) < 1e-5);
  CHECK(distance(cpu.inverse, reference.inverse) < 1e-5);
  CHECK(distance(cpu.y, reference.y) < limit);
  CHECK(distance(cpu.dx, reference.dx) < limit);
  CHECK(distance(cpu.dweight, reference.dweight) < limit * (1.0 + 0.01 * std::sqrt(terms)));
  CHECK(distance(cpu.dbias, reference.dbias) < limit * (1.0 + 0.01 * std::sqrt(terms)));
}

template <class T>
void compare_group_norms(const lpo::kernel::GroupNormShape& shape, const Wanted& wanted, double offset = 0.3) {
  INFO("n " << shape.n << " spatial " << shape.spatial << " c " << shape.c << " groups " << shape.groups << " silu "
            << shape.silu << " bytes " << sizeof(T));
  const auto one = group_norm<lpo::Cpu, T>(shape, 1, wanted, offset);
  CHECK(one == group_norm<lpo::Cpu, T>(shape, 3, wanted, offset));
  check_close(one, group_norm<lpo::Reference, T>(shape, 1, wanted, offset),
              static_cast<double>(shape.n * shape.spatial));
}

template <class T>
void compare_layer_norms(index_t rows, index_t c, const Wanted& wanted, double offset = 0.3) {
  INFO("rows " << rows << " c " << c << " bytes " << sizeof(T));
  const auto one = layer_norm<lpo::Cpu, T>(rows, c, 1, wanted, offset);
  CHECK(one == layer_norm<lpo::Cpu, T>(rows, c, 3, wanted, offset));
  check_close(one, layer_norm<lpo::Reference, T>(rows, c, 1, wanted, offset), static_cast<double>(rows));
}

template <class Device>
void check_known_norms() {
  lpo::Context<Device> ctx(1);
  const float x[] = {1, 2, 3, 4}, weight[] = {1, 1, 2, 2}, bias[] = {0, 0, 1, 1};
  float y[4], mean[2], inverse[2];
  // One group: mean 2.5, variance 1.25.
  lpo::kernel::GroupNorm<Device>::forward(ctx, {1, 1, 4, 1, 0.0f, false}, x, weight, bias, y, mean, inverse);
  const double s = 1.0 / std::sqrt(1.25);
  CHECK(mean[0] == doctest::Approx(2.5));
  CHECK(inverse[0] == doctest::Approx(s));
  CHECK(y[0] == doctest::Approx(-1.5 * s));
  CHECK(y[3] == doctest::Approx(1.0 + 2.0 * 1.5 * s));
  // Two groups of two channels: every group is (-1, 1) after normalisation.
  lpo::kernel::GroupNorm<Device>::forward(ctx, {1, 1, 4, 2, 0.0f, true}, x, weight, bias, y, mean, inverse);
  CHECK(mean[1] == doctest::Approx(3.5));
  CHECK(y[0] == doctest::Approx(-1.0 / (1.0 + std::exp(1.0))));
  CHECK(y[3] == doctest::Approx(3.0 / (1.0 + std::exp(-3.0))));
  // Two positions of two channels, one row each.
  lpo::kernel::LayerNorm<Device>::forward(ctx, 2, 2, 0.0f, x, weight, bias, y, mean, inverse);
  CHECK(mean[1] == doctest::Approx(3.5));
  CHECK(inverse[1] == doctest::Approx(2.0));
  CHECK(y[0] == doctest::Approx(-1.0));
  CHECK(y[3] == doctest::Approx(1.0));
}

template <class Device>
void check_known_softmax() {
  lpo::Context<Device> ctx(1);
  const float x[] = {1000.0f, 1000.0f + std::log(3.0f), 0, 0};
  float y[4], dx[4] = {1, 1, 1, 1};
  lpo::kernel::Softmax<Device>::forward(ctx, 2, 2, x, y);
  CHECK(y[0] == doctest::Approx(0.25).epsilon(1e-4));  // float spacing at 1000
  CHECK(y[1] == doctest::Approx(0.75).epsilon(1e-4));
  CHECK(y[2] == doctest::Approx(0.5));
  const float probability[] = {0.25f, 0.75f, 0.5f, 0.5f}, dy[] = {4, 8, 1, 1};
  lpo::kernel::Softmax<Device>::backward(ctx, 2, 2, probability, dy, dx, true);
  CHECK(dx[0] == doctest::Approx(1.0 + 0.25 * (4 - 7)));
  CHECK(dx[1] == doctest::Approx(1.0 + 0.75 * (8 - 7)));
  CHECK(dx[2] == doctest::Approx(1.0));
}

template <class T>
void compare_softmax(index_t rows, index_t c) {
  INFO("rows " << rows << " c " << c << " bytes " << sizeof(T));
  const auto x = noise<T>(rows * c, 1, 6.0), dy = noise<T>(rows * c, 2);
  auto y = x, threaded = x, expected = x;
  lpo::Context<lpo::Cpu> one(1), three(3);
  lpo::Context<lpo::Reference> reference(1);
  lpo::kernel::Softmax<lpo::Cpu>::forward(one, rows, c, x.data(), y.data());
  lpo::kernel::Softmax<lpo::Cpu>::forward(three, rows, c, x.data(), threaded.data());
  lpo::kernel::Softmax<lpo::Reference>::forward(reference, rows, c, x.data(), expected.data());
  CHECK(same_bits(y, threaded));
  CHECK(distance(y, expected) < tolerance<T>());
  for (const bool accumulate : {false, true}) {
    auto dx = noise<T>(rows * c, 3), wide = dx, wanted = dx;
    lpo::kernel::Softmax<lpo::Cpu>::backward(one, rows, c, expected.data(), dy.data(), dx.data(), accumulate);
    lpo::kernel::Softmax<lpo::Cpu>::backward(three, rows, c, expected.data(), dy.data(), wide.data(), accumulate);
    lpo::kernel::Softmax<lpo::Reference>::backward(reference, rows, c, expected.data(), dy.data(), wanted.data(),
                                                   accumulate);
    CHECK(same_bits(dx, wide));
    CHECK(distance(dx, wanted) < tolerance<T>());
  }
}

}  // namespace

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

TEST_CASE("cpu group norm agrees with the reference, for any thread count") {
  // Channels that are no multiple of the pack, groups of any width, one position, images of one block and of several.
  const lpo::kernel::GroupNormShape shapes[] = {
      {1, 1, 1, 1, 1e-5f, false},     {2, 5, 3, 3, 1e-5f, true},     {3, 7, 32, 8, 1e-5f, true},
      {2, 16, 96, 32, 1e-6f, true},   {5, 64, 64, 32, 1e-5f, true},  {2, 9, 75, 5, 1e-5f, false},
      {1, 300, 160, 32, 1e-5f, true}, {2, 1100, 40, 8, 1e-5f, true}, {9, 4, 128, 32, 1e-5f, false}};
  for (const auto& shape : shapes) {
    compare_group_norms<float>(shape, {});
    compare_group_norms<float>(shape, {true, true, true, true});
    compare_group_norms<double>(shape, {true, true, true, true});
    compare_group_norms<lpo::bfloat16>(shape, {});
    compare_group_norms<lpo::half>(shape, {});
  }
}

TEST_CASE("cpu layer norm agrees with the reference, for any thread count") {
  const index_t sizes[][2] = {{1, 1}, {1, 2}, {3, 15}, {4, 16}, {5, 17}, {70, 64}, {13, 100}, {1100, 64}, {3, 320}};
  for (const auto& size : sizes) {
    compare_layer_norms<float>(size[0], size[1], {});
    compare_layer_norms<float>(size[0], size[1], {true, true, true, true});
    compare_layer_norms<double>(size[0], size[1], {true, true, true, true});
    compare_layer_norms<lpo::bfloat16>(size[0], size[1], {});
    compare_layer_norms<lpo::half>(size[0], size[1], {});
  }
}

TEST_CASE("norm gradients that nobody asked for are not written") {
  const lpo::kernel::GroupNormShape shape{2, 6, 32, 8, 1e-5f, true};
  for (const auto& wanted : {Wanted{true, false, false}, Wanted{false, true, false}, Wanted{false, false, true}}) {
    compare_group_norms<float>(shape, wanted);
    compare_layer_norms<float>(5, 24, wanted);
  }
}

TEST_CASE("a large mean does not eat the variance") {
  const lpo::kernel::GroupNormShape shape{1, 400, 96, 32, 1e-5f, false};
  const auto cpu = group_norm<lpo::Cpu, float>(shape, 1, {}, 1000.0);
  const auto exact = group_norm<lpo::Reference, float>(shape, 1, {}, 1000.0);
  CHECK(distance(cpu.inverse, exact.inverse) < 1e-6);
  CHECK(distance(cpu.y, exact.y) < 2e-6);
  const auto row = layer_norm<lpo::Cpu, float>(7, 321, 1, {}, 1000.0);
  const auto exact_row = layer_norm<lpo::Reference, float>(7, 321, 1, {}, 1000.0);
  CHECK(distance(row.inverse, exact_row.inverse) < 1e-6);
  CHECK(distance(row.y, exact_row.y) < 2e-6);
}

TEST_CASE("cpu softmax agrees with the reference, for any thread count") {
  const index_t sizes[][2] = {{1, 1}, {3, 2}, {5, 16}, {4, 33}, {700, 77}, {2, 4096}};
  for (const auto& size : sizes) {
    compare_softmax<float>(size[0], size[1]);
    compare_softmax<double>(size[0], size[1]);
    compare_softmax<lpo::bfloat16>(size[0], size[1]);
    compare_softmax<lpo::half>(size[0], size[1]);
  }
}

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
