// SPDX-License-Identifier: MIT
// gradcheck: compares the gradients that a tape computes with central differences of the same function.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <lpo/autograd/var.hpp>
#include <lpo/base/philox.hpp>
#include <lpo/testing/near.hpp>

namespace lpo::inline LPO_ABI {
namespace testing {

/// A weight whose gradient lies in its own Slot (a Parameter of a ParameterStore), and its name in messages.
struct CheckedSlot {
  std::string name;
  Slot* slot = nullptr;
};

struct GradcheckOptions {
  /// Largest error allowed, see GradcheckResult::error; 0 takes 1e-6 in double and 3e-2 in float.
  double tolerance = 0;
  /// Half distance of the two evaluations, times max(1, |x|); 0 takes the cube root of the machine epsilon.
  double step = 0;
  /// Elements checked per input, drawn at random; 0 checks all.
  index_t samples = 0;
  std::uint64_t seed = 1;
  int threads = 1;
  /// Gradients smaller than this fraction of the largest one of the same input count as that large, and gradients below
  /// `floor` as `floor`: differences of rounded numbers say nothing about them.
  double fraction = 0.05;
  double floor = 1e-4;
  /// Weights to check besides the inputs; all of the element type of the function's result.
  std::vector<CheckedSlot> parameters = {};
};

/// The worst element. `error` is |gradient - difference| / max(|gradient|, |difference|, fraction * largest, floor).
struct GradcheckResult {
  bool passed = true;
  double error = 0;
  std::string input;  ///< "input 2", or the name of a parameter
  index_t index = -1;
  double gradient = 0;    ///< from the tape
  double difference = 0;  ///< from the two evaluations
  index_t checked = 0;    ///< number of elements
  std::string message;
  explicit operator bool() const { return passed; }
};

namespace detail {

template <class T, int Rank, class Device>
auto on_tape(Tape<Device>& tape, Tensor<T, Rank, Device>& tensor) {
  return variable(tape, tensor);
}
template <class T, int Rank, class Device>
auto on_tape(Tape<Device>& tape, const Tensor<T, Rank, Device>& tensor) {
  return constant(tape, tensor);
}

/// One array under test: where its values are, and the gradient that the tape found.
template <class T>
struct CheckedValues {
  std::string name;
  T* data;
  std::vector<T> gradient;
};

template <class T, class Device>
class Gradcheck {
 public:
  Gradcheck(Context<Device>& context, const GradcheckOptions& options) : context_(context), options_(options) {
    using Compute = compute_t<T>;
    const double epsilon = std::numeric_limits<Compute>::epsilon();
    if (options_.step <= 0) options_.step = std::cbrt(epsilon);
    if (options_.tolerance <= 0) options_.tolerance = std::is_same_v<Compute, double> ? 1e-6 : 3e-2;
  }

  /// L = sum(out * cotangent) in double, with a random cotangent that stays the same from call to call.
  template <int Rank, int Channels>
  double loss(const Var<T, Rank, Device, Channels>& out) {
    if (!out.view().dense())
      throw ShapeError("[gradcheck] the function must return a dense value; return contiguous(x)");
    std::vector<T> values(static_cast<std::size_t>(out.size()));
    context_.copy_to_host(values.data(), out.data(), values.size() * sizeof(T));
    draw_cotangent(values.size());
    double total = 0;
    for (std::size_t i = 0; i < values.size(); ++i) total += number(values[i]) * number(cotangent_[i]);
    return total;
  }

  /// Gradients of L with respect to the inputs (variables) and the parameters.
  template <int Rank, int Channels, class... Inputs>
  void differentiate(Tape<Device>& tape, const Var<T, Rank, Device, Channels>& out, const Inputs&... inputs) {
    draw_cotangent(static_cast<std::size_t>(out.size()));
    auto* cotangent = tape.template allocate<T>(out.size());
    context_.copy_from_host(cotangent, cotangent_.data(), cotangent_.size() * sizeof(T));
    // The last allocation before backward: no node reaches it, so backward rewinds it last.
    backward(out, View<const T, Rank, Device>(cotangent, out.extents()));
    int position = 0;
    (collect(position++, inputs), ...);
    for (const CheckedSlot& p : options_.parameters) collect(p);
  }

  template <class Evaluate>
  GradcheckResult compare(Evaluate&& evaluate) {
    GradcheckResult worst;
    for (std::size_t k = 0; k < values_.size(); ++k) {
      auto& v = values_[k];
      double largest = 0;
      for (const T& g : v.gradient) largest = std::max(largest, std::fabs(number(g)));
      for (const index_t i : chosen(static_cast<index_t>(v.gradient.size()), static_cast<std::uint32_t>(k)))
        check(v, i, std::max(options_.fraction * largest, options_.floor), evaluate, worst);
    }
    worst.passed = worst.error <= options_.tolerance;
    worst.message = message("worst of ", worst.checked, " gradients: ", worst.input, " element ", worst.index,
                            ", tape ", digits(worst.gradient), ", central difference ", digits(worst.difference),
                            ", error ", digits(worst.error), worst.passed ? " <= " : " > ", digits(options_.tolerance));
    return worst;
  }

 private:
  void draw_cotangent(std::size_t size) {
    if (cotangent_.size() == size) return;
    RandomStream random(options_.seed, 1);
    cotangent_.resize(size);
    for (T& value : cotangent_) value = static_cast<T>(static_cast<compute_t<T>>(random.normal()));
  }

  template <class X>
  void collect(int position, const X& var) {
    if (!var.requires_gradient()) return;
    static_assert(std::is_same_v<typename X::value_type, T>,
                  "lpo gradcheck: inputs must have the result's element type");
    CheckedValues<T> v{message("input ", position), var.data(), std::vector<T>(static_cast<std::size_t>(var.size()))};
    read(*var.slot(), v.gradient);
    values_.push_back(std::move(v));
  }
  void collect(const CheckedSlot& p) {
    CheckedValues<T> v{p.name, reinterpret_cast<T*>(p.slot->data), std::vector<T>(p.slot->bytes / sizeof(T))};
    read(*p.slot, v.gradient);
    values_.push_back(std::move(v));
  }
  void read(const Slot& slot, std::vector<T>& into) {
    std::fill(into.begin(), into.end(), T(compute_t<T>(0)));
    if (slot.written && slot.gradient != nullptr) context_.copy_to_host(into.data(), slot.gradient, slot.bytes);
  }

  std::vector<index_t> chosen(index_t size, std::uint32_t operation) const {
    std::vector<index_t> indices(static_cast<std::size_t>(size));
    for (std::size_t i = 0; i < indices.size(); ++i) indices[i] = static_cast<index_t>(i);
    if (options_.samples <= 0 || size <= options_.samples) return indices;
    RandomStream random(options_.seed, 2 + operation);
    random.shuffle(indices);
    indices.resize(static_cast<std::size_t>(options_.samples));
    return indices;
  }

  template <class Evaluate>
  void check(CheckedValues<T>& v, index_t i, double floor, Evaluate& evaluate, GradcheckResult& worst) {
    T original;
    context_.copy_to_host(&original, v.data + i, sizeof(T));
    const double x = number(original), h = options_.step * std::max(1.0, std::fabs(x));
    const auto at = [&](double value, double& exact) {
      const T moved = static_cast<T>(static_cast<compute_t<T>>(value));
      exact = number(moved);
      context_.copy_from_host(v.data + i, &moved, sizeof(T));
      return evaluate();
    };
    double high = 0, low = 0;
    const double above = at(x + h, high), below = at(x - h, low);
    context_.copy_from_host(v.data + i, &original, sizeof(T));
    const double gradient = number(v.gradient[static_cast<std::size_t>(i)]), slope = (above - below) / (high - low);
    double error = std::fabs(gradient - slope) / std::max({std::fabs(gradient), std::fabs(slope), floor});
    if (std::isnan(error)) error = std::numeric_limits<double>::infinity();
    ++worst.checked;
    if (error < worst.error || (error == worst.error && worst.index >= 0)) return;
    worst.error = error;
    worst.input = v.name;
    worst.index = i;
    worst.gradient = gradient;
    worst.difference = slope;
  }

  Context<Device>& context_;
  GradcheckOptions options_;
  std::vector<T> cotangent_;
  std::vector<CheckedValues<T>> values_;
};

}  // namespace detail

/// Checks `function(tape, vars...)`, which returns a Var or an expression of Vars, at `inputs`: a tuple of references
/// to tensors, as std::tie makes it. A reference to const is a constant. Values are moved one at a time and restored.
/// Use double on Reference.
///
///   auto x = random_tensor<double, Reference>(Extents<2>{3, 5}, 1);
///   auto result = gradcheck<Reference>([](auto&, const auto& x) { return silu(x) * x; }, std::tie(x));
///   if (!result) puts(result.message.c_str());
template <class Device, class Function, class... Inputs>
GradcheckResult gradcheck(Context<Device>& context, Function&& function, const std::tuple<Inputs&...>& inputs,
                          const GradcheckOptions& options = {}) {
  const auto run = [&](Tape<Device>& tape, auto&& use) {
    return std::apply(
        [&](auto&... tensors) {
          return [&](const auto&... vars) {
            return use(Var(function(tape, vars...)), vars...);
          }(detail::on_tape(tape, tensors)...);
        },
        inputs);
  };
  using Out = decltype(run(std::declval<Tape<Device>&>(), [](auto out, const auto&...) { return out; }));
  detail::Gradcheck<typename Out::value_type, Device> checker(context, options);
  const auto forget_gradients = [&] {
    for (const CheckedSlot& p : options.parameters) p.slot->written = false;
  };
  forget_gradients();
  {
    Tape<Device> tape(context);
    run(tape, [&](const auto& out, const auto&... vars) { checker.differentiate(tape, out, vars...); });
  }
  forget_gradients();
  return checker.compare([&] {
    Tape<Device> tape(context);
    const auto guard = tape.inference();
    return run(tape, [&](const auto& out, const auto&...) { return checker.loss(out); });
  });
}

/// The same with a context of its own.
template <class Device, class Function, class... Inputs>
GradcheckResult gradcheck(Function&& function, const std::tuple<Inputs&...>& inputs,
                          const GradcheckOptions& options = {}) {
  Context<Device> context(options.threads);
  return gradcheck(context, std::forward<Function>(function), inputs, options);
}

}  // namespace testing
}  // namespace lpo::inline LPO_ABI
