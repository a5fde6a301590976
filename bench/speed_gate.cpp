// SPDX-License-Identifier: MIT
// A test of speed that a busy machine does not fail: each kernel against a plain loop timed beside it, in processor time.
//
// Products, convolutions and attention as fractions of the rate of register-only multiply-adds, norms of that of copies;
// the best of several turns counts. The floors are about half of what was measured (docs/performance.md): what fails here
// has lost its vector code, its blocking, or its choice of instruction set.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <vector>

#include <lpo/backend/cpu/attention.hpp>
#include <lpo/backend/cpu/conv2d.hpp>
#include <lpo/backend/cpu/gemm.hpp>
#include <lpo/backend/cpu/normalization.hpp>

#include <backend/fma_loop.hpp>

namespace {

using lpo::Cpu;
using lpo::index_t;

double thread_seconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

template <class Work>
double seconds(Work&& work) {
  const double start = thread_seconds();
  work();
  return thread_seconds() - start;
}

/// Best of the turns: (amount / time of `work`) / (rate of `yardstick`, which returns its amount). True if not below.
template <class Work, class Yardstick>
bool check(const char* name, double floor, double amount, Work&& work, Yardstick&& yardstick) {
  double best = 0.0;
  work();
  for (int turn = 0; turn < 12 && best < 2.0 * floor; ++turn) {
    double reference = 0.0;
    const double plain = seconds([&] { reference = yardstick(); });
    best = std::max(best, amount / seconds(work) * plain / reference);
  }
  std::printf("%-34s %5.2f of its yardstick, floor %.2f%s\n", name, best, floor, best < floor ? "  TOO SLOW" : "");
  return best >= floor;
}

std::vector<float> ramp(index_t count) {
  std::vector<float> values(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i % 1009) / 504.5f - 1.0f;
  return values;
}

bool product(lpo::Context<Cpu>& context, const char* name, double floor, index_t m, index_t n, index_t k) {
  const auto a = ramp(m * k), b = ramp(n * k);
  auto c = ramp(m * n);
  lpo::kernel::GemmParams<float> p;
  p.m = m, p.n = n, p.k = k;
  p.a = a.data(), p.lda = k, p.b = b.data(), p.ldb = k, p.transpose_b = true, p.c = c.data(), p.ldc = n;
  return check(
      name, floor, 2.0 * static_cast<double>(m * n * k), [&] { lpo::kernel::Gemm<Cpu>::run(context, p); },
      [] { return bench::multiply_and_add(100000); });
}

/// The three passes of a 3 x 3 convolution, by the multiplications of the direct way.
bool convolution(lpo::Context<Cpu>& context, const char* names[3], double floor, index_t stride) {
  const lpo::kernel::Conv2dShape s{1, 16 * stride, 16 * stride, 320, 320, 3, 3, stride, 1, 1, 1, 1};
  auto x = ramp(s.h * s.w * s.c), y = ramp(16 * 16 * 320), weight = ramp(320 * 9 * 320);
  using Conv = lpo::kernel::Conv2d<Cpu>;
  bool good = true;
  for (int pass = 0; pass < 3; ++pass)
    good &= check(
        names[pass], floor, 2.0 * 256 * 320 * 2880,
        [&] {
          if (pass == 0) Conv::forward(context, s, x.data(), weight.data(), x.data(), y.data());  // any bias
          if (pass == 1) Conv::backward_data(context, s, y.data(), weight.data(), x.data(), false);
          if (pass == 2)
            Conv::backward_weights(context, s, x.data(), y.data(), weight.data(), false, static_cast<float*>(nullptr),
                                   false);
        },
        [] { return bench::multiply_and_add(100000); });
  return good;
}

bool attention(lpo::Context<Cpu>& context, const char* name, double floor) {
  const index_t length = 512, heads = 4, width = 40, row = heads * width;
  const lpo::kernel::AttentionShape shape{1, length, length, heads, width, 0.15f, false, row, row, row, row};
  const auto q = ramp(length * row);
  auto out = q;
  return check(
      name, floor, 4.0 * static_cast<double>(length * length * row),
      [&] {
        lpo::kernel::Attention<Cpu>::forward(context, shape, q.data(), q.data(), q.data(), out.data(),
                                             static_cast<float*>(nullptr));
      },
      [] { return bench::multiply_and_add(100000); });
}

bool group_norm(lpo::Context<Cpu>& context, const char* name, double floor) {
  const lpo::kernel::GroupNormShape shape{1, 1024, 320, 32, 1e-5f, true};
  const index_t count = shape.spatial * shape.c;
  const auto x = ramp(count), weight = ramp(shape.c);
  auto y = x, statistics = ramp(64);
  return check(
      name, floor, static_cast<double>(count),
      [&] {
        lpo::kernel::GroupNorm<Cpu>::forward(context, shape, x.data(), weight.data(), weight.data(), y.data(),
                                             statistics.data(), statistics.data() + 32);
      },
      [&] {
        for (int turn = 0; turn < 10; ++turn) {
          std::memcpy(y.data(), x.data(), x.size() * sizeof(float));
          asm volatile("" ::"r"(y.data()) : "memory");
        }
        return 10.0 * static_cast<double>(count);
      });
}

}  // namespace

int main() {
  lpo::Context<Cpu> context(1);
  std::printf("registers of %d bytes, packs of %d\n", lpo::detail::machine_simd_bytes(), LPO_SIMD_BYTES);
  bool good = product(context, "product 1024 x 320 x 320", 0.40, 1024, 320, 320);
  good &= product(context, "product 256 x 640 x 2560", 0.35, 256, 640, 2560);
  good &= product(context, "product 77 x 320 x 768", 0.25, 77, 320, 768);
  const char* with_tiles[3] = {"convolution, forward", "convolution, data gradient", "convolution, weight gradient"};
  good &= convolution(context, with_tiles, 0.80, 1);  // Winograd's
  const char* direct[3] = {"convolution of stride 2, forward", "convolution of stride 2, data gradient",
                           "convolution of stride 2, weight gradient"};
  good &= convolution(context, direct, 0.25, 2);
  const bool wide = lpo::detail::machine_simd_bytes() > 16;
  good &= attention(context, "attention 512 x 512 x 4 x 40", wide ? 0.35 : 0.10);
  good &= group_norm(context, "group norm + SiLU 1024 x 320", wide ? 0.10 : 0.02);
  return good ? 0 : 1;
}
