// SPDX-License-Identifier: MIT
// Losses that train a latent reward model on preference pairs: pairwise, contrastive over the batch, or both.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include <lpo/autograd/concat.hpp>
#include <lpo/autograd/cross_entropy.hpp>
#include <lpo/autograd/linear.hpp>
#include <lpo/reward/score.hpp>

namespace lpo::inline LPO_ABI {

/// One labelled pair: (1, 0) image 0 preferred, (0, 1) image 1 preferred, (0.5, 0.5) tie.
struct PreferenceLabel {
  float label_0 = 1.0f;
  float label_1 = 0.0f;
  float num_examples = 1.0f;  ///< pairs the data set has for this prompt; a pair weighs 1 / num_examples
  bool auxiliary = false;     ///< made by compare_between_timestep: weighs aux_coefficient more

  bool tie() const { return label_0 == label_1; }
};

/// Which loss trains the reward model: the pairs' (the released models' choice), the contrastive one over the batch, or
/// pair + batch_coefficient * batch.
struct RewardLossOptions {
  enum class Kind { pair, batch, both } kind = Kind::pair;
  float batch_coefficient = 1.0f;  ///< of `both`
  float aux_coefficient = 1.0f;    ///< weight of auxiliary pairs
};

/// w_i = a_i (1 / n_i) / sum_j (1 / n_j), n_i the pairs of a prompt and a_i the auxiliary factor, after which nothing
/// is renormalised, as in the released code. ValueError unless every n_i is positive.
inline std::vector<float> pair_weights(std::span<const PreferenceLabel> labels, float aux_coefficient = 1.0f) {
  double total = 0;
  for (const auto& label : labels) {
    if (!(label.num_examples > 0)) throw ValueError("[pair_weights] num_examples must be positive");
    total += 1.0 / static_cast<double>(label.num_examples);
  }
  std::vector<float> weights;
  weights.reserve(labels.size());
  for (const auto& label : labels)
    weights.push_back(static_cast<float>(1.0 / static_cast<double>(label.num_examples) / total) *
                      (label.auxiliary ? aux_coefficient : 1.0f));
  return weights;
}

namespace detail {

/// Host numbers as a tape constant [count].
template <class T, class Device>
Var<T, 1, Device> tape_constant(Tape<Device>& tape, std::span<const float> values) {
  const auto out = make_output<T>(tape, Extents<1>{static_cast<index_t>(values.size())}, false);
  std::vector<T> host;
  host.reserve(values.size());
  for (float value : values) host.push_back(static_cast<T>(static_cast<compute_t<T>>(value)));
  tape.context().copy_from_host(out.data(), host.data(), host.size() * sizeof(T));
  return out;
}

struct LabelColumns {
  std::vector<float> label_0, label_1, tie_constant;

  explicit LabelColumns(std::span<const PreferenceLabel> labels) {
    for (const auto& label : labels) {
      label_0.push_back(label.label_0);
      label_1.push_back(label.label_1);
      tie_constant.push_back(label.tie() ? std::log(0.5f) : 0.0f);
    }
  }
};

}  // namespace detail

/// scores_0, scores_1 [n] -> losses [n]: l0 * softplus(z1 - z0) + l1 * softplus(z0 - z1), minus ln 2 for ties so that their
/// minimum is 0. For a clear winner this is Bradley-Terry.
template <class T, class Device>
Var<T, 1, Device> pair_losses(const Var<T, 1, Device>& scores_0, const Var<T, 1, Device>& scores_1,
                              std::span<const PreferenceLabel> labels) {
  if (static_cast<index_t>(labels.size()) != scores_0.extent(0) || !(scores_0.extents() == scores_1.extents()))
    throw ShapeError(message("[pair_losses] scores ", to_string(scores_0.extents()), " and ", to_string(scores_1.extents()),
                             " need one label each, given ", static_cast<index_t>(labels.size())));
  auto& tape = scores_0.tape();
  const detail::LabelColumns columns(labels);
  const auto l0 = detail::tape_constant<T>(tape, columns.label_0);
  const auto l1 = detail::tape_constant<T>(tape, columns.label_1);
  const auto tie = detail::tape_constant<T>(tape, columns.tie_constant);
  return Var<T, 1, Device>(l0 * softplus(scores_1 - scores_0) + l1 * softplus(scores_0 - scores_1) + tie);
}

/// CLIP's contrastive loss with preferences: visual_0, visual_1, text [n, width] (any length), logit_scale [1] -> [n].
/// Image side: each image against all texts; text side: each text against all 2n images, as in the released code.
template <class T, class Device>
Var<T, 1, Device> batch_losses(const Var<T, 2, Device>& visual_0, const Var<T, 2, Device>& visual_1,
                               const Var<T, 2, Device>& text, const Var<T, 1, Device>& logit_scale,
                               std::span<const PreferenceLabel> labels) {
  const index_t n = text.extent(0);
  auto& tape = text.tape();
  const auto images = l2_normalize(concat_batch(visual_0, visual_1));  // [2n, width]
  const auto texts = l2_normalize(text);                               // [n, width]
  const auto scale = logit_scale.reshape(Extents<2>{1, 1});
  const Var<T, 2, Device> by_image = linear(images, texts) * exp(bcast_last(scale));  // [2n, n]
  const Var<T, 2, Device> by_text = linear(texts, images) * exp(bcast_last(scale));   // [n, 2n]
  std::vector<std::int32_t> own, first, second;
  for (index_t i = 0; i < n; ++i) {
    own.push_back(static_cast<std::int32_t>(i));
    first.push_back(static_cast<std::int32_t>(i));
    second.push_back(static_cast<std::int32_t>(n + i));
  }
  const auto image_0 = cross_entropy(by_image.slice(0, 0, n), own);
  const auto image_1 = cross_entropy(by_image.slice(0, n, 2 * n), own);
  const auto text_0 = cross_entropy(by_text, first);
  const auto text_1 = cross_entropy(by_text, second);
  const detail::LabelColumns columns(labels);
  const auto l0 = detail::tape_constant<T>(tape, columns.label_0);
  const auto l1 = detail::tape_constant<T>(tape, columns.label_1);
  const auto tie = detail::tape_constant<T>(tape, columns.tie_constant);
  return Var<T, 1, Device>(0.5 * (l0 * (image_0 + text_0) + l1 * (image_1 + text_1) + tie));
}

/// Weighted loss [1] of n pairs from their features: sum of weight_i L_i. The pair loss is a sum over pairs,
/// so parts of a batch may be added up, each with its slice of the batch's weights; the other two compare all with all.
/// 16-bit features are widened first: the loss is in float.
template <class T, class Device>
Var<compute_t<T>, 1, Device> reward_loss(const Var<T, 2, Device>& visual_0, const Var<T, 2, Device>& visual_1,
                                         const Var<T, 2, Device>& text, const Var<T, 1, Device>& logit_scale,
                                         std::span<const PreferenceLabel> labels, const RewardLossOptions& options,
                                         std::span<const float> weights) {
  using Kind = RewardLossOptions::Kind;
  if (weights.size() != labels.size())
    throw ShapeError(message("[reward_loss] ", labels.size(), " labels and ", weights.size(), " weights"));
  if constexpr (!std::is_same_v<T, compute_t<T>>) {
    using detail::widened;
    return reward_loss(widened(visual_0), widened(visual_1), widened(text), widened(logit_scale), labels, options, weights);
  } else {
    const auto weight = detail::tape_constant<T>(text.tape(), weights);
    Var<T, 1, Device> losses;
    if (options.kind != Kind::batch)
      losses = pair_losses(cosine_score(visual_0, text, logit_scale), cosine_score(visual_1, text, logit_scale), labels);
    if (options.kind != Kind::pair) {
      const auto batch = batch_losses(visual_0, visual_1, text, logit_scale, labels);
      if (losses.present()) {
        const Var<T, 1, Device> both = losses + static_cast<double>(options.batch_coefficient) * batch;
        losses = both;
      } else {
        losses = batch;
      }
    }
    const Var<T, 1, Device> weighted = losses * weight;
    return sum(weighted);
  }
}

/// The same with the weights of a whole batch.
template <class T, class Device>
Var<compute_t<T>, 1, Device> reward_loss(const Var<T, 2, Device>& visual_0, const Var<T, 2, Device>& visual_1,
                                         const Var<T, 2, Device>& text, const Var<T, 1, Device>& logit_scale,
                                         std::span<const PreferenceLabel> labels, const RewardLossOptions& options = {}) {
  const auto weights = pair_weights(labels, options.aux_coefficient);
  return reward_loss(visual_0, visual_1, text, logit_scale, labels, options, weights);
}

/// Validation accuracy as in the released code: a tie counts 0.5 for any strict order, 0 for equal scores. scores_0,
/// scores_1 [n], one label each; returns 0 to 1, and 0 without labels. ShapeError for another number of scores.
inline double pair_accuracy(std::span<const float> scores_0, std::span<const float> scores_1,
                            std::span<const PreferenceLabel> labels) {
  if (scores_0.size() != labels.size() || scores_1.size() != labels.size())
    throw ShapeError(message("[pair_accuracy] ", scores_0.size(), " and ", scores_1.size(),
                             " scores need one label each, given ", labels.size()));
  if (labels.empty()) return 0;
  double total = 0;
  for (std::size_t i = 0; i < labels.size(); ++i) {
    if (scores_0[i] > scores_1[i]) total += static_cast<double>(labels[i].label_0);
    if (scores_0[i] < scores_1[i]) total += static_cast<double>(labels[i].label_1);
  }
  return total / static_cast<double>(labels.size());
}

}  // namespace lpo::inline LPO_ABI
