// SPDX-License-Identifier: MIT
// What every communicator must do. Counts mistakes, so that ranks may be threads.
#pragma once

#include <numeric>
#include <vector>

#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/distributed/collectives.hpp>
#include <lpo/tensor/tensor.hpp>

namespace communicator_cases {

template <class T, class Device>
lpo::Tensor<T, 1, Device> upload(lpo::Context<Device>& context, const std::vector<T>& values) {
  lpo::Tensor<T, 1, Device> tensor(lpo::Extents<1>{static_cast<lpo::index_t>(values.size())});
  context.copy_from_host(tensor.data(), values.data(), values.size() * sizeof(T));
  return tensor;
}

template <class T, class Device>
std::vector<T> download(lpo::Context<Device>& context, const lpo::Tensor<T, 1, Device>& tensor) {
  std::vector<T> values(static_cast<std::size_t>(tensor.size()));
  context.copy_to_host(values.data(), tensor.data(), values.size() * sizeof(T));
  return values;
}

template <class Device, lpo::Communicator<Device> Ranks>
int mistakes(lpo::Context<Device>& context, Ranks& ranks) {
  using lpo::index_t;
  const int size = ranks.size(), rank = ranks.rank();
  int wrong = 0;
  const auto expect = [&](bool holds) { wrong += holds ? 0 : 1; };

  // Element i of rank r is r + 1 + i: whole numbers, whose sums are exact.
  for (const index_t count : {index_t{0}, index_t{1}, index_t{2}, index_t{7}, index_t{100003}}) {
    std::vector<float> own(static_cast<std::size_t>(count)), sums(own.size());
    for (std::size_t i = 0; i < own.size(); ++i) {
      own[i] = static_cast<float>(rank + 1) + static_cast<float>(i);
      sums[i] = static_cast<float>(size * (size + 1) / 2) + static_cast<float>(size) * static_cast<float>(i);
    }
    auto tensor = upload(context, own);
    ranks.all_reduce(context, tensor.data(), count);
    expect(download(context, tensor) == sums);

    tensor = upload(context, own);
    ranks.broadcast(context, tensor.data(), own.size() * sizeof(float));
    for (float& value : own) value -= static_cast<float>(rank);
    expect(download(context, tensor) == own);
  }

  // 16-bit numbers are added in float and rounded once: 256 + 1 + 1 is not 256 in bfloat16's steps of 2.
  {
    const std::vector<lpo::bfloat16> own(3, lpo::bfloat16(rank == 0 ? 256.0f : 1.0f));
    auto tensor = upload(context, own);
    lpo::sum_gradients(ranks, context, tensor.data(), index_t{3});
    for (const auto value : download(context, tensor))
      expect(static_cast<float>(value) == static_cast<float>(lpo::bfloat16(static_cast<float>(255 + size))));
  }

  // Rank r has r + 2 numbers.
  std::vector<int> own(static_cast<std::size_t>(rank) + 2, rank), all;
  for (int r = 0; r < size; ++r) all.insert(all.end(), static_cast<std::size_t>(r) + 2, r);
  expect(lpo::gather_values(ranks, own) == all);
  expect(lpo::gather_values(ranks, std::vector<double>{}).empty());
  expect(lpo::sum_of_ranks(ranks, 0.5) == 0.5 * size);
  expect(lpo::sum_of_ranks(ranks, std::vector<float>{1, 2}) ==
         std::vector<float>{static_cast<float>(size), 2 * static_cast<float>(size)});
  expect(!lpo::any_rank(ranks, false));
  expect(lpo::any_rank(ranks, rank == size - 1));

  // Rank a sends b bytes of value a to rank b.
  std::vector<lpo::HostBytes> parcels;
  for (int b = 0; b < size; ++b) parcels.emplace_back(static_cast<std::size_t>(b), static_cast<std::byte>(rank));
  const auto arrived = ranks.exchange(parcels);
  expect(static_cast<int>(arrived.size()) == size);
  for (int a = 0; a < size; ++a)
    expect(arrived[static_cast<std::size_t>(a)] ==
           lpo::HostBytes(static_cast<std::size_t>(rank), static_cast<std::byte>(a)));
  ranks.barrier();
  return wrong;
}

}  // namespace communicator_cases
