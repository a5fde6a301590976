// SPDX-License-Identifier: MIT
// Host-side bridge to xtensor: look at lpo's memory as an xtensor expression, and read and write .npy with its arrays.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include <xtensor/xadapt.hpp>
#include <xtensor/xarray.hpp>
#include <xtensor/xeval.hpp>

#include <lpo/base/config.hpp>
#include <lpo/base/extents.hpp>
#include <lpo/io/npy.hpp>

namespace lpo::inline LPO_ABI {

/// `shape` elements at `data`, row-major, seen as an xtensor expression that does not own them.
template <class T>
auto as_xtensor(T* data, const std::vector<index_t>& shape) {
  std::size_t count = 1;
  for (const index_t extent : shape) count *= static_cast<std::size_t>(extent);
  return xt::adapt(data, count, xt::no_ownership(), std::vector<std::size_t>(shape.begin(), shape.end()));
}

/// Reads a .npy file into an xtensor array; see `read_npy`.
template <class T>
xt::xarray<T> read_npy_xarray(const std::string& path) {
  const NpyArray<T> array = read_npy<T>(path);
  return as_xtensor(array.values.data(), array.shape);
}

/// Evaluates an xtensor expression and writes it as .npy, row-major.
template <class Expression>
void write_npy(const std::string& path, const xt::xexpression<Expression>& expression) {
  const xt::xarray<typename Expression::value_type, xt::layout_type::row_major> values = expression.derived_cast();
  write_npy(path, values.data(), std::vector<index_t>(values.shape().begin(), values.shape().end()));
}

}  // namespace lpo::inline LPO_ABI
