// SPDX-License-Identifier: MIT
// Attention: closed forms, central differences, and the CPU backend against the reference.
#include <lpo/backend/cpu/attention.hpp>
#include <lpo/backend/reference/attention.hpp>

#include <doctest/doctest.h>

#include <backend/attention_cases.hpp>

#include <cmath>
#include <vector>

namespace {

using namespace attention_cases;

template <class Device, class T>
AttentionResult<T> attention(const Case& c, int threads, const Wanted& wanted, double size = 1.0) {
  lpo::Context<Device> context(threads);
  return attention_cases::attention<Device, T>(context, c, wanted, size);
}

template <class T>
void compare(const Case& c, const Wanted& wanted = {}, double size = 1.0) {
  INFO("batch " << c.batch << " queries " << c.queries << " keys " << c.keys << " heads " << c.heads << " width "
                << c.width << " causal " << c.causal << " bytes " << sizeof(T));
  const auto one = attention<lpo::Cpu, T>(c, 1, wanted, size);
  CHECK(one == attention<lpo::Cpu, T>(c, 3, wanted, size));
  check_close(one, attention<lpo::Reference, T>(c, 1, wanted, size));
}

}  // namespace

TEST_CASE("attention of small sequences has its known values") {
  lpo::Context<lpo::Reference> reference(1);
  check_known_attention(reference);
  lpo::Context<lpo::Cpu> cpu(1);
  check_known_attention(cpu);
}

TEST_CASE("reference attention gradients agree with central differences") {
  for (const bool causal : {false, true}) {
    const Case c{2, 3, causal ? 3 : 4, 2, 3, causal, 1};
    const auto shape = c.shape();
    lpo::Context<lpo::Reference> ctx(1);
    auto q = noise<double>(2 * c.queries * shape.q_row, 1), k = noise<double>(2 * c.keys * shape.k_row, 2);
    auto v = noise<double>(2 * c.keys * shape.v_row, 3);
    const auto dout = noise<double>(2 * c.queries * shape.out_row, 4);
    std::vector<double> out(dout.size(), 0.0), level(2 * 2 * 3), dq(q.size(), 0.0), dk(k.size(), 0.0),
        dv(v.size(), 0.0);
    using Kernel = lpo::kernel::Attention<lpo::Reference>;
    const auto loss = [&] {
      Kernel::forward(ctx, shape, q.data(), k.data(), v.data(), out.data(), level.data());
      return dot(out, dout);
    };
    loss();
    Kernel::backward(ctx, shape, q.data(), k.data(), v.data(), out.data(), level.data(), dout.data(), dq.data(), false,
                     dk.data(), false, dv.data(), false);
    CHECK(gradient_error(q, dq, loss) < 1e-8);
    CHECK(gradient_error(k, dk, loss) < 1e-8);
    CHECK(gradient_error(v, dv, loss) < 1e-8);
  }
}

TEST_CASE("cpu attention agrees with the reference, for any thread count") {
  for (const auto& c : cases()) {
    compare<float>(c);
    compare<float>(c, {true, true, true, true});
    compare<double>(c, {true, true, true, true});
    compare<lpo::bfloat16>(c);
    compare<lpo::half>(c, {true, true, true, true});
  }
}

TEST_CASE("attention gradients that nobody asked for are not written") {
  for (const auto& c : {Case{17, 6, 19, 1, 12}, Case{1, 70, 90, 1, 12}})
    for (const auto& wanted : {Wanted{true, false, false}, Wanted{false, true, false}, Wanted{false, false, true},
                               Wanted{false, true, true}})
      compare<float>(c, wanted);
}

TEST_CASE("attention with sharp scores neither overflows nor loses its sum") {
  compare<double>({1, 70, 200, 1, 16}, {}, 30.0);
  const Case c{1, 70, 200, 1, 16};
  const auto cpu = attention<lpo::Cpu, float>(c, 1, {}, 30.0);
  const auto reference = attention<lpo::Reference, float>(c, 1, {}, 30.0);
  CHECK(distance(cpu.out, reference.out) < 2e-3);  // scores of 2000 are spaced by 1e-4 in float

  // Scores millions of ln 2 from zero and from each other: one key takes it all.
  lpo::Context<lpo::Cpu> ctx(1);
  for (const float size : {1e6f, 1e7f, -1e7f, 1e12f}) {
    const std::vector<float> q{size}, keys{1.0f, 1.25f, 0.5f}, v{3, 5, 7};
    float out[1];
    lpo::kernel::Attention<lpo::Cpu>::forward<float>(ctx, {1, 1, 3, 1, 1, 1.0f, false, 1, 1, 1, 1}, q.data(),
                                                     keys.data(), v.data(), out, nullptr);
    CHECK(out[0] == doctest::Approx(size > 0 ? 5.0 : 7.0));
  }
}

TEST_CASE("attention over nothing writes what remains") {
  lpo::Context<lpo::Cpu> ctx(2);
  using Kernel = lpo::kernel::Attention<lpo::Cpu>;
  const float rows[4] = {1, 2, 3, 4};
  float dk[4] = {9, 9, 9, 9}, dv[4] = {9, 9, 9, 9};
  const lpo::kernel::AttentionShape no_queries{1, 0, 2, 1, 2, 1.0f, false, 2, 2, 2, 2};
  Kernel::forward<float>(ctx, no_queries, nullptr, rows, rows, nullptr, nullptr);
  Kernel::backward<float>(ctx, no_queries, nullptr, rows, rows, nullptr, nullptr, nullptr, nullptr, false, dk, false,
                          dv, true);
  CHECK(dk[3] == 0.0f);
  CHECK(dv[3] == 9.0f);
  Kernel::forward<float>(ctx, {}, nullptr, nullptr, nullptr, nullptr, nullptr);
  Kernel::backward<float>(ctx, {}, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, nullptr, false, nullptr, false,
                          nullptr, false);
}
