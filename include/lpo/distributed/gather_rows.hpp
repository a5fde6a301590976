// SPDX-License-Identifier: MIT
// gather_rows: the rows that all ranks computed, for losses that compare everything with everything.
#pragma once

#include <vector>

#include <lpo/autograd/concat.hpp>
#include <lpo/distributed/collectives.hpp>

namespace lpo::inline LPO_ABI {

/// Dense [own rows, width] -> [rows of all ranks, width], rank 0's first. Only a rank's own rows carry gradients on. So
/// when every rank computes the same loss of all rows, the sum over ranks of their gradients is the gradient of that
/// loss.
template <class T, class Device, class Ranks>
Var<T, 2, Device> gather_rows(Ranks& ranks, const Var<T, 2, Device>& own) {
  if (ranks.size() == 1) return own;
  auto& context = own.tape().context();
  std::vector<T> values(static_cast<std::size_t>(own.size()));
  context.copy_to_host(values.data(), own.data(), values.size() * sizeof(T));
  const auto counts = gather_values(ranks, std::vector<index_t>{own.size()});
  const auto all = gather_values(ranks, values);
  index_t before = 0;
  for (int rank = 0; rank < ranks.rank(); ++rank) before += counts[static_cast<std::size_t>(rank)];
  const index_t after = static_cast<index_t>(all.size()) - before - own.size(), width = own.extent(1);
  const auto rows = [&](const T* from, index_t count) {
    const auto out = make_output<T>(own.tape(), Extents<2>{count / width, width}, false);
    context.copy_from_host(out.data(), from, static_cast<std::size_t>(count) * sizeof(T));
    return out;
  };
  Var<T, 2, Device> gathered = own;
  if (before > 0) gathered = concat_batch(rows(all.data(), before), gathered);
  if (after > 0) gathered = concat_batch(gathered, rows(all.data() + before + own.size(), after));
  return gathered;
}

}  // namespace lpo::inline LPO_ABI
