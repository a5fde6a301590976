// SPDX-License-Identifier: MIT
// Norms, softmax and cross-entropy on a CUDA device against the reference.
#include <lpo/backend/cuda/cross_entropy.cuh>
#include <lpo/backend/cuda/normalization.cuh>
#include <lpo/backend/reference/cross_entropy.hpp>

#include <backend/normalization_cases.hpp>

using namespace normalization_cases;

namespace {

/// Losses of rows of logits, then the gradient, added to what is there or not.
template <class Device, class T>
std::vector<T> cross_entropy(index_t rows, index_t classes, double size, bool accumulate) {
  auto context = test_context<Device>(1);
  std::vector<std::int32_t> targets;
  for (index_t row = 0; row < rows; ++row) targets.push_back(static_cast<std::int32_t>((row * 7 + classes - 1) % classes));
  const auto logits = on_device<Device>(noise<T>(rows * classes, 1, size)), dloss = on_device<Device>(noise<T>(rows, 2));
  const auto target = on_device<Device>(targets);
  auto loss = on_device<Device>(noise<T>(rows, 3)), dlogits = on_device<Device>(noise<T>(rows * classes, 4));
  using Kernel = lpo::kernel::CrossEntropy<Device>;
  Kernel::forward(context, rows, classes, logits.data(), target.data(), loss.data());
  Kernel::backward(context, rows, classes, logits.data(), target.data(), dloss.data(), dlogits.data(), accumulate);
  auto all = to_host(loss);
  const auto gradient = to_host(dlogits);
  all.insert(all.end(), gradient.begin(), gradient.end());
  return all;
}

template <class T>
void compare_cross_entropy() {
  for (const index_t rows : {1, 5})
    for (const index_t classes : {1, 2, 31, 128, 300})
      for (const double size : {1.0, 200.0}) {  // 200: exponentials that overflow
        CAPTURE(classes);
        const bool accumulate = rows > 1;
        const auto there = cross_entropy<lpo::Cuda, T>(rows, classes, size, accumulate);
        CHECK(distance(there, cross_entropy<lpo::Reference, T>(rows, classes, size, accumulate)) < tolerance<T>());
      }
}

}  // namespace

TEST_CASE("cuda norms of small vectors have their textbook values") { check_known_norms<lpo::Cuda>(); }

TEST_CASE("cuda softmax of small rows has its textbook values and does not overflow") { check_known_softmax<lpo::Cuda>(); }

TEST_CASE("cuda group norm agrees with the reference") { compare_all_group_norms<lpo::Cuda>(); }

TEST_CASE("cuda layer norm of the lengths that registers hold agrees with the reference") {
  for (const index_t c : {264, 512, 640, 768, 1024, 1280, 2048}) {
    compare_layer_norms<lpo::Cuda, float>(9, c, {});
    compare_layer_norms<lpo::Cuda, lpo::bfloat16>(9, c, {});
  }
}

TEST_CASE("cuda layer norm agrees with the reference") { compare_all_layer_norms<lpo::Cuda>(); }

TEST_CASE("cuda norm gradients that nobody asked for are not written") { check_unwanted_gradients<lpo::Cuda>(); }

TEST_CASE("a large mean does not eat the variance on a CUDA device") { check_large_means<lpo::Cuda>(); }

TEST_CASE("cuda softmax agrees with the reference") { compare_all_softmax<lpo::Cuda>(); }

TEST_CASE("cuda group norm of more tiles than the device holds at a time agrees with the reference") {
  const index_t n = lpo::Context<lpo::Cuda>().multiprocessors();
  compare_group_norms<lpo::Cuda, lpo::bfloat16>({n, 700, 80, 2, 1e-5f, true}, {});  // clusters
  compare_group_norms<lpo::Cuda, lpo::bfloat16>({2 * n + 3, 5, 200, 25, 1e-5f, true}, {true, true, true, true});
}

TEST_CASE("cuda cross-entropy agrees with the reference") {
  compare_cross_entropy<float>();
  compare_cross_entropy<double>();
}
