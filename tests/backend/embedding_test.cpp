// SPDX-License-Identifier: MIT
// The embedding lookup and its gradient on both host backends.
#include <lpo/backend/cpu/embedding.hpp>
#include <lpo/backend/reference/embedding.hpp>

#include "parity.hpp"

using namespace parity;

namespace {

std::vector<std::int32_t> random_ids(index_t count, index_t vocabulary) {
  lpo::RandomStream stream(9);
  std::vector<std::int32_t> ids(static_cast<std::size_t>(count) + 1);
  for (auto& id : ids) id = static_cast<std::int32_t>(stream.uniform_int(static_cast<std::uint32_t>(vocabulary)));
  return ids;
}

template <class Device, class T>
std::vector<T> lookup(index_t count, index_t width, index_t vocabulary, int threads) {
  lpo::Context<Device> context(threads);
  const auto ids = random_ids(count, vocabulary);
  const auto table = random_values<T>(vocabulary * width, 1);
  auto y = random_values<T>(count * width, 2);
  lpo::kernel::Embedding<Device>::forward(context, count, width, ids.data(), table.data(), y.data());
  return y;
}

template <class Device, class T>
std::vector<T> gradient(index_t count, index_t width, index_t vocabulary, bool accumulate, int threads) {
  lpo::Context<Device> context(threads);
  const auto ids = random_ids(count, vocabulary);
  const auto dy = random_values<T>(count * width, 3);
  auto dtable = random_values<T>(vocabulary * width, 4);
  lpo::kernel::Embedding<Device>::backward(context, count, width, vocabulary, ids.data(), dy.data(), dtable.data(),
                                           accumulate);
  return dtable;
}

}  // namespace

TEST_CASE("reference embedding looks up and adds repeated rows") {
  lpo::Context<lpo::Reference> context(1);
  const std::int32_t ids[] = {2, 0, 2};
  const double table[] = {1, 2, 3, 4, 5, 6}, dy[] = {1, 10, 2, 20, 4, 40};
  double y[6], dtable[] = {9, 9, 9, 9, 9, 9};
  using lpo::kernel::Embedding;
  Embedding<lpo::Reference>::forward(context, 3, 2, ids, table, y);
  CHECK(std::vector<double>(y, y + 6) == std::vector<double>{5, 6, 1, 2, 5, 6});
  Embedding<lpo::Reference>::backward(context, 3, 2, 3, ids, dy, dtable, false);
  CHECK(std::vector<double>(dtable, dtable + 6) == std::vector<double>{2, 20, 0, 0, 5, 50});
  Embedding<lpo::Reference>::backward(context, 3, 2, 3, ids, dy, dtable, true);
  CHECK(std::vector<double>(dtable, dtable + 6) == std::vector<double>{4, 40, 0, 0, 10, 100});
}

TEST_CASE_TEMPLATE("cpu embedding agrees with the reference", T, LPO_STORAGE_TYPES) {
  const index_t shapes[][3] = {{0, 4, 3}, {1, 1, 1}, {5, 7, 3}, {77, 64, 50}, {300, 200, 4}, {2000, 33, 1000}};
  for (const auto& s : shapes) {
    CAPTURE(s[0]);
    CAPTURE(s[1]);
    CHECK(same_bits(lookup<lpo::Cpu, T>(s[0], s[1], s[2], 1), lookup<lpo::Reference, T>(s[0], s[1], s[2], 1)));
    CHECK(same_bits(lookup<lpo::Cpu, T>(s[0], s[1], s[2], 3), lookup<lpo::Reference, T>(s[0], s[1], s[2], 1)));
    for (bool accumulate : {false, true}) {
      CAPTURE(accumulate);
      const auto expected = gradient<lpo::Reference, T>(s[0], s[1], s[2], accumulate, 1);
      const auto one = gradient<lpo::Cpu, T>(s[0], s[1], s[2], accumulate, 1);
      const index_t repeats = s[0] / s[2] + 1;
      CHECK(difference(one, expected, std::sqrt(static_cast<double>(repeats))) < tolerance<T>(repeats));
      CHECK(same_bits(one, gradient<lpo::Cpu, T>(s[0], s[1], s[2], accumulate, 3)));
    }
  }
}
