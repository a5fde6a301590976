// SPDX-License-Identifier: MIT
// Matrix products on a CUDA device against the reference; the choice of algorithms by time.
#include <cstring>
#include <vector>

#include <lpo/backend/cuda/gemm.cuh>
#include <lpo/tensor/tensor.hpp>

#include <backend/gemm_cases.hpp>

using namespace gemm_cases;

TEST_CASE_TEMPLATE("cuda gemm agrees with the reference", T, LPO_STORAGE_TYPES) { compare_products<lpo::Cuda, T>(); }

TEST_CASE_TEMPLATE("an algorithm chosen by time gives the bits of the library's first choice", T, lpo::bfloat16, lpo::half) {
  struct Shape {
    lpo::index_t m, n, k;
  };
  for (const Shape s : {Shape{40960, 320, 320}, Shape{4096, 640, 2560}}) {
    const auto random = [](lpo::index_t size, std::uint32_t operation) {
      lpo::RandomStream stream(7, operation, 0);
      std::vector<float> values(static_cast<std::size_t>(size));
      for (float& value : values) value = static_cast<float>(stream.uniform()) - 0.5f;
      return lpo::Tensor<T, 1, lpo::Cuda>::from(lpo::Extents<1>{size}, values);
    };
    auto a = random(s.m * s.k, 1), b = random(s.n * s.k, 2), start = random(s.m * s.n, 3), bias = random(s.n, 4);
    const auto product = [&](bool timed) {
      lpo::Context<lpo::Cuda> context(lpo::CudaOptions{.time_products = timed});
      lpo::Tensor<T, 1, lpo::Cuda> c(start.extents());
      lpo::kernel::GemmParams<T> p{};
      p.m = s.m, p.n = s.n, p.k = s.k;
      p.a = a.data(), p.lda = s.k;
      p.b = b.data(), p.ldb = s.k, p.transpose_b = true;
      p.c = c.data(), p.ldc = s.n;
      p.bias = bias.data(), p.start = start.data(), p.beta = 1;
      lpo::kernel::Gemm<lpo::Cuda>::run(context, p);
      std::vector<T> host(static_cast<std::size_t>(c.size()));
      context.copy_to_host(host.data(), c.data(), host.size() * sizeof(T));
      return host;
    };
    const auto plain = product(false), timed = product(true);
    CHECK(std::memcmp(plain.data(), timed.data(), plain.size() * sizeof(T)) == 0);
  }
}
