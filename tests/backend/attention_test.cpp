// SPDX-License-Identifier: MIT
// Attention: closed forms, central differences, and the CPU backend against the reference.
#include <lpo/backend/cpu/attention.hpp>
#include <lpo/backend/reference/attention.hpp>

#include <doctest/doctest.h>

#include <backend/attention_cases.hpp>
#include <backend/plain_pairs.hpp>

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

/// The results of one set of tiles, as the kernel would give them on a machine that had these alone.
AttentionResult<lpo::bfloat16> attention_in_pairs(const lpo::detail::AttentionPairs& machine, const Case& c, int threads,
                                                  bool accumulate) {
  using lpo::bfloat16;
  lpo::Context<lpo::Cpu> ctx(threads);
  const auto shape = c.shape();
  const index_t q_size = c.batch * c.queries * shape.q_row, k_size = c.batch * c.keys * shape.k_row;
  const index_t v_size = c.batch * c.keys * shape.v_row, out_size = c.batch * c.queries * shape.out_row;
  const auto q = noise<bfloat16>(q_size, 1), k = noise<bfloat16>(k_size, 2), v = noise<bfloat16>(v_size, 3),
             dout = noise<bfloat16>(out_size, 4);
  AttentionResult<bfloat16> r{noise<bfloat16>(out_size, 5), noise<bfloat16>(q_size, 6), noise<bfloat16>(k_size, 7),
                              noise<bfloat16>(v_size, 8),
                              std::vector<float>(static_cast<std::size_t>(c.batch * c.heads * c.queries), NAN)};
  lpo::detail::AttentionPairForward{machine, shape, q.data(), k.data(), v.data(), r.out.data(), r.log_sum_exp.data()}
      .run(ctx);
  lpo::detail::AttentionPairBackward{machine,      shape,         q.data(),    k.data(),  v.data(),
                                     r.out.data(), r.log_sum_exp.data(), dout.data(), r.dq.data(), r.dk.data(),
                                     r.dv.data(),  accumulate,    accumulate,  accumulate}
      .run(ctx);
  return r;
}

/// Attention in double of the same bfloat16 numbers, and how far the kernel's results may be from it: weights and slopes
/// of scores are rounded to 8 bits (2^-8 of each), and so is `out`, whose products with dout backward subtracts.
struct ExactAttention {
  std::vector<double> out, dq, dk, dv, log_sum_exp, out_limit, dq_limit, dk_limit, dv_limit;

  ExactAttention(const Case& c, bool accumulate) {
    const auto shape = c.shape();
    const index_t q_size = c.batch * c.queries * shape.q_row, k_size = c.batch * c.keys * shape.k_row;
    const index_t v_size = c.batch * c.keys * shape.v_row, out_size = c.batch * c.queries * shape.out_row;
    const auto wide = [](index_t count, std::uint32_t seed, bool kept = true) {
      std::vector<double> to;
      for (const auto value : noise<lpo::bfloat16>(count, seed)) to.push_back(kept ? as_double(value) : 0.0);
      return to;
    };
    const auto q = wide(q_size, 1), k = wide(k_size, 2), v = wide(v_size, 3), dout = wide(out_size, 4);
    dq = wide(q_size, 6, accumulate), dk = wide(k_size, 7, accumulate), dv = wide(v_size, 8, accumulate);
    out.assign(at(out_size), 0.0), log_sum_exp.assign(at(c.batch * c.heads * c.queries), 0.0);
    out_limit = out, dq_limit.assign(dq.size(), 0.0), dk_limit.assign(dk.size(), 0.0), dv_limit.assign(dv.size(), 0.0);
    constexpr double unit = 1.0 / 256;
    const double scale = static_cast<double>(shape.scale);
    std::vector<double> p(at(c.keys)), dp(at(c.keys));
    for (index_t b = 0; b < c.batch; ++b)
      for (index_t head = 0; head < c.heads; ++head)
        for (index_t i = 0; i < c.queries; ++i) {
          const index_t q_at = (b * c.queries + i) * shape.q_row + head * c.width;
          const index_t out_at = (b * c.queries + i) * shape.out_row + head * c.width;
          const auto k_at = [&](index_t j) { return (b * c.keys + j) * shape.k_row + head * c.width; };
          const auto v_at = [&](index_t j) { return (b * c.keys + j) * shape.v_row + head * c.width; };
          const index_t seen = c.causal ? std::min(c.keys, i + 1) : c.keys;
          double highest = -HUGE_VAL, sum = 0.0, delta = 0.0, delta_limit = 0.0;
          for (index_t j = 0; j < seen; ++j) {
            p[at(j)] = dp[at(j)] = 0.0;
            for (index_t d = 0; d < c.width; ++d) {
              p[at(j)] += scale * q[at(q_at + d)] * k[at(k_at(j) + d)];
              dp[at(j)] += dout[at(out_at + d)] * v[at(v_at(j) + d)];
            }
            highest = std::max(highest, p[at(j)]);
          }
          for (index_t j = 0; j < seen; ++j) sum += p[at(j)] = std::exp(p[at(j)] - highest);
          log_sum_exp[at((b * c.heads + head) * c.queries + i)] = highest + std::log(sum);
          for (index_t d = 0; d < c.width; ++d) {
            double total = 0.0, magnitude = 0.0;
            for (index_t j = 0; j < seen; ++j) {
              const double term = p[at(j)] / sum * v[at(v_at(j) + d)];
              total += term, magnitude += std::fabs(term);
            }
            out[at(out_at + d)] = total, out_limit[at(out_at + d)] = unit * magnitude;
            delta += dout[at(out_at + d)] * total;
            delta_limit += std::fabs(dout[at(out_at + d)]) * unit * (magnitude + std::fabs(total));
          }
          for (index_t j = 0; j < seen; ++j) {
            const double weight = p[at(j)] / sum, ds = weight * (dp[at(j)] - delta);
            const double ds_limit = unit * std::fabs(ds) + weight * delta_limit;
            for (index_t d = 0; d < c.width; ++d) {
              dq[at(q_at + d)] += scale * ds * k[at(k_at(j) + d)];
              dk[at(k_at(j) + d)] += scale * ds * q[at(q_at + d)];
              dv[at(v_at(j) + d)] += weight * dout[at(out_at + d)];
              dq_limit[at(q_at + d)] += scale * ds_limit * std::fabs(k[at(k_at(j) + d)]);
              dk_limit[at(k_at(j) + d)] += scale * ds_limit * std::fabs(q[at(q_at + d)]);
              dv_limit[at(v_at(j) + d)] += unit * weight * std::fabs(dout[at(out_at + d)]);
            }
          }
        }
  }

  static std::size_t at(index_t i) { return static_cast<std::size_t>(i); }

  /// The largest distance of a row's numbers from the exact ones, over what roundings allow; 1e-5 for sums in float.
  /// What lies between rows is not looked at.
  static double excess(const std::vector<lpo::bfloat16>& result, const std::vector<double>& exact,
                       const std::vector<double>& limit, index_t length, index_t row) {
    double worst = 0.0;
    for (std::size_t i = 0; i < exact.size(); ++i) {
      if (static_cast<index_t>(i) % row >= length) continue;
      const double allowed = limit[i] + std::fabs(exact[i]) / 256 + 1e-5;
      const double ratio = std::fabs(as_double(result[i]) - exact[i]) / allowed;
      if (!(ratio <= worst)) worst = std::isfinite(ratio) ? ratio : HUGE_VAL;
    }
    return worst;
  }
};

/// Plain loops for instructions that broadcast and for those that do not, and this machine's own.
std::vector<lpo::detail::AttentionPairs> sets_of_pairs() {
  std::vector<lpo::detail::AttentionPairs> list{{&lpo_test::plain_pairs<false>, &lpo_test::plain_attention_loops},
                                                {&lpo_test::plain_pairs<true>, &lpo_test::plain_attention_loops}};
  for (int i = 0; i < lpo::detail::pair_tiles().count; ++i)
    list.push_back({lpo::detail::pair_tiles().tiles[i], lpo::detail::attention_pairs().loops});
  return list;
}

}  // namespace

TEST_CASE("attention in pairs of bfloat16 keeps within its roundings, for every set of tiles and any thread count") {
  std::vector<Case> list = cases();
  for (const index_t width : {1, 3, 8, 40, 64, 80, 128, 160})
    for (const index_t keys : {1, 5, 64, 77, 300}) list.push_back({1, 37, keys, 2, width, false, width % 3});
  list.push_back({1, 300, 300, 1, 40, true});
  list.push_back({1, 700, 140, 1, 40});
  double worst[4] = {};
  for (const Case& c : list) {
    INFO("batch " << c.batch << " queries " << c.queries << " keys " << c.keys << " heads " << c.heads << " width "
                  << c.width << " causal " << c.causal);
    const bool accumulate = c.width % 2 == 0;
    const ExactAttention exact(c, accumulate);
    const auto shape = c.shape();
    const index_t length = c.heads * c.width;
    for (const auto& machine : sets_of_pairs()) {
      const auto result = attention_in_pairs(machine, c, 1, accumulate);
      CHECK(result == attention_in_pairs(machine, c, 2, accumulate));
      CHECK(result == attention_in_pairs(machine, c, 3, accumulate));
      CHECK(distance({result.log_sum_exp.begin(), result.log_sum_exp.end()}, exact.log_sum_exp) < 1e-5);
      const double ratio[4] = {
          ExactAttention::excess(result.out, exact.out, exact.out_limit, length, shape.out_row),
          ExactAttention::excess(result.dq, exact.dq, exact.dq_limit, length, shape.q_row),
          ExactAttention::excess(result.dk, exact.dk, exact.dk_limit, length, shape.k_row),
          ExactAttention::excess(result.dv, exact.dv, exact.dv_limit, length, shape.v_row)};
      for (int i = 0; i < 4; ++i) {
        CHECK(ratio[i] <= 1.0);
        worst[i] = std::max(worst[i], ratio[i]);
      }
      // What lies between rows stays as it was.
      const auto before = noise<lpo::bfloat16>(static_cast<index_t>(result.out.size()), 5);
      for (std::size_t i = 0; i < before.size(); ++i)
        if (static_cast<index_t>(i) % shape.out_row >= length) CHECK(result.out[i].bits == before[i].bits);
    }
  }
  MESSAGE("largest errors over what roundings allow: out ", worst[0], ", dq ", worst[1], ", dk ", worst[2], ", dv ", worst[3]);
  CHECK(lpo_test::open_states == 0);
}

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
  const auto one_takes_all = []<class T>(T) {
    lpo::Context<lpo::Cpu> ctx(1);
    for (const float size : {1e6f, 1e7f, -1e7f, 1.01e9f, 1e12f})
      for (const float scale : {1.0f, 0.7f}) {
        const std::vector<T> q{T(size)}, keys{T(1.0f), T(1.25f), T(0.5f)}, v{T(3.0f), T(5.0f), T(7.0f)};
        T out[1];
        lpo::kernel::Attention<lpo::Cpu>::forward<T>(ctx, {1, 1, 3, 1, 1, scale, false, 1, 1, 1, 1}, q.data(),
                                                     keys.data(), v.data(), out, nullptr);
        CHECK(as_double(out[0]) == doctest::Approx(size > 0 ? 5.0 : 7.0));
      }
  };
  one_takes_all(0.0f);
  one_takes_all(lpo::bfloat16(0.0f));
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
