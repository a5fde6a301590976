// SPDX-License-Identifier: MIT
// backend_parity: runs one differentiable function on two devices and compares values and gradients.
#pragma once

#include <tuple>
#include <utility>

#include <lpo/autograd/var.hpp>
#include <lpo/testing/near.hpp>
#include <lpo/testing/random_tensor.hpp>
#include <lpo/testing/test_context.hpp>

namespace lpo::inline LPO_ABI {
namespace testing {

/// Worst error over the result and all gradients; `message` says where.
struct ParityResult {
  double error = 0;
  std::string message;
};

struct ParityOptions {
  int threads = 1;
  std::uint64_t seed = 1;
  double floor = 1e-6;  ///< arrays whose largest value is smaller count as that large
};

namespace detail {

/// What a run leaves: the result and the gradients of the inputs, in double.
using Outcome = std::vector<std::pair<std::string, std::vector<double>>>;

template <class T, class Device, class Function, class... Tensors>
Outcome outcome(const Function& function, const ParityOptions& options, const Tensors&... sources) {
  auto context = test_context<Device>(options.threads);
  Tape<Device> tape(context);
  auto tensors = std::make_tuple(converted<T, Device>(sources)...);
  return std::apply(
      [&](auto&... inputs) {
        return [&](const auto&... vars) {
          Outcome result;
          const auto out = function(tape, vars...);
          result.emplace_back("result", values_of(out.view()));
          const auto cotangent = random_tensor<T, Device>(out.extents(), options.seed);
          backward(out, cotangent.view());
          int position = 0;
          const auto keep = [&](const auto& var) {
            const auto gradient = read_gradient(var);
            result.emplace_back(message("gradient of input ", position++), values_of(gradient.view()));
          };
          (keep(vars), ...);
          return result;
        }(variable(tape, inputs)...);
      },
      tensors);
}

}  // namespace detail

/// Runs `function(tape, vars...)` in type T on Device and in double on Oracle, from the same double inputs (on any
/// device), and returns the largest relative error of the result and of the gradients under a random cotangent.
template <class T, class Device, class Oracle, class Function, class... Tensors>
ParityResult backend_parity(const Function& function, const ParityOptions& options, const Tensors&... inputs) {
  const auto found = detail::outcome<T, Device>(function, options, inputs...);
  const auto expected = detail::outcome<double, Oracle>(function, options, inputs...);
  ParityResult worst;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const auto d = difference(std::span<const double>(found[i].second), std::span<const double>(expected[i].second),
                              options.floor);
    if (d.error < worst.error) continue;
    worst.error = d.error;
    worst.message = message(found[i].first, ": ", d.message);
  }
  return worst;
}

}  // namespace testing
}  // namespace lpo::inline LPO_ABI
