// SPDX-License-Identifier: MIT
// Cases of the embedding lookup and its gradient: a device against the reference.
#pragma once

#include <lpo/backend/reference/embedding.hpp>

#include <backend/on_device.hpp>
#include <backend/parity.hpp>

namespace embedding_cases {

using namespace lpo_test;
using namespace parity;

std::vector<std::int32_t> random_ids(index_t count, index_t vocabulary) {
  lpo::RandomStream stream(9);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(count) + 1);
  for (auto& id : ids) id = static_cast<std::int32_t>(stream.uniform_int(static_cast<std::uint32_t>(vocabulary)));
  return ids;
}

template <class Device, class T>
std::vector<T> lookup(index_t count, index_t width, index_t vocabulary, int threads) {
  auto context = test_context<Device>(threads);
  const auto ids = on_device<Device>(random_ids(count, vocabulary));
  const auto table = on_device<Device>(random_values<T>(vocabulary * width, 1));
  auto y = on_device<Device>(random_values<T>(count * width, 2));
  lpo::kernel::Embedding<Device>::forward(context, count, width, ids.data(), table.data(), y.data());
  return to_host(y);
}

template <class Device, class T>
std::vector<T> gradient(index_t count, index_t width, index_t vocabulary, bool accumulate, int threads) {
  auto context = test_context<Device>(threads);
  const auto ids = on_device<Device>(random_ids(count, vocabulary));
  const auto dy = on_device<Device>(random_values<T>(count * width, 3));
  auto dtable = on_device<Device>(random_values<T>(vocabulary * width, 4));
  lpo::kernel::Embedding<Device>::backward(context, count, width, vocabulary, ids.data(), dy.data(), dtable.data(),
                                           accumulate);
  return to_host(dtable);
}

template <class Device, class T>
void compare_embeddings() {
  const index_t shapes[][3] = {{0, 4, 3}, {1, 1, 1}, {5, 7, 3}, {77, 64, 50}, {300, 200, 4}, {2000, 33, 1000}};
  for (const auto& s : shapes) {
    CAPTURE(s[0]);
    CAPTURE(s[1]);
    CHECK(same_bits(lookup<Device, T>(s[0], s[1], s[2], 1), lookup<lpo::Reference, T>(s[0], s[1], s[2], 1)));
    CHECK(same_bits(lookup<Device, T>(s[0], s[1], s[2], 3), lookup<lpo::Reference, T>(s[0], s[1], s[2], 1)));
    for (bool accumulate : {false, true}) {
      CAPTURE(accumulate);
      const auto expected = gradient<lpo::Reference, T>(s[0], s[1], s[2], accumulate, 1);
      const auto one = gradient<Device, T>(s[0], s[1], s[2], accumulate, 1);
      const index_t repeats = s[0] / s[2] + 1;
      CHECK(difference(one, expected, std::sqrt(static_cast<double>(repeats))) < tolerance<T>(repeats));
      CHECK(same_bits(one, gradient<Device, T>(s[0], s[1], s[2], accumulate, 3)));
    }
  }
}

}  // namespace embedding_cases
