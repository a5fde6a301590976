// SPDX-License-Identifier: MIT
// Expression trees as types: the operations of one statement, with their static derivative. No data, only structure.
#pragma once

#include <lpo/tensor/math.hpp>

LPO_HOST_DEVICE_TEMPLATES_BEGIN
namespace lpo::inline LPO_ABI {

/// A tree evaluates one element (or pack) at a time. `In` supplies leaf values, `Out` receives leaf gradients; both name a
/// leaf by its position I, its storage type and whether it is splat over the innermost axis. `State<V>` holds the
/// intermediate values that the derivative needs; it lives in registers only.
namespace tree {

template <class T, bool Splat>
struct Argument {
  static constexpr int leaves = 1;
  static constexpr int operations = 0;
  static constexpr bool splat = Splat;
  template <class V>
  struct State {};

  template <int I, class V, class In>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE V forward(const In& in, State<V>&) const {
    return in.template load<I, T, Splat, V>();
  }
  template <int I, class V, class Out>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE void backward(const State<V>&, V gradient, Out& out) const {
    out.template add<I, T, Splat, V>(gradient);
  }
};

/// A run-time number; it has no gradient.
struct Constant {
  static constexpr int leaves = 0;
  static constexpr int operations = 0;
  static constexpr bool splat = true;
  template <class V>
  struct State {};

  double value;

  template <int I, class V, class In>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE V forward(const In&, State<V>&) const {
    return detail::broadcast_lanes<V>(static_cast<typename detail::LaneTraits<V>::scalar>(value));
  }
  template <int I, class V, class Out>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE void backward(const State<V>&, V, Out&) const {}
};

template <class Op, class A>
struct Unary {
  static constexpr int leaves = A::leaves;
  static constexpr int operations = A::operations + 1;
  static constexpr bool splat = A::splat;
  template <class V>
  struct State {
    typename A::template State<V> a;
    V x, y;
  };

  A a;

  template <int I, class V, class In>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE V forward(const In& in, State<V>& state) const {
    state.x = a.template forward<I, V>(in, state.a);
    state.y = Op::value(state.x);
    return state.y;
  }
  template <int I, class V, class Out>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE void backward(const State<V>& state, V gradient, Out& out) const {
    a.template backward<I, V>(state.a, gradient * Op::derivative(state.x, state.y), out);
  }
};

template <class Op, class A, class B>
struct Binary {
  static constexpr int leaves = A::leaves + B::leaves;
  static constexpr int operations = A::operations + B::operations + 1;
  static constexpr bool splat = A::splat && B::splat;
  template <class V>
  struct State {
    typename A::template State<V> a;
    typename B::template State<V> b;
    V x, z, y;
  };

  A a;
  B b;

  template <int I, class V, class In>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE V forward(const In& in, State<V>& state) const {
    state.x = a.template forward<I, V>(in, state.a);
    state.z = b.template forward<I + A::leaves, V>(in, state.b);
    state.y = Op::value(state.x, state.z);
    return state.y;
  }
  template <int I, class V, class Out>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE void backward(const State<V>& state, V gradient, Out& out) const {
    a.template backward<I, V>(state.a, gradient * Op::derivative_first(state.x, state.z, state.y), out);
    b.template backward<I + A::leaves, V>(state.b, gradient * Op::derivative_second(state.x, state.z, state.y), out);
  }
};

}  // namespace tree

/// The operations: a value and its derivative, written once for scalars and packs. A new operation is one more struct here
/// and one function in tensor/operators.hpp.
namespace op {

template <class V>
LPO_HOST_DEVICE LPO_ALWAYS_INLINE V one() {
  return detail::broadcast_lanes<V>(1);
}

struct Add {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x, V z) { return x + z; }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative_first(V, V, V) { return one<V>(); }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative_second(V, V, V) { return one<V>(); }
};

struct Subtract {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x, V z) { return x - z; }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative_first(V, V, V) { return one<V>(); }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative_second(V, V, V) { return -one<V>(); }
};

struct Multiply {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x, V z) { return x * z; }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative_first(V, V z, V) { return z; }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative_second(V x, V, V) { return x; }
};

struct Divide {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x, V z) { return x / z; }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative_first(V, V z, V) { return one<V>() / z; }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative_second(V, V z, V y) { return -y / z; }
};

/// At equal arguments the first one takes the gradient.
struct Maximum {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x, V z) { return detail::select(x >= z, x, z); }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative_first(V x, V z, V) { return detail::select(x >= z, one<V>(), V{}); }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative_second(V x, V z, V) { return detail::select(x >= z, V{}, one<V>()); }
};

struct Minimum {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x, V z) { return detail::select(x <= z, x, z); }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative_first(V x, V z, V) { return detail::select(x <= z, one<V>(), V{}); }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative_second(V x, V z, V) { return detail::select(x <= z, V{}, one<V>()); }
};

struct Negate {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x) { return -x; }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative(V, V) { return -one<V>(); }
};

struct Exp {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x) { return detail::exp(x); }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative(V, V y) { return y; }
};

struct Log {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x) { return detail::log(x); }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative(V x, V) { return one<V>() / x; }
};

struct Sqrt {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x) { return detail::square_root(x); }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative(V, V y) { return one<V>() / (y + y); }
};

struct Square {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x) { return x * x; }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative(V x, V) { return x + x; }
};

/// The derivative at 0 is 1.
struct Abs {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x) { return detail::absolute(x); }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative(V x, V) { return detail::select(x < V{}, -one<V>(), one<V>()); }
};

struct Relu {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x) { return detail::select(x > V{}, x, V{}); }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative(V x, V) { return detail::select(x > V{}, one<V>(), V{}); }
};

struct Sigmoid {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x) { return detail::sigmoid(x); }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative(V, V y) { return y * (one<V>() - y); }
};

/// x * sigmoid(x)
struct Silu {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x) { return x * detail::sigmoid(x); }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative(V x, V) {
    const V s = detail::sigmoid(x);
    return s * (one<V>() + x * (one<V>() - s));
  }
};

struct Tanh {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x) { return detail::tanh(x); }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative(V, V y) { return one<V>() - y * y; }
};

/// x * Phi(x), the exact form with erf.
struct Gelu {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x) {
    using Number = typename detail::LaneTraits<V>::scalar;
    return x * (Number(0.5) + Number(0.5) * detail::erf(x * Number(0.70710678118654752440)));
  }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative(V x, V) {
    using Number = typename detail::LaneTraits<V>::scalar;
    const V phi = Number(0.5) + Number(0.5) * detail::erf(x * Number(0.70710678118654752440));
    return phi + x * Number(0.39894228040143267794) * detail::exp(x * x * Number(-0.5));
  }
};

/// x * sigmoid(1.702 x), CLIP's activation.
struct QuickGelu {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x) {
    return x * detail::sigmoid(x * typename detail::LaneTraits<V>::scalar(1.702));
  }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative(V x, V) {
    using Number = typename detail::LaneTraits<V>::scalar;
    const V s = detail::sigmoid(x * Number(1.702));
    return s * (one<V>() + x * Number(1.702) * (one<V>() - s));
  }
};

/// ln(1 + e^x)
struct Softplus {
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V value(V x) { return detail::softplus(x); }
  template <class V>
  LPO_HOST_DEVICE LPO_ALWAYS_INLINE static V derivative(V x, V) { return detail::sigmoid(x); }
};

}  // namespace op

}  // namespace lpo::inline LPO_ABI
LPO_HOST_DEVICE_TEMPLATES_END
