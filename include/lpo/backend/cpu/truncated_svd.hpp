// SPDX-License-Identifier: MIT
// The largest singular values and vectors of a matrix, by subspace iteration from a random start (arXiv 0909.4061).
#pragma once

#include <lpo/base/config.hpp>

#if LPO_HOST_PASS
#if defined(__CUDACC__) && !defined(EIGEN_NO_CUDA)
#define EIGEN_NO_CUDA
#endif
#include <Eigen/Core>
#include <Eigen/Eigenvalues>
#include <Eigen/QR>
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>
#include <lpo/base/philox.hpp>

#if LPO_HOST_PASS
namespace lpo::inline LPO_ABI {

/// A ~ U diag(s) V^T, columns by falling singular value.
struct TruncatedSvd {
  std::vector<double> left;    ///< U, [rows, rank] row-major
  std::vector<double> values;  ///< s, [rank]
  std::vector<double> right;   ///< V^T, [rank, columns] row-major
};

namespace detail {

using SvdMatrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Orthonormal columns that span those of `x`.
inline SvdMatrix orthonormal(const SvdMatrix& x) {
  const Eigen::HouseholderQR<Eigen::MatrixXd> qr(x);
  return qr.householderQ() * Eigen::MatrixXd::Identity(x.rows(), x.cols());
}

/// Eigenvectors of b b^T, columns by rising eigenvalue.
inline Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd> spectrum_of_rows(const SvdMatrix& b) {
  Eigen::MatrixXd gram = Eigen::MatrixXd::Zero(b.rows(), b.rows());
  gram.selfadjointView<Eigen::Lower>().rankUpdate(b);
  return Eigen::SelfAdjointEigenSolver<Eigen::MatrixXd>(gram);
}

/// `a` has at most as many rows as columns.
template <class Matrix>
TruncatedSvd truncated_svd_of_wide(const Matrix& a, index_t rank, std::uint64_t seed, double tolerance) {
  const index_t rows = a.rows(), columns = a.cols();
  const index_t width = std::min(rows, 2 * rank + 8);
  SvdMatrix basis, b;  // a is close to basis * b in its leading directions
  if (2 * width >= rows) {
    basis = SvdMatrix::Identity(rows, rows);
    b = a;
  } else {
    SvdMatrix start(columns, width);
    RandomStream random(seed);
    for (index_t i = 0; i < start.size(); ++i) start.data()[i] = static_cast<double>(random.normal());
    basis = orthonormal(a * start);
    double captured = 0;
    for (int pass = 0; pass < 40; ++pass) {
      b.noalias() = basis.transpose() * a;  // [width, columns]
      const double now = spectrum_of_rows(b).eigenvalues().tail(rank).sum();
      if (now - captured <= tolerance * now) break;
      captured = now;
      basis = orthonormal(a * b.transpose());
    }
  }
  const auto spectrum = spectrum_of_rows(b);
  TruncatedSvd result;
  const SvdMatrix turn = spectrum.eigenvectors().rowwise().reverse().leftCols(rank);  // [width, rank]
  const SvdMatrix left = basis * turn;
  SvdMatrix right = turn.transpose() * b;  // rows have the singular values as norms
  for (index_t k = 0; k < rank; ++k) {
    const double value = right.row(k).norm();
    result.values.push_back(value);
    if (value > 0) right.row(k) /= value;
  }
  result.left.assign(left.data(), left.data() + left.size());
  result.right.assign(right.data(), right.data() + right.size());
  return result;
}

}  // namespace detail

/// The best approximation of a [rows, columns] (row-major) by a matrix of `rank`, iterated until one more
/// pass adds less than `tolerance` of its energy sum s^2. Exact for small matrices and where rank is no less than about
/// a quarter of the smaller side. Singular values below 1e-8 of the largest are lost in rounding. The same seed gives
/// the same bits.
inline TruncatedSvd truncated_svd(const double* a, index_t rows, index_t columns, index_t rank, std::uint64_t seed = 0,
                                  double tolerance = 1e-6) {
  if (rank < 1 || rank > std::min(rows, columns))
    throw ValueError(message("[truncated_svd] rank ", rank, " must be 1 to ", std::min(rows, columns), " for a ", rows,
                             " x ", columns, " matrix"));
  const Eigen::Map<const detail::SvdMatrix> matrix(a, rows, columns);
  if (rows <= columns) return detail::truncated_svd_of_wide(matrix, rank, seed, tolerance);
  TruncatedSvd turned = detail::truncated_svd_of_wide(matrix.transpose(), rank, seed, tolerance);
  TruncatedSvd result;
  result.values = std::move(turned.values);
  result.left.resize(static_cast<std::size_t>(rows * rank));
  result.right.resize(static_cast<std::size_t>(rank * columns));
  Eigen::Map<detail::SvdMatrix>(result.left.data(), rows, rank) =
      Eigen::Map<const detail::SvdMatrix>(turned.right.data(), rank, rows).transpose();
  Eigen::Map<detail::SvdMatrix>(result.right.data(), rank, columns) =
      Eigen::Map<const detail::SvdMatrix>(turned.left.data(), columns, rank).transpose();
  return result;
}

}  // namespace lpo::inline LPO_ABI
#endif
