// SPDX-License-Identifier: MIT
// Random programs of slices, broadcasts, shared values, products, copies and checkpoints: gradients against
// differences.
#include <lpo/autograd/checkpoint.hpp>
#include <lpo/autograd/concat.hpp>
#include <lpo/autograd/linear.hpp>
#include <lpo/backend/cpu/copy.hpp>
#include <lpo/backend/cpu/elementwise.hpp>
#include <lpo/backend/cpu/gemm.hpp>
#include <lpo/backend/cpu/reduce.hpp>
#include <lpo/backend/reference/copy.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/gemm.hpp>
#include <lpo/backend/reference/reduce.hpp>

#include "support.hpp"

namespace {

constexpr index_t rows = 4, columns = 6;

/// The program that `seed` stands for: every value is [rows, columns], every step reads values made before.
struct Program {
  std::uint64_t seed;
  int steps;

  template <class T, class Device>
  Var<T, 2, Device> operator()(Tape<Device>& tape, const Var<T, 2, Device>& x, const Var<T, 2, Device>& w) const {
    using Matrix = Var<T, 2, Device>;
    lpo::RandomStream random(seed);
    std::vector<Matrix> values = {x};
    const auto pick = [&] {  // newer values more often
      const auto n = static_cast<std::uint32_t>(values.size());
      return values[std::max(random.uniform_int(n), random.uniform_int(n))];
    };
    for (int step = 0; step < steps; ++step) {
      const Matrix a = pick();
      const Matrix b = pick();
      Matrix y;
      switch (random.uniform_int(12)) {
        case 0:
          y = tanh(a * b + a);
          break;
        case 1:
          y = silu(a) - b * 0.5;
          break;
        case 2:
          y = a * a.slice(0, 1, 2) + b;
          break;  // a row of the value itself
        case 3:
          y = a * bcast_last(b.slice(1, 2, 3)) + bcast_last(a.slice(1, 5, 6));
          break;
        case 4:
          y = tanh(linear(a, w)) * b;
          break;
        case 5:
          y = concat_channels(a.slice(1, 3, 6), b.slice(1, 0, 3));
          break;
        case 6:
          y = concat_batch(a.slice(0, 2, 4), b.slice(0, 1, 3));
          break;
        case 7:
          y = concat_channels(Matrix(a.slice(1, 0, 4) * a.slice(1, 1, 5)), b.slice(1, 1, 3));
          break;  // shifted slices
        case 8:
          y = contiguous(a.slice(1, 0, 3)).reshape(Extents<2>{2, 6}).slice(0, 1, 2) * 0.3 + b;
          break;
        case 9: {
          const auto block = [](const Matrix& u, const Matrix& v, const Matrix& m) {
            const Matrix h = linear(u, m) * v;
            return Matrix(tanh(h) + u.slice(0, 0, 1) * v);
          };
          y = checkpoint(tape, block, a, b, w);
          break;
        }
        case 10: {
          const auto t = &tape;
          const auto outer = [t](const Matrix& u, const Matrix& v) {
            const auto inner = [](const Matrix& p, const Matrix& q) {
              return Matrix(sigmoid(p) * q.slice(1, 0, 6) + p);
            };
            const Matrix h = checkpoint(*t, inner, u, v);
            return scoped(*t, [&] { return Matrix(h * 0.7 - checkpoint(*t, inner, v, h)); });
          };
          y = checkpoint(tape, outer, a, b);
          break;
        }
        default:
          y = a.reshape(Extents<2>{rows, columns}) * 0.5 + maximum(b, a * 0.1);
          break;
      }
      values.push_back(tanh(y));
    }
    const Matrix last = pick();
    return Matrix(values.back() + last * pick());
  }
};

}  // namespace

TEST_CASE("gradients of random programs") {
  auto x = randn(Extents<2>{rows, columns}, 1), w = randn(Extents<2>{columns, columns}, 2, 0.5);
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    lpo::testing::GradcheckOptions options;
    options.samples = 10;
    options.seed = seed;
    options.tolerance = 1e-5;
    check_gradients(Program{seed, 4 + static_cast<int>(seed % 12)}, std::tie(x, w), options);
  }
}

TEST_CASE("random programs in float on Cpu, with threads") {
  const auto x = randn(Extents<2>{rows, columns}, 1), w = randn(Extents<2>{columns, columns}, 2, 0.5);
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    check_parity(1e-4, Program{seed, 4 + static_cast<int>(seed % 12)}, x, w);
  }
}

TEST_CASE("a program's second step maps no memory, and its bits are those of the first") {
  auto x = randn(Extents<2>{rows, columns}, 1), w = randn(Extents<2>{columns, columns}, 2, 0.5);
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    CAPTURE(seed);
    Context<Reference> context;
    Tape<Reference> tape(context);
    std::vector<double> first;
    std::size_t reserved = 0;
    for (int step = 0; step < 3; ++step) {
      const auto a = variable(tape, x), b = variable(tape, w);
      const auto y = Program{seed, 12}(tape, a, b);
      backward(y, View<const double, 2, Reference>(x.view()));
      const auto gradient = read_gradient(a);
      const std::vector<double> now(gradient.span().begin(), gradient.span().end());
      tape.clear();
      if (step == 0) {
        first = now;
        reserved = context.reserved_bytes();
      }
      CHECK(now == first);
      CHECK(context.reserved_bytes() == reserved);
    }
  }
}
