// SPDX-License-Identifier: MIT
// Several projections of one input, with or without low-rank adapters, in the products of one: queries, keys and
// values.
#pragma once

#include <array>
#include <cstddef>

#include <lpo/autograd/linear.hpp>
#include <lpo/kernel/copy.hpp>

namespace lpo::inline LPO_ABI {

/// Weights of one of several projections: [out, in], and those of its adapter, `down` [rank, in] and `up` [out, rank],
/// or absent.
template <class T, class Device>
struct ProjectionWeights {
  Var<T, 2, Device> weight, down, up;
  double scale = 1;  ///< of the adapter
};

namespace detail {

/// Matrices of equal extents that lie equally far apart in memory, and so do their gradients: the operand of one
/// product.
template <class T, class Device, std::size_t N>
struct EquallySpaced {
  bool found = true;
  index_t step = 0;  ///< elements from one to the next

  explicit EquallySpaced(const std::array<Var<T, 2, Device>, N>& matrices) {
    const auto& first = matrices[0];
    if (!first.present()) {
      for (const auto& other : matrices) found = found && !other.present();
      return;
    }
    for (std::size_t i = 0; i < N && found; ++i) {
      const auto& one = matrices[i];
      found = one.present() && one.extents() == first.extents() && one.view().dense() &&
              one.requires_gradient() == first.requires_gradient();
      if (!found) return;
      if (i == 1) step = one.data() - first.data();
      const auto apart = static_cast<index_t>(i) * step;
      found = one.data() - first.data() == apart && step >= 0;
      if (found && one.requires_gradient())
        found = one.slot()->persistent && reinterpret_cast<T*>(one.slot()->gradient) -
                                                  reinterpret_cast<T*>(first.slot()->gradient) == apart;
    }
  }
};

/// The gradients of equally spaced matrices: that of the first, with one flag for all.
template <class T, class Device, std::size_t N>
GradientTarget<T> joint_target(const std::array<Var<T, 2, Device>, N>& matrices) {
  std::array<GradientTarget<T>, N> targets;
  bool accumulate = false;
  for (std::size_t i = 0; i < N; ++i) {
    targets[i] = gradient_target(matrices[i]);
    accumulate = accumulate || targets[i].accumulate;
  }
  for (std::size_t i = 0; i < N; ++i)
    if (targets[i] && accumulate && !targets[i].accumulate)
      matrices[i].tape().context().fill_zero(targets[i].data, static_cast<std::size_t>(matrices[i].size()) * sizeof(T));
  return {targets[0].data, accumulate};
}

}  // namespace detail

/// Whether projections() takes these: their weights are equally spaced in memory, as a ParameterStore lays out those of
/// one layer, and so are their adapters, if they have any.
template <class T, class Device, std::size_t N>
bool can_project_together(const std::array<ProjectionWeights<T, Device>, N>& parts) {
  std::array<Var<T, 2, Device>, N> weights, down, up;
  bool same_scale = true;
  for (std::size_t i = 0; i < N; ++i) {
    weights[i] = parts[i].weight, down[i] = parts[i].down, up[i] = parts[i].up;
    same_scale = same_scale && parts[i].scale == parts[0].scale;
  }
  return same_scale && detail::EquallySpaced(weights).found && detail::EquallySpaced(down).found &&
         detail::EquallySpaced(up).found;
}

/// x [b, s, in] -> N Vars [b, s, out], columns of one matrix [b s, N out]. Part i is x W_i^T + s (x A_i^T) B_i^T, as
/// adapted_linear() without a bias computes it. One product makes all projections, one the inner values of all
/// adapters, one batch adds these. Only where can_project_together(parts).
template <class T, class Device, std::size_t N>
std::array<Var<T, 3, Device>, N> projections(const Var<T, 3, Device>& input,
                                             const std::array<ProjectionWeights<T, Device>, N>& parts) {
  static_assert(N >= 2 && N <= 32);
  constexpr auto count = static_cast<index_t>(N);
  const auto x = input.reshape(Extents<2>{input.extent(0) * input.extent(1), input.extent(2)});
  std::array<Var<T, 2, Device>, N> weights, down, up;
  bool requires_gradient = x.requires_gradient();
  for (std::size_t i = 0; i < N; ++i) {
    weights[i] = parts[i].weight, down[i] = parts[i].down, up[i] = parts[i].up;
    requires_gradient = requires_gradient || weights[i].requires_gradient() || down[i].requires_gradient() ||
                        up[i].requires_gradient();
  }
  const detail::EquallySpaced weight_steps(weights), down_steps(down), up_steps(up);
  if (!weight_steps.found || !down_steps.found || !up_steps.found)
    throw ValueError("[projections] the weights are not equally spaced in memory; project one by one");
  detail::expect_linear(x, weights[0], Var<T, 1, Device>(), Var<T, 2, Device>());
  const bool adapted = down[0].present();
  const index_t rows = x.extent(0), in = x.extent(1), out = weights[0].extent(0), width = count * out;
  const index_t rank = adapted ? down[0].extent(0) : 0, inner_width = count * rank;
  const index_t x_row = x.view().strides[0];
  if (adapted && (down[0].extent(1) != in || up[0].extents() != Extents<2>{out, rank}))
    throw ShapeError(message("[projections] adapters ", to_string(down[0].extents()), " and ",
                             to_string(up[0].extents()), " do not fit weights ", to_string(weights[0].extents())));
  const auto factor = static_cast<float>(parts[0].scale);
  const index_t weight_step = weight_steps.step, down_step = down_steps.step, up_step = up_steps.step;
  auto& tape = x.tape();
  auto& context = tape.context();
  const auto mark = tape.mark();
  const auto y = make_output<T>(tape, Extents<2>{rows, width}, requires_gradient);
  y.slot()->parts = static_cast<unsigned>(N);
  y.slot()->part_bytes = static_cast<std::size_t>(out) * sizeof(T);

  // One product where the weights follow each other, else a batch of N.
  kernel::GemmParams<T> main{};
  main.m = rows, main.n = out, main.k = in;
  main.a = x.data(), main.lda = x_row;
  main.b = weights[0].data(), main.ldb = in, main.transpose_b = true;
  main.c = y.data(), main.ldc = width;
  if (weight_step == out * in) {
    main.n = width;
  } else {
    main.batch = count, main.batch_stride_b = weight_step, main.batch_stride_c = out;
  }
  kernel::Gemm<Device>::run(context, main);

  // The inner values x A_i^T, [rows, N rank].
  T* const inner = adapted ? tape.template allocate<T>(rows * inner_width) : nullptr;
  const auto gather_down = [=](Context<Device>& c, Scratch<Device>& scratch) {  // A_0, A_1, ... as [N rank, in]
    T* const joint = scratch.template allocate<T>(inner_width * in);
    kernel::CopyRows<Device>::run(c, count, rank * in, static_cast<const T*>(down[0].data()), down_step, joint,
                                  rank * in, false);
    return static_cast<const T*>(joint);
  };
  if (adapted) {
    Scratch<Device> scratch(context);
    kernel::GemmParams<T> p{};
    p.m = rows, p.n = inner_width, p.k = in;
    p.a = x.data(), p.lda = x_row;
    p.b = gather_down(context, scratch), p.ldb = in, p.transpose_b = true;
    p.c = inner, p.ldc = inner_width;
    kernel::Gemm<Device>::run(context, p);
    kernel::GemmParams<T> add{};
    add.m = rows, add.n = out, add.k = rank;
    add.a = inner, add.lda = inner_width;
    add.b = up[0].data(), add.ldb = rank, add.transpose_b = true;
    add.c = y.data(), add.ldc = width;
    add.alpha = factor, add.beta = 1;
    add.batch = count, add.batch_stride_a = rank, add.batch_stride_b = up_step, add.batch_stride_c = out;
    kernel::Gemm<Device>::run(context, add);
  }
  const auto joined = y.reshape(Extents<3>{input.extent(0), input.extent(1), width});
  std::array<Var<T, 3, Device>, N> results;
  for (std::size_t i = 0; i < N; ++i) {
    const auto begin = static_cast<index_t>(i) * out;
    results[i] = joined.slice(2, begin, begin + out);
  }
  if (!y.requires_gradient()) return results;

  tape.push(mark, y.slot(), [=](Tape<Device>& t) {
    auto& c = t.context();
    for (unsigned part = 0; part < N; ++part)
      if ((y.slot()->written_parts >> part & 1u) == 0) detail::clear_part(t, y.slot(), part);
    const T* dy = output_gradient(y);
    if (const auto dx = gradient_target(x)) {  // dy [rows, N out] W, as one product or as N that add up
      kernel::GemmParams<T> p{};
      p.m = rows, p.n = in, p.lda = width;
      p.ldb = in, p.c = dx.data, p.ldc = x_row;
      p.beta = dx.accumulate ? 1.0f : 0.0f;
      const index_t products = weight_step == out * in ? 1 : count;
      p.k = width / products;
      for (index_t i = 0; i < products; ++i) {
        p.a = dy + i * out, p.b = weights[0].data() + i * weight_step;
        kernel::Gemm<Device>::run(c, p);
        p.beta = 1;
      }
    }
    if (const auto dw = detail::joint_target(weights)) {
      kernel::GemmParams<T> p{};
      p.m = out, p.n = in, p.k = rows;
      p.a = dy, p.lda = width, p.transpose_a = true;
      p.b = x.data(), p.ldb = x_row;
      p.c = dw.data, p.ldc = in, p.beta = dw.accumulate ? 1.0f : 0.0f;
      p.batch = count, p.batch_stride_a = out, p.batch_stride_c = weight_step;
      kernel::Gemm<Device>::run(c, p);
    }
    if (!adapted) return;
    if (const auto db = detail::joint_target(up)) {  // s dy_i^T (x A_i^T)
      kernel::GemmParams<T> p{};
      p.m = out, p.n = rank, p.k = rows;
      p.a = dy, p.lda = width, p.transpose_a = true;
      p.b = inner, p.ldb = inner_width;
      p.c = db.data, p.ldc = rank;
      p.alpha = factor, p.beta = db.accumulate ? 1.0f : 0.0f;
      p.batch = count, p.batch_stride_a = out, p.batch_stride_b = rank, p.batch_stride_c = up_step;
      kernel::Gemm<Device>::run(c, p);
    }
    if (!down[0].requires_gradient() && !x.requires_gradient()) return;
    Scratch<Device> scratch(c);
    T* const gradient = scratch.template allocate<T>(rows * inner_width);  // of the inner values: s dy_i B_i
    kernel::GemmParams<T> p{};
    p.m = rows, p.n = rank, p.k = out;
    p.a = dy, p.lda = width;
    p.b = up[0].data(), p.ldb = rank;
    p.c = gradient, p.ldc = inner_width;
    p.alpha = factor;
    p.batch = count, p.batch_stride_a = out, p.batch_stride_b = up_step, p.batch_stride_c = rank;
    kernel::Gemm<Device>::run(c, p);
    if (const auto dx = gradient_target(x)) {
      kernel::GemmParams<T> add{};
      add.m = rows, add.n = in, add.k = inner_width;
      add.a = gradient, add.lda = inner_width;
      add.b = gather_down(c, scratch), add.ldb = in;
      add.c = dx.data, add.ldc = x_row, add.beta = 1;
      kernel::Gemm<Device>::run(c, add);
    }
    if (const auto da = detail::joint_target(down)) {
      T* const joint = scratch.template allocate<T>(inner_width * in);
      kernel::GemmParams<T> sum{};
      sum.m = inner_width, sum.n = in, sum.k = rows;
      sum.a = gradient, sum.lda = inner_width, sum.transpose_a = true;
      sum.b = x.data(), sum.ldb = x_row;
      sum.c = joint, sum.ldc = in;
      kernel::Gemm<Device>::run(c, sum);
      kernel::CopyRows<Device>::run(c, count, rank * in, static_cast<const T*>(joint), rank * in, da.data, down_step,
                                    da.accumulate);
    }
  });
  return results;
}

}  // namespace lpo::inline LPO_ABI
