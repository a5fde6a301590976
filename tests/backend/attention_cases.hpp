// SPDX-License-Identifier: MIT
// The attentions that every backend is tested on, and one run of a kernel and its gradient on a device.
#pragma once

#include <lpo/kernel/attention.hpp>
#include <lpo/tensor/context.hpp>

#include <cmath>
#include <vector>

#include <backend/case_data.hpp>
#include <backend/on_device.hpp>

namespace attention_cases {

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
AttentionResult<T> attention(lpo::Context<Device>& context, const Case& c, const Wanted& wanted, double size = 1.0) {
  const auto shape = c.shape();
  const index_t q_size = c.batch * c.queries * shape.q_row, k_size = c.batch * c.keys * shape.k_row;
  const index_t v_size = c.batch * c.keys * shape.v_row, out_size = c.batch * c.queries * shape.out_row;
  const auto q = on_device<Device>(noise<T>(q_size, 1, size)), k = on_device<Device>(noise<T>(k_size, 2, size));
  const auto v = on_device<Device>(noise<T>(v_size, 3)), dout = on_device<Device>(noise<T>(out_size, 4));
  auto out = on_device<Device>(noise<T>(out_size, 5)), dq = on_device<Device>(noise<T>(q_size, 6));
  auto dk = on_device<Device>(noise<T>(k_size, 7)), dv = on_device<Device>(noise<T>(v_size, 8));
  auto log_sum_exp = on_device<Device>(
      std::vector<lpo::compute_t<T>>(static_cast<std::size_t>(c.batch * c.heads * c.queries), NAN));
  using Kernel = lpo::kernel::Attention<Device>;
  Kernel::forward(context, shape, q.data(), k.data(), v.data(), out.data(), log_sum_exp.data());
  Kernel::backward(context, shape, q.data(), k.data(), v.data(), out.data(), log_sum_exp.data(), dout.data(),
                   wanted.dq ? dq.data() : nullptr, wanted.accumulate, wanted.dk ? dk.data() : nullptr,
                   wanted.accumulate, wanted.dv ? dv.data() : nullptr, wanted.accumulate);
  return {to_host(out), to_host(dq), to_host(dk), to_host(dv), to_host(log_sum_exp)};
}

template <class T>
void check_close(const AttentionResult<T>& result, const AttentionResult<T>& reference) {
  const double limit = tolerance<T>();
  CHECK(distance(result.out, reference.out) < limit);
  CHECK(distance(result.log_sum_exp, reference.log_sum_exp) < 1e-5);
  CHECK(distance(result.dq, reference.dq) < limit);
  CHECK(distance(result.dk, reference.dk) < limit);
  CHECK(distance(result.dv, reference.dv) < limit);
}

/// One of everything; lanes and tiles that are full, partial and empty; several key blocks; queries in one part and in
/// several (401 and 595).
inline std::vector<Case> cases() {
  return {{1, 1, 1, 1, 1},
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
          {2, 5, 7, 1, 163},
          {1, 401, 77, 2, 12, false, 3},
          {1, 595, 595, 1, 9, true},
          {1, 97, 80, 3, 48},
          {1, 49, 97, 1, 24, true}};
}

/// Forward alone, of float: out, then log_sum_exp.
template <class Device>
std::vector<float> forward(lpo::Context<Device>& context, const lpo::kernel::AttentionShape& shape,
                           const std::vector<float>& q, const std::vector<float>& k, const std::vector<float>& v) {
  const auto q_there = on_device<Device>(q), k_there = on_device<Device>(k), v_there = on_device<Device>(v);
  auto out = on_device<Device>(std::vector<float>(static_cast<std::size_t>(shape.queries * shape.out_row), NAN));
  auto log_sum_exp = on_device<Device>(std::vector<float>(static_cast<std::size_t>(shape.queries), NAN));
  lpo::kernel::Attention<Device>::forward(context, shape, q_there.data(), k_there.data(), v_there.data(), out.data(),
                                          log_sum_exp.data());
  auto result = to_host(out);
  const auto levels = to_host(log_sum_exp);
  result.insert(result.end(), levels.begin(), levels.end());
  return result;
}

template <class Device>
void check_known_attention(lpo::Context<Device>& context) {
  // Equal scores: the mean of v, and log(3) + score.
  const std::vector<float> q{1, 2, 1, 2}, same{0.5f, 0, 0.5f, 0, 0.5f, 0}, v{1, 10, 2, 20, 6, 60};
  auto out = forward(context, {1, 2, 3, 1, 2, 1.0f, false, 2, 2, 2, 2}, q, same, v);
  CHECK(out[0] == doctest::Approx(3.0));
  CHECK(out[1] == doctest::Approx(30.0));
  CHECK(out[5] == doctest::Approx(0.5 + std::log(3.0)));
  // Scores log 1, log 2 with a scale of 2: weights 1/5, 4/5.
  out = forward(context, {1, 1, 2, 1, 2, 2.0f, false, 2, 2, 2, 2}, {1, 0}, {0, 7, std::log(2.0f), 7}, v);
  CHECK(out[0] == doctest::Approx(0.2 * 1 + 0.8 * 2));
  CHECK(out[1] == doctest::Approx(0.2 * 10 + 0.8 * 20));
  // Causal: the first query sees the first key alone, the second the mean of both.
  out = forward(context, {1, 2, 2, 1, 2, 1.0f, true, 2, 2, 2, 2}, q, same, v);
  CHECK(out[0] == doctest::Approx(1.0));
  CHECK(out[3] == doctest::Approx(15.0));
  CHECK(out[4] == doctest::Approx(0.5));
  // No keys: zeros, and the logarithm of zero.
  out = forward(context, {1, 2, 0, 1, 2, 1.0f, false, 2, 2, 2, 2}, q, same, v);
  CHECK(out[3] == 0.0f);
  CHECK(out[5] == -INFINITY);
}

}  // namespace attention_cases
