// SPDX-License-Identifier: MIT
// Attention: closed forms, central differences, and the CPU backend against the reference.
#include <lpo/backend/cpu/attention.hpp>
#include <lpo/backend/reference/attention.hpp>

#include <doctest/doctest.h>

#include <backend/case_data.hpp>

#include <cmath>
#include <vector>

namespace {

using namespace lpo_test;
using lpo::index_t;

/// Sizes of one case; `gap` extra elements after each row check that row strides are obeyed and gaps left alone.
struct Case {
  index_t batch, queries, keys, heads, width;
  bool causal = false;
  index_t gap = 0;

  lpo::kernel::AttentionShape shape() const {
    const index_t row = heads * width;
    return {batch,         queries,      keys,
            heads,         width,        static_cast<float>(1.0 / std::sqrt(static_cast<double>(width))),
            causal,        row + gap,    row + gap,
            row + 3 * gap, row + 2 * gap};
  }
};

struct Wanted {
  bool dq = true, dk = true, dv = true, accumulate = false;
};

template <class T>
struct AttentionResult {
  std::vector<T> out, dq, dk, dv;
  std::vector<lpo::compute_t<T>> log_sum_exp;

  bool operator==(const AttentionResult& other) const {
    return same_bits(out, other.out) && same_bits(dq, other.dq) && same_bits(dk, other.dk) && same_bits(dv, other.dv) &&
           same_bits(log_sum_exp, other.log_sum_exp);
  }
};

template <class Device, class T>
AttentionResult<T> attention(const Case& c, int threads, const Wanted& wanted, double size = 1.0) {
  lpo::Context<Device> ctx(threads);
  const auto shape = c.shape();
  const index_t q_size = c.batch * c.queries * shape.q_row, k_size = c.batch * c.keys * shape.k_row;
  const index_t v_size = c.batch * c.keys * shape.v_row, out_size = c.batch * c.queries * shape.out_row;
  const auto q = noise<T>(q_size, 1, size), k = noise<T>(k_size, 2, size), v = noise<T>(v_size, 3);
  const auto dout = noise<T>(out_size, 4);
  AttentionResult<T> r{noise<T>(out_size, 5), noise<T>(q_size, 6), noise<T>(k_size, 7), noise<T>(v_size, 8), {}};
  r.log_sum_exp.resize(static_cast<std::size_t>(c.batch * c.heads * c.queries));
  using Kernel = lpo::kernel::Attention<Device>;
  Kernel::forward(ctx, shape, q.data(), k.data(), v.data(), r.out.data(), r.log_sum_exp.data());
  Kernel::backward(ctx, shape, q.data(), k.data(), v.data(), r.out.data(), r.log_sum_exp.data(), dout.data(),
                   wanted.dq ? r.dq.data() : nullptr, wanted.accumulate, wanted.dk ? r.dk.data() : nullptr,
                   wanted.accumulate, wanted.dv ? r.dv.data() : nullptr, wanted.accumulate);
  return r;
}

template <class T>
void compare(const Case& c, const Wanted& wanted = {}, double size = 1.0) {
  INFO("batch " << c.batch << " queries " << c.queries << " keys " << c.keys << " heads " << c.heads << " width "
                << c.width << " causal " << c.causal << " bytes " << sizeof(T));
  const auto one = attention<lpo::Cpu, T>(c, 1, wanted, size);
  CHECK(one == attention<lpo::Cpu, T>(c, 3, wanted, size));
  const auto reference = attention<lpo::Reference, T>(c, 1, wanted, size);
  const double limit = tolerance<T>();
  CHECK(distance(one.out, reference.out) < limit);
  CHECK(distance(one.log_sum_exp, reference.log_sum_exp) < 1e-5);
  CHECK(distance(one.dq, reference.dq) < limit);
  CHECK(distance(one.dk, reference.dk) < limit);
  CHECK(distance(one.dv, reference.dv) < limit);
}

template <class Device>
void check_known_attention() {
  lpo::Context<Device> ctx(1);
  // Equal scores: the mean of v, and log(3) + score.
  const float q[] = {1, 2, 1, 2}, same[] = {0.5f, 0, 0.5f, 0, 0.5f, 0}, v[] = {1, 10, 2, 20, 6, 60};
  float out[4], level[2];
  lpo::kernel::AttentionShape shape{1, 2, 3, 1, 2, 1.0f, false, 2, 2, 2, 2};
  lpo::kernel::Attention<Device>::forward(ctx, shape, q, same, v, out, level);
  CHECK(out[0] == doctest::Approx(3.0));
  CHECK(out[1] == doctest::Approx(30.0));
  CHECK(level[1] == doctest::Approx(0.5 + std::log(3.0)));
  // Scores log 1, log 2 with a scale of 2: weights 1/5, 4/5.
  const float one[] = {1, 0}, k[] = {0, 7, std::log(2.0f), 7};
  shape = {1, 1, 2, 1, 2, 2.0f, false, 2, 2, 2, 2};
  lpo::kernel::Attention<Device>::forward(ctx, shape, one, k, v, out, nullptr);
  CHECK(out[0] == doctest::Approx(0.2 * 1 + 0.8 * 2));
  CHECK(out[1] == doctest::Approx(0.2 * 10 + 0.8 * 20));
  // Causal: the first query sees the first key alone, the second the mean of both.
  shape = {1, 2, 2, 1, 2, 1.0f, true, 2, 2, 2, 2};
  lpo::kernel::Attention<Device>::forward(ctx, shape, q, same, v, out, level);
  CHECK(out[0] == doctest::Approx(1.0));
  CHECK(out[3] == doctest::Approx(15.0));
  CHECK(level[0] == doctest::Approx(0.5));
  // No keys: zeros.
  shape = {1, 2, 0, 1, 2, 1.0f, false, 2, 2, 2, 2};
  lpo::kernel::Attention<Device>::forward(ctx, shape, q, same, v, out, nullptr);
  CHECK(out[3] == 0.0f);
}

}  // namespace

TEST_CASE("attention of small sequences has its known values") {
  check_known_attention<lpo::Reference>();
  check_known_attention<lpo::Cpu>();
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
  // One of everything; lanes and tiles that are full, partial and empty; several key blocks; both ways of backward.
  const Case cases[] = {{1, 1, 1, 1, 1},
                        {1, 2, 3, 1, 5, false, 2},
                        {3, 4, 16, 2, 16},
                        {2, 16, 32, 4, 32, false, 7},
                        {5, 17, 33, 4, 15},
                        {2, 64, 64, 9, 32, true},
                        {1, 33, 77, 2, 40},
                        {1, 70, 70, 1, 17, true, 3},
                        {1, 130, 200, 2, 33, false, 5},
                        {1, 210, 210, 2, 24, true},
                        {9, 99, 99, 2, 8, true},
                        {8, 66, 101, 2, 20},
                        {1, 40, 257, 1, 160},
                        {2, 5, 7, 1, 163}};
  for (const auto& c : cases) {
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
