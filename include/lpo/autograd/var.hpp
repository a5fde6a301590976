// SPDX-License-Identifier: MIT
// Var: a value on a tape. Arithmetic on Vars is fused per statement, and each statement is one node with one fused backward.
#pragma once

#include <lpo/autograd/tape.hpp>

namespace lpo::inline LPO_ABI {

template <class T, int Rank, class Device, int Channels = dynamic>
class Var;

namespace detail {
template <class X>
inline constexpr bool is_var = false;
template <class T, int Rank, class Device, int Channels>
inline constexpr bool is_var<Var<T, Rank, Device, Channels>> = true;

template <class T, int Rank, class Device, class E>
Var<T, Rank, Device, dynamic> record_statement(E e, int width);

[[noreturn]] LPO_COLD inline void unusable_var(bool present) {
  if (!present) throw ValueError("[Var] an absent Var was used; test present() first");
  throw ValueError("[Var] this value was made before its tape's clear() and is gone; make variables, constants and results anew "
                   "in every pass");
}
}  // namespace detail

/// Handle to a value computed under a tape; trivially copyable, copies share the value and its gradient. `Channels` is the
/// innermost extent when it is known at compile time. A default-constructed Var is absent (no bias, for example).
template <class T, int Rank, class Device, int Channels>
class Var {
 public:
  using lpo_operand = void;
  using value_type = T;
  using device = Device;
  static constexpr int rank = Rank;
  static constexpr int channels = Channels;

  Var() = default;
  Var(Tape<Device>* tape, Slot* slot, const View<T, Rank, Device>& view)
      : tape_(tape), slot_(slot), view_(view), pass_(tape->pass()) {}

  /// Evaluates the statement and records it.
  template <Operand X>
    requires(expression_of<X>::tracked && !detail::is_var<std::remove_cvref_t<X>>)
  Var(X&& source) : Var(record(to_expression(std::forward<X>(source)))) {}

  /// The same value under another static width: forgotten, or stated and checked as `with_channels` does.
  template <int Other>
    requires(Other != Channels)
  Var(const Var<T, Rank, Device, Other>& other) : Var(other.template with_channels<Channels>()) {}

  bool present() const { return slot_ != nullptr; }
  /// ValueError for an absent Var, and for one from before the tape's last `clear()`.
  Tape<Device>& tape() const {
    if (tape_ == nullptr || tape_->pass() != pass_) detail::unusable_var(tape_ != nullptr);
    return *tape_;
  }
  Slot* slot() const { return slot_; }
  const View<T, Rank, Device>& view() const { return view_; }
  const Extents<Rank>& extents() const { return view_.extents; }
  index_t extent(int axis) const { return view_.extents[axis]; }
  index_t size() const { return view_.size(); }
  T* data() const { return view_.data; }
  bool requires_gradient() const { return slot_ != nullptr && slot_->requires_gradient; }

  /// The same memory under other extents; gradients flow through.
  template <int NewRank>
  Var<T, NewRank, Device, dynamic> reshape(const Extents<NewRank>& extents) const {
    return {&tape(), slot_, view_.reshape(extents)};
  }
  /// Elements [begin, end) of one axis, without a copy; gradients flow through.
  Var<T, Rank, Device, dynamic> slice(int axis, index_t begin, index_t end) const {
    return {&tape(), slot_, view_.slice(axis, begin, end)};
  }
  /// States the innermost width, or forgets it (`dynamic`); throws when the extents disagree.
  template <int NewChannels>
  Var<T, Rank, Device, NewChannels> with_channels() const {
    static_assert(Channels == dynamic || NewChannels == dynamic || Channels == NewChannels,
                  "lpo Var: static channel widths differ; check the layer's input width");
    if (NewChannels != dynamic && present() && view_.extents[Rank - 1] != NewChannels)
      throw ShapeError(message("[with_channels] innermost axis of ", to_string(view_.extents), " must have size ", NewChannels));
    if (!present()) return {};
    return {&tape(), slot_, view_};
  }

 private:
  template <class E>
  static Var record(E e) {
    constexpr bool same_device = std::is_same_v<typename E::device, Device>;
    constexpr bool same_rank = E::rank == Rank;
    constexpr bool widths_fit = E::channels == Channels || Channels == dynamic || E::channels == dynamic;
    static_assert(same_device, "lpo Var: the expression is on another device; copy it first");
    static_assert(same_rank, "lpo Var: the expression has another rank; reshape its result");
    static_assert(widths_fit, "lpo Var: the expression has another static channel width; project it first");
    if constexpr (same_device && same_rank && widths_fit) {
      const auto out = detail::record_statement<T, Rank, Device>(detail::forget_channels(std::move(e)), Channels);
      return {&out.tape(), out.slot(), out.view()};
    } else {
      return {};
    }
  }

  Tape<Device>* tape_ = nullptr;
  Slot* slot_ = nullptr;
  View<T, Rank, Device> view_;
  std::uint32_t pass_ = 0;  ///< the tape's when the value was made
};

template <class T, int Rank, class Device, int Channels>
auto to_expression(const Var<T, Rank, Device, Channels>& var) {
  if (!var.present()) throw ValueError("[expression] an absent Var was used in arithmetic; test present() first");
  Expression<tree::Argument<T, false>, T, Rank, Device, Channels, true> e{
      {}, {detail::make_leaf(var.view())}, var.extents(), &var.tape()};
  e.leaves[0].slot = var.slot();
  return e;
}

template <Operand X>
Var(X&&) -> Var<typename expression_of<X>::value_type, expression_of<X>::rank, typename expression_of<X>::device,
                expression_of<X>::channels>;

namespace detail {

/// ValueError unless all operands that are present are Vars of one tape: backward walks one, and would leave the others out.
template <class First, class... Others>
void expect_one_tape(const char* operation, const First& first, const Others&... others) {
  void* tape = &first.tape();
  ((tape = others.present() ? common_tape(operation, tape, &others.tape()) : tape), ...);
}

}  // namespace detail

/// Where an operation writes the gradient of one input: null when the input needs none.
template <class T>
struct GradientTarget {
  T* data = nullptr;
  bool accumulate = false;
  explicit operator bool() const { return data != nullptr; }
};

namespace detail {

/// Zeros in the gradient of one part of a slot, row by row: only for parts that nothing, or a slice alone, was made of.
template <class Device>
void clear_part(Tape<Device>& tape, Slot* slot, unsigned part) {
  const std::size_t row = slot->parts * slot->part_bytes;
  for (std::size_t at = part * slot->part_bytes; at < slot->bytes; at += row)
    tape.context().fill_zero(tape.gradient(slot) + at, slot->part_bytes);
  slot->written_parts |= 1u << part;
}

/// First writer stores, later writers add: returns the buffer and which of the two applies, and marks it written. What is
/// neither a whole slot nor one of its parts is cleared first, then added to.
template <class T, class Device>
GradientTarget<T> gradient_target(Tape<Device>& tape, Slot* slot, const void* data, index_t elements, bool dense) {
  if (slot == nullptr || !slot->requires_gradient) return {};
  std::byte* base = tape.gradient(slot);
  const auto offset = static_cast<std::size_t>(static_cast<const std::byte*>(data) - slot->data),
             bytes = static_cast<std::size_t>(elements) * sizeof(T);
  bool accumulate = true;
  if (slot->parts > 1) {
    const auto part = static_cast<unsigned>(offset % (slot->parts * slot->part_bytes) / slot->part_bytes);
    if ((slot->written_parts >> part & 1u) == 0) {
      if (bytes == slot->bytes / slot->parts)
        accumulate = false, slot->written_parts |= 1u << part;
      else
        clear_part(tape, slot, part);
    }
    slot->written = true;
  } else if (!slot->written) {
    if (dense && bytes == slot->bytes)
      accumulate = false;
    else
      tape.context().fill_zero(base, slot->bytes);
    slot->written = true;
  }
  return {reinterpret_cast<T*>(base + offset), accumulate};
}

}  // namespace detail

template <class T, int Rank, class Device, int Channels>
GradientTarget<T> gradient_target(const Var<T, Rank, Device, Channels>& var) {
  if (!var.present()) return {};
  return detail::gradient_target<T>(var.tape(), var.slot(), var.data(), var.size(), var.view().dense());
}

/// The gradient of an operation's output, as backward sees it (dense, same extents).
template <class T, int Rank, class Device, int Channels>
const T* output_gradient(const Var<T, Rank, Device, Channels>& out) {
  return reinterpret_cast<const T*>(out.slot()->gradient);
}

/// A new value of an operation, uninitialised.
template <class T, int Channels = dynamic, int Rank, class Device>
Var<T, Rank, Device, Channels> make_output(Tape<Device>& tape, const Extents<Rank>& extents, bool requires_gradient) {
  Slot* slot = tape.make_slot(static_cast<std::size_t>(extents.size()) * sizeof(T), requires_gradient);
  return {&tape, slot, View<T, Rank, Device>(reinterpret_cast<T*>(slot->data), extents)};
}

/// A constant on the tape that refers to memory the caller keeps alive until backward is over.
template <class T, int Rank, class Device>
Var<std::remove_const_t<T>, Rank, Device> constant(Tape<Device>& tape, const View<T, Rank, Device>& view) {
  using Value = std::remove_const_t<T>;
  Slot* slot = tape.make_external_slot(view.data, static_cast<std::size_t>(view.size()) * sizeof(T), false);
  return {&tape, slot, View<Value, Rank, Device>(const_cast<Value*>(view.data), view.extents, view.strides)};
}
template <class T, int Rank, class Device>
Var<T, Rank, Device> constant(Tape<Device>& tape, const Tensor<T, Rank, Device>& tensor) {
  return constant(tape, tensor.view());
}
/// Of a temporary: its values are copied to the tape.
template <class T, int Rank, class Device>
Var<T, Rank, Device> constant(Tape<Device>& tape, Tensor<T, Rank, Device>&& tensor) {
  const auto copy = make_output<T>(tape, tensor.extents(), false);
  tape.context().copy(copy.data(), tensor.data(), static_cast<std::size_t>(tensor.size()) * sizeof(T));
  return copy;
}

/// An input whose gradient is wanted; read it with `read_gradient` after backward and before `clear()`.
template <class T, int Rank, class Device>
Var<T, Rank, Device> variable(Tape<Device>& tape, Tensor<T, Rank, Device>& tensor) {
  Slot* slot = tape.make_external_slot(tensor.data(), static_cast<std::size_t>(tensor.size()) * sizeof(T), true);
  return {&tape, slot, tensor.view()};
}

/// The accumulated gradient of a dense Var, copied out; zeros when nothing reached it. Only variables and parameters keep
/// theirs until `clear()`; those of intermediate values are given back while backward runs.
template <class T, int Rank, class Device, int Channels>
Tensor<T, Rank, Device> read_gradient(const Var<T, Rank, Device, Channels>& var) {
  if (!var.requires_gradient())
    throw ValueError("[read_gradient] this value keeps no gradient; make it with variable() before the forward");
  if (!var.view().dense()) throw ShapeError("[read_gradient] the value is strided; read the gradient of the whole");
  auto tensor = Tensor<T, Rank, Device>::zeros(var.extents());
  if (var.slot()->written && var.slot()->gradient != nullptr) {
    const auto* base = var.slot()->gradient + (reinterpret_cast<const std::byte*>(var.data()) - var.slot()->data);
    var.tape().context().copy(tensor.data(), base, static_cast<std::size_t>(var.size()) * sizeof(T));
  }
  return tensor;
}

namespace detail {

/// Adds `cotangent` to the gradient of `out`, as its consumers' backward would.
template <class T, int Rank, class Device, int Channels>
void add_gradient(const Var<T, Rank, Device, Channels>& out, const View<const T, Rank, Device>& cotangent) {
  const auto target = gradient_target(out);
  const View<T, Rank, Device> into(target.data, out.extents(), out.view().strides);
  if (target.accumulate)
    evaluate(&out.tape().context(), into, into + cotangent);
  else
    evaluate(&out.tape().context(), into, cotangent);
}

}  // namespace detail

/// Propagates `cotangent` (the extents of `out`) from `out` to every value that requires a gradient.
template <class T, int Rank, class Device, int Channels>
void backward(const Var<T, Rank, Device, Channels>& out, const std::type_identity_t<View<const T, Rank, Device>>& cotangent) {
  detail::expect_same("backward", "output", out.extents(), "cotangent", cotangent.extents);
  if (!out.requires_gradient())
    throw ValueError("[backward] the output depends on no value that requires a gradient, or backward has run through it "
                     "already; check the trainable parameters and that the tape was recording");
  detail::add_gradient(out, cotangent);
  out.tape().run_back_to(nullptr);
}

/// Propagates 1 from a scalar loss [1].
template <class T, class Device, int Channels>
void backward(const Var<T, 1, Device, Channels>& loss) {
  if (loss.size() != 1) throw ShapeError(message("[backward] the loss must hold one element, has ", to_string(loss.extents())));
  const T one = static_cast<T>(compute_t<T>(1));
  const View<T, 1, Device> cotangent(loss.tape().template allocate<T>(1), Extents<1>{1});
  loss.tape().context().copy_from_host(cotangent.data, &one, sizeof(one));
  backward(loss, View<const T, 1, Device>(cotangent));
}

/// Value of a one-element Var.
template <class T, class Device, int Channels>
double item(const Var<T, 1, Device, Channels>& var) {
  if (var.size() != 1) throw ShapeError(message("[item] needs one element, has ", to_string(var.extents())));
  T value;
  var.tape().context().copy_to_host(&value, var.data(), sizeof(T));
  return static_cast<double>(static_cast<compute_t<T>>(value));
}

namespace detail {

/// What a statement's node keeps of a leaf.
struct SavedLeaf {
  const void* data;
  Slot* slot;
  index_t extents[max_rank], strides[max_rank];
  int rank;
  bool dense;
  index_t size;
};

inline SavedLeaf save_leaf(const Leaf& leaf) {
  SavedLeaf saved{leaf.data, static_cast<Slot*>(leaf.slot), {}, {}, leaf.rank, true, 1};
  index_t step = 1;
  for (int axis = leaf.rank - 1; axis >= 0; --axis) {
    saved.extents[axis] = leaf.extents[axis];
    saved.strides[axis] = leaf.strides[axis];
    if (leaf.extents[axis] != 1 && leaf.strides[axis] != step) saved.dense = false;
    step *= leaf.extents[axis];
  }
  saved.size = step;
  return saved;
}

/// Pushes the node of a statement whose value is in `out` already; `mark` is where the arena stood before `out`.
template <class T, int Rank, class Device, class E>
void push_statement(E e, const Var<T, Rank, Device>& out, Arena::Mark mark) {
  using Tree = typename E::tree_type;
  constexpr int leaves = Tree::leaves;
  auto& tape = out.tape();
  struct Saved {
    Tree tree;
    SavedLeaf leaf[leaves];
  } saved{e.tree, {}};
  detail::for_each_leaf<Tree>([&]<class L, bool Splat>(int i) {
    if (e.leaves[i].owner != nullptr) {  // a temporary tensor: keep its values as long as the node
      const auto plain = detail::save_leaf(e.leaves[i]);
      auto* copy = tape.template allocate<L>(plain.size);
      tape.context().copy(copy, plain.data, static_cast<std::size_t>(plain.size) * sizeof(L));
      e.leaves[i].data = copy;
    }
    saved.leaf[i] = detail::save_leaf(e.leaves[i]);
  });
  tape.push(mark, out.slot(), [saved, out](Tape<Device>& t) {
    constexpr int leaf_count = Tree::leaves;
    const void* data[leaf_count];
    void* gradients[leaf_count] = {};
    bool accumulate[leaf_count] = {}, splat[leaf_count] = {};
    detail::Leaf layout[leaf_count];
    detail::for_each_leaf<Tree>([&]<class L, bool Splat>(int i) {
      const auto& leaf = saved.leaf[i];
      data[i] = leaf.data;
      splat[i] = Splat;
      layout[i].rank = leaf.rank;
      for (int axis = 0; axis < leaf.rank; ++axis) {
        layout[i].extents[axis] = leaf.extents[axis];
        layout[i].strides[axis] = leaf.strides[axis];
      }
      const auto target = detail::gradient_target<L>(t, leaf.slot, leaf.data, leaf.size, leaf.dense);
      gradients[i] = target.data;
      accumulate[i] = target.accumulate;
    });
    const auto space = detail::make_iteration_space(Rank, out.view().extents.values, out.view().strides.values, layout, splat,
                                                    leaf_count);
    Evaluator<Device>::backward(&t.context(), space, saved.tree, output_gradient(out), data, gradients, accumulate);
  });
}

/// Evaluates a statement and pushes its node. Static widths are no part of the types here: networks of many widths share one
/// instantiation per tree. `width` is what the result's innermost axis must measure, or `dynamic`.
template <class T, int Rank, class Device, class E>
Var<T, Rank, Device, dynamic> record_statement(E e, int width) {
  auto& tape = *static_cast<Tape<Device>*>(e.tape);
  const auto mark = tape.mark();
  bool requires_gradient = false;
  for (const auto& leaf : e.leaves)
    requires_gradient = requires_gradient || (leaf.slot != nullptr && static_cast<Slot*>(leaf.slot)->requires_gradient);
  if (width != dynamic && e.extents[Rank - 1] != width)
    throw ShapeError(message("[Var] innermost axis of ", to_string(e.extents), " must have size ", width));
  const auto out = make_output<T>(tape, e.extents, requires_gradient);
  evaluate(&tape.context(), out.view(), e);
  if (out.requires_gradient()) push_statement(std::move(e), out, mark);
  return out;
}

}  // namespace detail

}  // namespace lpo::inline LPO_ABI
