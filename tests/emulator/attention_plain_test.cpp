// SPDX-License-Identifier: MIT
// Attention's kernels without tensor cores on the emulator, against the reference: what float, double and odd widths use on
// every GPU.
#include <lpo/backend/cuda/attention_plain.cuh>
#include <lpo/backend/reference/attention.hpp>

#include <doctest/doctest.h>

#include <backend/attention_cases.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

/// The plain half of backend/cuda/attention.cuh, whose other half holds instructions of the tensor cores.
template <>
struct Attention<Cuda> {
  template <class T>
  static void forward(Context<Cuda>& context, const AttentionShape& shape, const T* q, const T* k, const T* v, T* out,
                      compute_t<T>* log_sum_exp) {
    detail::attention_forward_plain(context, shape, q, k, v, out, log_sum_exp);
  }
  template <class T>
  static void backward(Context<Cuda>& context, const AttentionShape& shape, const T* q, const T* k, const T* v, const T* out,
                       const compute_t<T>* log_sum_exp, const T* dout, T* dq, bool accumulate_q, T* dk, bool accumulate_k,
                       T* dv, bool accumulate_v) {
    Scratch<Cuda> scratch(context);
    auto* const terms =
        scratch.template allocate<detail::QueryTerms<compute_t<T>>>(shape.batch * shape.heads * shape.queries);
    const dim3 blocks(detail::blocks_for(shape.queries * shape.heads, 32), static_cast<unsigned>(shape.batch));
    context.launch("attention_terms_kernel", {blocks, 256}, detail::attention_terms_kernel<1, T>, shape, out, dout,
                   log_sum_exp, 1.0f, terms, shape.queries);
    detail::attention_backward_plain(context, shape, q, k, v, terms, dout, dq, accumulate_q, dk, accumulate_k, dv,
                                     accumulate_v);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI

namespace {

using namespace attention_cases;

template <class T>
void compare(const Case& c, const Wanted& wanted = {}) {
  INFO("queries " << c.queries << " keys " << c.keys << " heads " << c.heads << " width " << c.width << " causal "
                  << c.causal << " bytes " << sizeof(T));
  lpo::Context<lpo::Cuda> context;
  lpo::Context<lpo::Reference> reference(1);
  check_close(attention<lpo::Cuda, T>(context, c, wanted), attention<lpo::Reference, T>(reference, c, wanted));
}

}  // namespace

TEST_CASE("emulated plain attention agrees with the reference") {
  const std::vector<Case> list = {{1, 1, 1, 1, 1},       {1, 2, 3, 1, 5, false, 2}, {2, 16, 33, 2, 16},
                                  {1, 70, 70, 1, 17, true, 3}, {1, 65, 129, 2, 40}, {1, 20, 30, 1, 200}};
  for (const auto& c : list) {
    compare<float>(c);
    compare<double>(c, {true, true, true, true});
  }
  compare<lpo::bfloat16>({1, 70, 90, 1, 12});
  compare<lpo::half>({2, 17, 40, 1, 44, true}, {false, true, false, true});
}
