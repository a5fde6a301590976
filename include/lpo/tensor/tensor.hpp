// SPDX-License-Identifier: MIT
// Tensor: owns memory on a device, move-only; assigning an expression to it evaluates the expression in one pass.
#pragma once

#include <span>
#include <vector>

#include <lpo/tensor/evaluate.hpp>
#include <lpo/tensor/operators.hpp>

namespace lpo::inline LPO_ABI {

/// Dense, row-major, uninitialised unless filled. Elements are reached one by one on host devices only.
template <class T, int Rank, class Device = Cpu>
class Tensor {
  static_assert(Scalar<T>, "lpo Tensor: element type must be float, double, bfloat16 or half");

 public:
  using lpo_operand = void;
  using value_type = T;
  using device = Device;
  static constexpr int rank = Rank;

  Tensor() = default;

  /// Uninitialised memory. `Tensor<float, 2> x(Extents<2>{3, 4});`
  explicit Tensor(const Extents<Rank>& extents)
      : block_(checked_bytes(extents)), view_(reinterpret_cast<T*>(block_.data()), extents) {}

  /// Evaluates an expression on the calling thread; use `evaluate(&context, tensor.view(), …)` for many threads.
  template <Operand X>
    requires(!std::is_same_v<std::remove_cvref_t<X>, Tensor>)
  Tensor(X&& source) : Tensor(evaluated(to_expression(std::forward<X>(source)))) {}

  Tensor(Tensor&& other) noexcept : block_(std::move(other.block_)), view_(std::exchange(other.view_, {})) {}
  Tensor& operator=(Tensor&& other) noexcept {
    std::swap(block_, other.block_);
    std::swap(view_, other.view_);
    return *this;
  }

  template <Operand X>
    requires(!std::is_same_v<std::remove_cvref_t<X>, Tensor>)
  Tensor& operator=(X&& source) {
    auto expression = to_expression(std::forward<X>(source));
    if constexpr (decltype(expression)::rank == Rank) {
      if (view_.data != nullptr && expression.extents == view_.extents && !shifted_alias(expression)) {
        evaluate<T, Rank, Device>(nullptr, view_, std::move(expression));
        return *this;
      }
    }
    return *this = evaluated(std::move(expression));
  }

  /// A tensor with every element set to `value`.
  static Tensor full(const Extents<Rank>& extents, double value) {
    Tensor tensor(extents);
    const auto element = static_cast<T>(static_cast<compute_t<T>>(value));
    if constexpr (is_host_device<Device>) {
      for (T& each : tensor.span()) each = element;
    } else {
      const std::vector<T> host(static_cast<std::size_t>(tensor.size()), element);
      DeviceMemory<Device>::copy_from_host(tensor.data(), host.data(), host.size() * sizeof(T));
    }
    return tensor;
  }
  static Tensor zeros(const Extents<Rank>& extents) {
    Tensor tensor;
    tensor.block_ = DeviceMemory<Device>::Block::zeros(checked_bytes(extents));
    tensor.view_ = View<T, Rank, Device>(reinterpret_cast<T*>(tensor.block_.data()), extents);
    return tensor;
  }

  /// Copies row-major values; their number must be the product of the extents.
  template <class U>
  static Tensor from(const Extents<Rank>& extents, std::span<const U> values) {
    Tensor tensor(extents);
    if (static_cast<index_t>(values.size()) != tensor.size())
      throw ShapeError(message("[Tensor::from] extents ", to_string(extents), " hold ", tensor.size(), " elements, given ",
                               static_cast<index_t>(values.size())));
    std::vector<T> staged;
    T* host = tensor.data();
    if constexpr (!is_host_device<Device>) {
      staged.resize(values.size());
      host = staged.data();
    }
    for (std::size_t i = 0; i < values.size(); ++i) host[i] = static_cast<T>(static_cast<compute_t<T>>(values[i]));
    if constexpr (!is_host_device<Device>)
      DeviceMemory<Device>::copy_from_host(tensor.data(), host, values.size() * sizeof(T));
    return tensor;
  }
  template <class U>
  static Tensor from(const Extents<Rank>& extents, const std::vector<U>& values) {
    return from(extents, std::span<const U>(values));
  }

  /// Views and spans do not own; those of a temporary would dangle at the end of the statement.
  View<T, Rank, Device> view() & { return view_; }
  View<const T, Rank, Device> view() const& { return view_; }
  void view() && = delete;
  operator View<T, Rank, Device>() { return view_; }
  operator View<const T, Rank, Device>() const { return view_; }

  T* data() { return view_.data; }
  const T* data() const { return view_.data; }
  const Extents<Rank>& extents() const { return view_.extents; }
  index_t extent(int axis) const { return view_.extents[axis]; }
  index_t size() const { return view_.data == nullptr ? 0 : view_.size(); }
  std::span<T> span() &
    requires is_host_device<Device>
  {
    return {view_.data, static_cast<std::size_t>(size())};
  }
  std::span<const T> span() const&
    requires is_host_device<Device>
  {
    return {view_.data, static_cast<std::size_t>(size())};
  }
  void span() && = delete;

  template <class... Index>
    requires is_host_device<Device>
  T& operator()(Index... index) {
    return view_(index...);
  }
  template <class... Index>
    requires is_host_device<Device>
  const T& operator()(Index... index) const {
    return view_(index...);
  }

  /// A copy of any view with the same element type.
  static Tensor copy_of(const View<const T, Rank, Device>& source) {
    Tensor tensor(source.extents);
    evaluate<T, Rank, Device>(nullptr, tensor.view_, source);
    return tensor;
  }
  Tensor clone() const { return copy_of(view_); }

 private:
  static std::size_t checked_bytes(const Extents<Rank>& extents) {
    index_t bytes = sizeof(T);
    for (index_t size : extents) {
      if (size < 0) throw ShapeError(message("[Tensor] negative size in ", to_string(extents)));
      if (__builtin_mul_overflow(bytes, size, &bytes))
        throw ShapeError(message("[Tensor] ", to_string(extents), " is too large"));
    }
    return static_cast<std::size_t>(bytes);
  }

  /// True when the expression reads this tensor's memory at other positions than it writes (`x = x.view().permute(…)`).
  template <class E>
  bool shifted_alias(const E& expression) const {
    const auto* begin = reinterpret_cast<const std::byte*>(view_.data);
    const auto* end = begin + size() * static_cast<index_t>(sizeof(T));
    for (const auto& leaf : expression.leaves) {
      const auto* data = static_cast<const std::byte*>(leaf.data);
      if (data < begin || data >= end) continue;
      bool same = data == begin && leaf.rank == Rank;
      for (int axis = 0; same && axis < Rank; ++axis)
        same = leaf.extents[axis] == view_.extents[axis] &&
               (leaf.extents[axis] == 1 || leaf.strides[axis] == view_.strides[axis]);
      if (!same) return true;
    }
    return false;
  }

  template <class E>
  static Tensor evaluated(E expression) {
    static_assert(E::rank == Rank, "lpo Tensor: the expression has another rank; reshape its result");
    if constexpr (E::rank == Rank) {
      Tensor tensor(expression.extents);
      evaluate<T, Rank, Device>(nullptr, tensor.view_, std::move(expression));
      return tensor;
    } else {
      return {};
    }
  }

  typename DeviceMemory<Device>::Block block_;
  View<T, Rank, Device> view_;
};

template <class T, int Rank, class Device>
auto to_expression(const Tensor<T, Rank, Device>& tensor) {
  return to_expression(tensor.view());
}

/// Rvalue tensors are owned by the expression.
template <class T, int Rank, class Device>
auto to_expression(Tensor<T, Rank, Device>&& tensor) {
  auto owner = std::make_shared<Tensor<T, Rank, Device>>(std::move(tensor));
  auto expression = to_expression(owner->view());
  expression.leaves[0].owner = owner;
  return expression;
}

/// A copy on another device; complete when it returns. `auto y = to_device<Cuda>(x);`
template <class To, class T, int Rank, class From>
Tensor<T, Rank, To> to_device(const Tensor<T, Rank, From>& tensor) {
  Tensor<T, Rank, To> copy(tensor.extents());
  const auto bytes = static_cast<std::size_t>(tensor.size()) * sizeof(T);
  if constexpr (is_host_device<To>)
    DeviceMemory<From>::copy_to_host(copy.data(), tensor.data(), bytes);
  else
    DeviceMemory<To>::copy_from_host(copy.data(), tensor.data(), bytes);  // from a host, or within the device
  return copy;
}

template <Operand X>
Tensor(X&&) -> Tensor<typename expression_of<X>::value_type, expression_of<X>::rank, typename expression_of<X>::device>;

}  // namespace lpo::inline LPO_ABI
