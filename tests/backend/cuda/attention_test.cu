// SPDX-License-Identifier: MIT
// The attention of CUDA devices and its gradient against the Reference device: every path, every storage type.
#include <lpo/backend/cuda/attention.cuh>
#include <lpo/backend/reference/attention.hpp>

#include <doctest/doctest.h>

#include <array>

#include <backend/attention_cases.hpp>

namespace {

using namespace attention_cases;

/// Head widths of every tensor-core tile, with lengths that fill tiles of 16 to 128 badly, exactly and not at all.
std::vector<Case> wide_cases() {
  return {{1, 1, 1, 1, 8},
          {2, 64, 64, 2, 48},
          {1, 128, 128, 1, 40},
          {2, 300, 77, 3, 40, false, 8},
          {1, 129, 191, 2, 40, true},
          {1, 200, 200, 2, 64, true, 16},
          {2, 150, 77, 2, 64},
          {1, 257, 130, 2, 80, false, 8},
          {1, 190, 190, 2, 80, true},
          {2, 65, 77, 1, 128},
          {1, 100, 100, 2, 104, true, 8},
          {1, 130, 300, 1, 160},
          {2, 70, 70, 2, 144, true},
          {1, 1000, 77, 1, 160},
          {1, 2500, 20, 1, 40},  // dk and dv are summed in shares
          {1, 1111, 150, 2, 64, false, 8},
          {9, 130, 70, 8, 40},  // enough blocks for two rows of fragments per warp
          {17, 30, 64, 8, 64},
          {17, 40, 130, 8, 80},
          {1, 64, 127, 2, 40},  // around the tiles of warpgroups: 64 queries each, 64 to 128 keys
          {2, 65, 128, 1, 64},
          {1, 191, 129, 2, 64},
          {1, 193, 255, 1, 40, false, 8},
          {2, 192, 256, 2, 56},
          {1, 1, 300, 2, 64},
          {1, 400, 1, 2, 80},
          {2, 127, 129, 1, 80},
          {1, 128, 257, 2, 72, false, 16},
          {1, 129, 64, 2, 128},
          {1, 63, 513, 1, 128, false, 8},
          {1, 256, 63, 2, 160},
          {2, 130, 129, 1, 160, false, 8},
          {1, 77, 700, 1, 152},
          {1, 150, 80, 2, 64},
          {2, 130, 193, 2, 40, false, 8},  // both gradients on warpgroups: more than 128 queries and keys
          {1, 320, 257, 1, 40},
          {1, 257, 192, 2, 64, false, 16},
          {1, 129, 400, 1, 56},
          {2, 200, 150, 2, 80},
          {1, 450, 129, 1, 72, false, 8},
          {1, 256, 256, 2, 128},
          {1, 193, 330, 1, 120, false, 8},
          {2, 256, 256, 1, 160},
          {1, 150, 81, 2, 40},
          {1, 40, 30, 1, 200},  // wider than one pass of the plain kernels
          {1, 60, 20, 2, 44, false, 4}};
}

template <class T>
void compare(lpo::Context<lpo::Cuda>& context, const Case& c, const Wanted& wanted, double size = 1.0) {
  INFO("batch " << c.batch << " queries " << c.queries << " keys " << c.keys << " heads " << c.heads << " width "
                << c.width << " causal " << c.causal << " bytes " << sizeof(T) << " dq " << wanted.dq << " dk "
                << wanted.dk << " dv " << wanted.dv << " accumulate " << wanted.accumulate);
  lpo::Context<lpo::Reference> reference(1);
  const auto result = attention<lpo::Cuda, T>(context, c, wanted, size);
  check_close(result, attention<lpo::Reference, T>(reference, c, wanted, size));
  CHECK(result == attention<lpo::Cuda, T>(context, c, wanted, size));
}

/// Root mean square and largest |a - exact|, relative to the root mean square of `exact`.
struct Deviation {
  double rms = 0.0, worst = 0.0;
};
template <class T>
Deviation deviation(const std::vector<T>& a, const std::vector<double>& exact) {
  double squares = 0.0, exact_squares = 0.0, worst = 0.0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double d = std::fabs(as_double(a[i]) - exact[i]);
    squares += d * d;
    exact_squares += exact[i] * exact[i];
    if (!(d <= worst)) worst = std::isfinite(d) ? d : HUGE_VAL;
  }
  return {std::sqrt(squares / exact_squares), worst / std::sqrt(exact_squares / static_cast<double>(a.size()))};
}

template <class T>
std::vector<double> widened(const std::vector<T>& values) {
  std::vector<double> wide(values.size());
  std::transform(values.begin(), values.end(), wide.begin(), [](T value) { return as_double(value); });
  return wide;
}

/// dq, dk and dv in one walk and in two, each against the Reference in double from the same 16-bit numbers. Both walks round the
/// same scores, p and ds; their float sums differ in order, which turns a few of the last bits of T. So one is compared with the
/// other's error, not with its numbers: where a result is 0.6, one bit of bfloat16 alone is 2.4e-3 of 1 + |value|.
template <class T>
void compare_walks(lpo::Context<lpo::Cuda>& context, const Case& c, bool accumulate) {
  INFO("queries " << c.queries << " keys " << c.keys << " heads " << c.heads << " width " << c.width << " accumulate " << accumulate);
  const auto shape = c.shape();
  const index_t q_size = c.batch * c.queries * shape.q_row, k_size = c.batch * c.keys * shape.k_row;
  const index_t v_size = c.batch * c.keys * shape.v_row, out_size = c.batch * c.queries * shape.out_row;
  const auto q = noise<T>(q_size, 1), k = noise<T>(k_size, 2), v = noise<T>(v_size, 3), dout = noise<T>(out_size, 4);
  // What is not asked to be added to starts as zeros: the gaps between rows are in the sums above.
  const double size = accumulate ? 1.0 : 0.0;
  const auto dq_before = noise<T>(q_size, 6, size), dk_before = noise<T>(k_size, 7, size), dv_before = noise<T>(v_size, 8, size);

  lpo::Context<lpo::Reference> reference(1);
  std::array exact{widened(dq_before), widened(dk_before), widened(dv_before)};
  {
    using Kernel = lpo::kernel::Attention<lpo::Reference>;
    const auto wide_q = widened(q), wide_k = widened(k), wide_v = widened(v), wide_dout = widened(dout);
    std::vector<double> out(wide_dout.size()), levels(static_cast<std::size_t>(c.batch * c.heads * c.queries));
    Kernel::forward(reference, shape, wide_q.data(), wide_k.data(), wide_v.data(), out.data(), levels.data());
    Kernel::backward(reference, shape, wide_q.data(), wide_k.data(), wide_v.data(), out.data(), levels.data(), wide_dout.data(),
                     exact[0].data(), accumulate, exact[1].data(), accumulate, exact[2].data(), accumulate);
  }

  const auto q_there = on_device<lpo::Cuda>(q), k_there = on_device<lpo::Cuda>(k), v_there = on_device<lpo::Cuda>(v);
  const auto dout_there = on_device<lpo::Cuda>(dout), out = on_device<lpo::Cuda>(noise<T>(out_size, 5));
  const auto log_sum_exp = on_device<lpo::Cuda>(std::vector<float>(static_cast<std::size_t>(c.batch * c.heads * c.queries)));
  lpo::kernel::Attention<lpo::Cuda>::forward(context, shape, q_there.data(), k_there.data(), v_there.data(), out.data(),
                                             log_sum_exp.data());
  const index_t stride = lpo::detail::gradient_terms_stride(shape);
  const auto numbers = on_device<lpo::Cuda>(std::vector<float>(static_cast<std::size_t>(2 * c.batch * c.heads * stride), NAN));
  auto* const terms = reinterpret_cast<lpo::detail::QueryTerms<float>*>(numbers.data());
  const dim3 blocks(lpo::detail::blocks_for(c.queries * c.heads, 32), static_cast<unsigned>(c.batch));
  context.launch("attention_terms_kernel", {blocks, 256}, lpo::detail::attention_terms_kernel<1, T>, shape, out.data(),
                 dout_there.data(), log_sum_exp.data(), 1.44269504f, terms, stride);
  context.synchronize();
  const auto gradients = [&](auto&& walk) {
    const auto dq = on_device<lpo::Cuda>(dq_before), dk = on_device<lpo::Cuda>(dk_before), dv = on_device<lpo::Cuda>(dv_before);
    walk(context, shape, q_there.data(), k_there.data(), v_there.data(), terms, dout_there.data(), dq.data(), accumulate, dk.data(),
         accumulate, dv.data(), accumulate);
    return std::array{to_host(dq), to_host(dk), to_host(dv)};
  };
  const auto in_one = [](auto&&... arguments) { lpo::detail::attention_backward_joint<T>(arguments...); };
  const auto two = gradients([](auto&&... arguments) { lpo::detail::attention_backward_warpgroups<T>(arguments...); });
  const auto one = gradients(in_one);
  for (std::size_t i = 0; i < 3; ++i) {
    CAPTURE(i);
    const auto error = deviation(one[i], exact[i]), other = deviation(two[i], exact[i]);
    CHECK(error.rms < (std::is_same_v<T, lpo::half> ? 5e-4 : 4e-3));  // on the host, rounded where the kernels round: 3e-4, 2.4e-3
    CHECK(error.rms < 1.01 * other.rms);
    CHECK(error.worst < 1.05 * other.worst);
  }
  for (int run = 0; run < 3; ++run) {
    const auto again = gradients(in_one);
    for (std::size_t i = 0; i < 3; ++i) CHECK(same_bits(again[i], one[i]));
  }
}

}  // namespace

TEST_CASE("cuda attention of small sequences has its known values") {
  lpo::Context<lpo::Cuda> context;
  check_known_attention(context);
}

TEST_CASE("cuda attention agrees with the reference, with the same bits every time") {
  lpo::Context<lpo::Cuda> context;
  auto list = cases();
  for (const auto& c : wide_cases()) list.push_back(c);
  for (const auto& c : list) {
    compare<float>(context, c, {});
    compare<double>(context, c, {true, true, true, true});
    compare<lpo::bfloat16>(context, c, {});
    compare<lpo::half>(context, c, {true, true, true, true});
  }
}

TEST_CASE("cuda attention gradients in one walk are as near to those in double as in two walks, with the same bits every time") {
  lpo::Context<lpo::Cuda> context;
  const Case list[] = {{2, 130, 193, 2, 40, false, 8}, {1, 257, 300, 3, 32}, {5, 150, 700, 3, 40, false, 16}, {1, 129, 130, 1, 8},
                       {3, 193, 640, 2, 40, false, 8}, {2, 321, 257, 2, 24},
                       {15, 129, 1400, 3, 16}};  // sets of heads follow each other in the same place
  if (!lpo::detail::prefers_gradient_warpgroups<lpo::half>(list[0].shape())) return;  // needs Hopper's code
  for (const auto& c : list) {
    compare_walks<lpo::bfloat16>(context, c, false);
    compare_walks<lpo::bfloat16>(context, c, true);
    compare_walks<lpo::half>(context, c, false);
    compare_walks<lpo::half>(context, c, true);
  }
}

TEST_CASE("cuda attention gradients take one walk where it was faster on an H100") {
  const auto preferred = [](const Case& c) { return lpo::detail::prefers_joint_gradient(c.shape(), 132); };
  CHECK(preferred({20, 4096, 4096, 8, 40}));
  CHECK(preferred({4, 4096, 4096, 8, 40}));
  CHECK(!preferred({2, 4096, 4096, 8, 40}));
  CHECK(!preferred({20, 4096, 1024, 8, 40}));
  CHECK(!preferred({8, 4096, 4096, 10, 64}));
}

TEST_CASE("cuda attention gradients that nobody asked for are not written") {
  lpo::Context<lpo::Cuda> context;
  for (const auto& c :
       {Case{1, 70, 90, 1, 12}, Case{2, 70, 90, 1, 16}, Case{1, 900, 30, 1, 40}, Case{1, 200, 300, 1, 40}})
    for (const auto& wanted : {Wanted{true, false, false}, Wanted{false, true, false}, Wanted{false, false, true},
                               Wanted{false, true, true}, Wanted{false, false, false}}) {
      compare<float>(context, c, wanted);
      compare<lpo::bfloat16>(context, c, wanted);
    }
}

TEST_CASE("cuda attention with sharp scores neither overflows nor loses its sum") {
  lpo::Context<lpo::Cuda> context;
  lpo::Context<lpo::Reference> reference(1);
  compare<double>(context, {1, 70, 200, 1, 16}, {}, 30.0);
  const Case c{1, 70, 200, 1, 16};
  CHECK(distance(attention<lpo::Cuda, float>(context, c, {}, 30.0).out,
                 attention<lpo::Reference, float>(reference, c, {}, 30.0).out) < 2e-3);  // as on the CPU
  for (const auto& narrow : {c, Case{1, 200, 700, 1, 40}, Case{1, 200, 700, 1, 80}, Case{1, 100, 700, 1, 160}}) {
    const auto result = attention<lpo::Cuda, lpo::bfloat16>(context, narrow, {}, 30.0);
    CHECK(distance(result.out, attention<lpo::Reference, lpo::bfloat16>(reference, narrow, {}, 30.0).out) < 1.6e-2);
  }
}

TEST_CASE("cuda attention takes any scale and any address") {
  lpo::Context<lpo::Cuda> context;
  lpo::Context<lpo::Reference> reference(1);
  const Case c{1, 50, 70, 1, 32};
  for (const float scale : {-0.3f, 0.0f, 0.3f}) {
    auto shape = c.shape();
    shape.scale = scale;
    // One element behind the start of an allocation: no 16-byte accesses.
    const auto q = noise<lpo::half>(50 * 32 + 1, 1), k = noise<lpo::half>(70 * 32 + 1, 2),
               v = noise<lpo::half>(70 * 32 + 1, 3);
    std::vector<lpo::half> out(50 * 32 + 1), expected(50 * 32 + 1);
    lpo::kernel::Attention<lpo::Reference>::forward(reference, shape, q.data() + 1, k.data() + 1, v.data() + 1,
                                                    expected.data() + 1, static_cast<float*>(nullptr));
    const auto q_there = on_device<lpo::Cuda>(q), k_there = on_device<lpo::Cuda>(k), v_there = on_device<lpo::Cuda>(v);
    const auto there = on_device<lpo::Cuda>(out);
    lpo::kernel::Attention<lpo::Cuda>::forward(context, shape, q_there.data() + 1, k_there.data() + 1,
                                               v_there.data() + 1, there.data() + 1, static_cast<float*>(nullptr));
    out = to_host(there);
    out[0] = expected[0];
    CHECK(distance(out, expected) < 2e-3);
  }
}

TEST_CASE("cuda attention over nothing writes what remains") {
  lpo::Context<lpo::Cuda> context;
  using Kernel = lpo::kernel::Attention<lpo::Cuda>;
  const auto rows = on_device<lpo::Cuda>(std::vector<float>{1, 2, 3, 4});
  const auto dk = on_device<lpo::Cuda>(std::vector<float>(4, 9.0f)), dv = on_device<lpo::Cuda>(std::vector<float>(4, 9.0f));
  const lpo::kernel::AttentionShape no_queries{1, 0, 2, 1, 2, 1.0f, false, 2, 2, 2, 2};
  Kernel::forward<float>(context, no_queries, nullptr, rows.data(), rows.data(), nullptr, nullptr);
  Kernel::backward<float>(context, no_queries, nullptr, rows.data(), rows.data(), nullptr, nullptr, nullptr, nullptr,
                          false, dk.data(), false, dv.data(), true);
  CHECK(to_host(dk)[3] == 0.0f);
  CHECK(to_host(dv)[3] == 9.0f);
  const lpo::kernel::AttentionShape no_keys{1, 2, 0, 1, 2, 1.0f, false, 2, 2, 2, 2};
  Kernel::backward<float>(context, no_keys, rows.data(), nullptr, nullptr, rows.data(), rows.data(), rows.data(),
                          dk.data(), false, nullptr, false, nullptr, false);
  CHECK(to_host(dk)[0] == 0.0f);
  Kernel::forward<float>(context, {}, nullptr, nullptr, nullptr, nullptr, nullptr);
  Kernel::backward<float>(context, {}, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, false, nullptr,
                          false, nullptr, false);
}
