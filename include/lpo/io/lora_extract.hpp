// SPDX-License-Identifier: MIT
// Extracting a LoRA from two checkpoints: the difference of each weight, cut down to its largest singular values.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lpo/io/lora_base.hpp>
#include <lpo/io/lora_writer.hpp>

namespace lpo::inline LPO_ABI {

struct LoraExtractOptions {
  index_t rank = 16;                      ///< of every adapter, less where a weight has less
  index_t kernel_rank = -1;               ///< of convolutions larger than 1x1: 0 leaves them out, -1 takes `rank`
  std::vector<std::string> targets = {};  ///< ends of module names ("to_q", "ff.net.2"); empty: all that changed
  LoraOptions file = {};                  ///< format, type and metadata of the result
  /// Before every weight, with the numbers of those done and in all; throwing stops the work and leaves no file.
  std::function<void(const std::string& key, std::size_t done, std::size_t total)> before_weight = {};
};

/// What an extraction kept.
struct LoraExtractReport {
  struct Layer {
    std::string component, path;
    index_t rank = 0;
    double norm = 0;    ///< Frobenius norm of tuned - base
    double energy = 0;  ///< share of its square that the adapter has
  };
  std::vector<Layer> layers;
  std::size_t unchanged = 0;          ///< weights that are equal in both checkpoints
  std::vector<std::string> left_out;  ///< what changed and is not in the LoRA: biases, norms, other modules

  /// Share of all squared differences of the layers.
  double energy() const {
    double kept = 0, all = 0;
    for (const Layer& layer : layers) {
      kept += layer.energy * layer.norm * layer.norm;
      all += layer.norm * layer.norm;
    }
    return all > 0 ? kept / all : 1.0;
  }
};

namespace detail {

/// A weight that both checkpoints have.
struct TunedWeight {
  const BaseComponent *base, *tuned;
  std::string key;

  std::string path() const { return key.substr(0, key.rfind('.')); }
};

/// All weights with a fraction, in both and of the same shape; anything else is a FileError.
inline std::vector<TunedWeight> paired_weights(const std::vector<BaseComponent>& base,
                                               const std::vector<BaseComponent>& tuned) {
  std::vector<TunedWeight> pairs;
  std::vector<std::string> wrong;
  for (const BaseComponent& part : tuned) {
    const auto same = std::find_if(base.begin(), base.end(), [&](const auto& b) { return b.name == part.name; });
    if (same == base.end()) continue;
    for (const std::string& key : part.weights.keys()) {
      const TensorInfo& info = part.weights.info(key);
      if (!is_floating(info.dtype)) continue;
      if (!same->weights.contains(key))
        wrong.push_back(message("\"", key, "\" is not in the base"));
      else if (same->weights.info(key).shape != info.shape)
        wrong.push_back(message("\"", key, "\" is ", shape_text(info.shape), ", in the base ",
                                shape_text(same->weights.info(key).shape)));
      else
        pairs.push_back({&*same, &part, key});
    }
  }
  if (!wrong.empty())
    throw FileError(message("[lora] ", tuned.front().weights.path(), " is not a tuned ", base.front().weights.path(),
                            ": ", listed(wrong)));
  if (pairs.empty())
    throw FileError(message("[lora] ", tuned.front().weights.path(), " and ", base.front().weights.path(),
                            " have no part in common"));
  return pairs;
}

inline bool wants_module(const std::vector<std::string>& targets, const std::string& path) {
  return targets.empty() || std::any_of(targets.begin(), targets.end(), [&](const std::string& target) {
           return path == target || path.ends_with("." + target);
         });
}

/// tuned - base; empty if they are equal. Where one is stored in a narrower type, the other is rounded to it first: the
/// rounding of weights that nobody trained is no difference.
inline std::vector<double> difference(const TunedWeight& weight) {
  const TensorInfo& tuned = weight.tuned->weights.info(weight.key);
  const TensorInfo& base = weight.base->weights.info(weight.key);
  const DType common = dtype_size(base.dtype) < dtype_size(tuned.dtype) ? base.dtype : tuned.dtype;
  constexpr index_t piece = 1 << 12;
  std::byte rounded[piece * 8];
  const auto read = [&](const TensorInfo& from, index_t first, index_t count, double* values) {
    convert(from.dtype, from.data + static_cast<std::size_t>(first) * dtype_size(from.dtype), common, rounded, count);
    convert_from(common, rounded, values, count);
  };
  std::vector<double> delta(static_cast<std::size_t>(tuned.count()));
  double before[piece];
  bool changed = false;
  for (index_t first = 0; first < tuned.count(); first += piece) {
    const index_t now = std::min(piece, tuned.count() - first);
    double* values = delta.data() + first;
    read(tuned, first, now, values);
    read(base, first, now, before);
    for (index_t i = 0; i < now; ++i) {
      values[i] -= before[i];
      changed = changed || values[i] != 0.0;
    }
  }
  if (!changed) delta.clear();
  return delta;
}

}  // namespace detail

/// Writes tuned - base as a LoRA: matrices and convolutions, sqrt(s) on both sides, alpha = rank. `svd(matrix, rows,
/// columns, rank)` gives `left`, `values` and `right` as `truncated_svd` of backend/cpu does. FileError when the two do
/// not have the same weights, or when none changed.
template <class Svd>
LoraExtractReport extract_lora(const std::vector<BaseComponent>& base, const std::vector<BaseComponent>& tuned,
                               const std::string& path, const LoraExtractOptions& options, Svd&& svd) {
  if (options.rank < 1) throw ValueError(message("[lora] rank is ", options.rank, ", expected at least 1"));
  const auto pairs = detail::paired_weights(base, tuned);
  LoraExtractReport report;
  LoraWriter writer(options.file);
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const auto& pair = pairs[i];
    if (options.before_weight) options.before_weight(pair.key, i, pairs.size());
    const auto delta = detail::difference(pair);
    if (delta.empty()) {
      ++report.unchanged;
      continue;
    }
    const auto& shape = pair.tuned->weights.info(pair.key).shape;
    const std::string module = pair.path();
    const bool kernel = shape.size() == 4 && shape[2] * shape[3] != 1;
    const index_t wanted = kernel && options.kernel_rank >= 0 ? options.kernel_rank : options.rank;
    // What peft can adapt: Linear and Conv2d. Embeddings are matrices, too, but not these.
    const bool adaptable =
        pair.key.ends_with(".weight") && (shape.size() == 2 || shape.size() == 4) && !module.ends_with("embedding");
    if (!adaptable || wanted == 0 || !detail::wants_module(options.targets, module)) {
      report.left_out.push_back(pair.key);
      continue;
    }
    const index_t rows = shape[0], columns = static_cast<index_t>(delta.size()) / rows;
    const index_t rank = std::min({wanted, rows, columns});
    const auto factors = svd(delta.data(), rows, columns, rank);
    double square = 0, kept = 0;
    for (const double value : delta) square += value * value;
    for (const double value : factors.values) kept += value * value;
    if (!std::isfinite(square)) throw FileError(message("[lora] \"", pair.key, "\" has values that are not finite"));
    report.layers.push_back({pair.tuned->name, module, rank, std::sqrt(square), std::min(1.0, kept / square)});

    std::vector<float> up(static_cast<std::size_t>(rows * rank)), down(static_cast<std::size_t>(rank * columns));
    for (index_t r = 0; r < rank; ++r) {
      const double root = std::sqrt(factors.values[static_cast<std::size_t>(r)]);
      for (index_t o = 0; o < rows; ++o)
        up[static_cast<std::size_t>(o * rank + r)] =
            static_cast<float>(root * factors.left[static_cast<std::size_t>(o * rank + r)]);
      for (index_t c = 0; c < columns; ++c)
        down[static_cast<std::size_t>(r * columns + c)] =
            static_cast<float>(root * factors.right[static_cast<std::size_t>(r * columns + c)]);
    }
    std::vector<index_t> down_shape = shape, up_shape = {rows, rank};
    down_shape[0] = rank;
    if (shape.size() == 4) up_shape.insert(up_shape.end(), {1, 1});
    writer.add(pair.tuned->name, module, static_cast<double>(rank), lora_matrix(std::move(down_shape), std::move(down)),
               lora_matrix(std::move(up_shape), std::move(up)));
  }
  if (report.layers.empty())
    throw FileError(message(
        "[lora] ", tuned.front().weights.path(), " differs from ", base.front().weights.path(),
        report.left_out.empty() ? " in nothing" : " only in what is left out: ", detail::listed(report.left_out)));
  writer.write(path);
  return report;
}

}  // namespace lpo::inline LPO_ABI
