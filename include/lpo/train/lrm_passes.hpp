// SPDX-License-Identifier: MIT
// LrmPasses: a reward model's scores of noisy latents, and forward and backward of the mini-batches that train it.
#pragma once

#include <array>
#include <map>
#include <span>
#include <tuple>
#include <vector>

#include <lpo/autograd/embedding.hpp>
#include <lpo/reward/latent_reward_model.hpp>
#include <lpo/train/captured_backward.hpp>
#include <lpo/train/lrm_batch.hpp>
#include <lpo/train/text_states.hpp>

namespace lpo::inline LPO_ABI {

/// Of a latent reward model, or of what predicts pictures from latents first (PredictedImageModel). On devices that
/// can, passes of the sizes that come first are captured once and replayed: scores; in training the features, and
/// backward from them. Prompts, which the host reads, are encoded before, and pictures that a frozen model predicts; the
/// loss lies between. Keeps references to what it is given.
template <class Lrm, class TextEncoder>
class LrmPasses {
 public:
  using T = typename Lrm::value_type;
  using Device = typename Lrm::device;
  static_assert(std::is_same_v<T, float>, "lpo LrmPasses: training weights are float");

  LrmPasses(Tape<Device>& tape, Lrm& lrm, TextEncoder& text, const ParameterStore<T, Device>& store)
      : tape_(tape), lrm_(lrm), text_(text), store_(store) {}

  /// Of each image under the prompt of its row: images that were added alone.
  std::vector<float> scores(const LrmBatch& batch, const LatentPairs& data) {
    const auto guard = tape_.inference();
    Pass& pass = pass_for(batch, data, Purpose::scores);
    const Texts texts = begin(pass, batch, data);
    pass.work.run(tape_.context(), [&] {
      set_features(pass, texts);
      pass.scores = cosine_score(pass.visual, pass.text, lrm_.logit_scale.on(tape_)).view();
    });
    std::vector<float> host(static_cast<std::size_t>(pass.scores.size()));
    tape_.context().copy_to_host(host.data(), pass.scores.data, host.size() * sizeof(float));
    tape_.clear();
    return host;
  }

  /// Adds the gradients of `loss(visual, text)` [1], of features [images, width] and [prompts, width]. `first`: they
  /// are stored, those of others add up.
  template <class Loss>
  void add_gradients(const LrmBatch& batch, const LatentPairs& data, bool first, const Loss& loss) {
    auto& context = tape_.context();
    Pass& pass = pass_for(batch, data, first ? Purpose::first_gradients : Purpose::more_gradients);
    const Texts texts = begin(pass, batch, data);
    auto* const encoded = tape_.position();
    pass.work.run(context, [&] { set_features(pass, texts); });
    detail::differentiate(tape_, 1, [&] {
      const auto input = [&](const Features& features, bool trained, Cut& cut) {
        const View<const T, 2, Device> view = features.view();
        return trained ? cut.input(tape_, view) : constant(tape_, view);
      };
      return loss(input(pass.visual, pass.trains_visual, pass.visual_cut),
                  input(pass.text, pass.trains_text, pass.text_cut));
    });
    if (pass.trains_visual) pass.visual_cut.finish(context);
    if (pass.trains_text) pass.text_cut.finish(context);
    pass.work.run(context, [&] {
      if (pass.trains_visual) detail::add_gradient(pass.visual, pass.visual_cut.gradient());
      if (pass.trains_text) detail::add_gradient(pass.text, pass.text_cut.gradient());
      tape_.run_back_to(encoded);
    });
    pass.written.after_backward(store_, pass.work.replays());
    pass.texts.after_backward(pass.work.replays());
    tape_.run_back_to(nullptr);  // through the text encoder, if it is trained
    tape_.clear();
  }

 private:
  using Features = Var<T, 2, Device>;
  using Cut = detail::GradientCut<T, 2, Device>;
  enum class Purpose { scores, first_gradients, more_gradients };
  /// Sizes whose passes are kept; batches of prompts have many.
  static constexpr std::size_t most_passes = 16;
  /// Whether pictures are what the model sees.
  static constexpr bool sees_pictures = requires { Lrm::picture_size; };

  struct Texts {
    TextStates<T, Device> prompts, empty;
  };

  /// Gradients of what a text encoder gave, at addresses that stay: backward of a captured pass ends there.
  class TextGradients {
   public:
    void keep(const Texts& texts) {
      std::size_t count = 0;
      const auto keep_one = [&](const auto& state) {
        Slot*& slot = slots_[count];
        auto& gradient = gradients_[count++];
        slot = nullptr;
        if (!state.present() || !state.requires_gradient() || state.slot()->persistent) return;
        slot = state.slot();
        detail::fit(gradient, Extents<1>{static_cast<index_t>(slot->bytes / sizeof(T))});
        slot->gradient = reinterpret_cast<std::byte*>(gradient.data());
        slot->persistent = true;
      };
      for (const TextStates<T, Device>* states : {&texts.prompts, &texts.empty})
        keep_one(states->context), keep_one(states->pooled);
    }
    /// A replay does not tell the slots that their gradients are written; this does.
    void after_backward(bool replayed) {
      for (std::size_t i = 0; i < slots_.size(); ++i) {
        if (slots_[i] == nullptr) continue;
        if (replayed)
          slots_[i]->written = written_[i];
        else
          written_[i] = slots_[i]->written;
      }
    }

   private:
    std::array<Slot*, 4> slots_{};
    std::array<bool, 4> written_{};
    std::array<Tensor<T, 1, Device>, 4> gradients_;
  };

  /// What passes of one size read, and what is captured of them.
  struct Pass {
    explicit Pass(int parts = 1) : work(parts) {}

    Tensor<T, 4, Device> latents, pictures;
    Tensor<T, 2, Device> time_features;                    ///< [images, frequencies]
    typename DeviceMemory<Device>::Block prompt_of_image;  ///< std::int32_t [images]
    std::vector<float> time_ids;                           ///< SDXL: 6 per image
    RepeatedWork<Device> work;
    Features visual, text;  ///< their views outlive the tape: replays write there
    View<const T, 1, Device> scores;
    bool trains_visual = false, trains_text = false;
    Cut visual_cut, text_cut;
    TextGradients texts;
    detail::WrittenWeights written;
  };

  /// The pass of these sizes; where there are too many, one that is launched each time.
  Pass& pass_for(const LrmBatch& batch, const LatentPairs& data, Purpose purpose) {
    const int parts = purpose == Purpose::scores ? 1 : 2;
    const auto key = std::tuple(batch.prompts, std::ssize(batch.images), data.tokens, purpose);
    if (const auto found = passes_.find(key); found != passes_.end()) return found->second;
    if (passes_.size() < most_passes) return passes_.emplace(key, parts).first->second;
    other_.work = RepeatedWork<Device>(parts);
    return other_;
  }

  /// Encodes the texts, copies to the device what the model reads, and begins a round of `pass.work`.
  Texts begin(Pass& pass, const LrmBatch& batch, const LatentPairs& data) {
    auto& context = tape_.context();
    Texts texts{text_.encode(tape_, batch.token_ids, batch.prompts), {}};
    if (lrm_.options.guidance != 1.0f) texts.empty = text_.encode_empty(tape_);
    pass.texts.keep(texts);

    const auto images = std::ssize(batch.images);
    bool known = detail::fit(pass.latents, Extents<4>{images, data.height, data.width, data.channels});
    context.copy_from_host(pass.latents.data(), batch.latents.data(), batch.latents.size() * sizeof(T));
    const std::size_t bytes = batch.prompt_of_image.size() * sizeof(std::int32_t);
    if (pass.prompt_of_image.bytes() < bytes) pass.prompt_of_image = typename DeviceMemory<Device>::Block(bytes);
    context.copy_from_host(pass.prompt_of_image.data(), batch.prompt_of_image.data(), bytes);
    const auto set_times = [&](int frequencies) {
      const auto features = sinusoidal_features<T>(batch.timesteps, frequencies);
      known = detail::fit(pass.time_features, Extents<2>{images, frequencies}) && known;
      context.copy_from_host(pass.time_features.data(), features.data(), features.size() * sizeof(T));
    };
    const auto time_ids = time_ids_of(texts, images);
    known = known && time_ids == pass.time_ids;
    pass.time_ids = time_ids;
    if constexpr (sees_pictures) {
      set_times(Lrm::time_frequencies);
      constexpr index_t size = Lrm::picture_size;
      known = detail::fit(pass.pictures, Extents<4>{images, size, size, 3}) && known;
      const auto guard = tape_.inference();
      const auto start = tape_.snapshot();
      lrm_.predict(constant(tape_, pass.latents), batch.timesteps, prompt_rows(pass, texts), pass.pictures.view());
      tape_.rewind(start);
    } else {
      set_times(Lrm::config.level_channels(0));
    }
    if (!known) pass.work.reset();
    pass.work.begin(context);
    return texts;
  }

  std::vector<float> time_ids_of(const Texts& texts, index_t images) const {
    std::vector<float> ids;
    if constexpr (Lrm::config.addition_width > 0) {
      const auto& one = texts.prompts.time_ids;
      if (one.size() != 6)
        throw ShapeError(
            message("[LrmTrainer] this reward model also needs pooled text and 6 time ids, the prompts have ",
                    one.size(), " ids; encode them with SdxlTextEncoder"));
      for (index_t i = 0; i < images; ++i) ids.insert(ids.end(), one.begin(), one.end());
    }
    return ids;
  }

  /// Visual [images, width] and text [prompts, width] features.
  void set_features(Pass& pass, const Texts& texts) {
    const auto times = constant(tape_, pass.time_features);
    if constexpr (sees_pictures) {
      pass.visual = lrm_.visual(constant(tape_, pass.pictures), times);
    } else {
      auto prompt = prompt_rows(pass, texts);
      prompt.time_features = times;
      pass.visual = lrm_.visual(constant(tape_, pass.latents), {}, prompt);
    }
    pass.text = lrm_.text(texts.prompts.pooled);
    pass.trains_visual = pass.visual.requires_gradient();
    pass.trains_text = pass.text.requires_gradient();
  }

  /// The texts of each image.
  RewardPrompt<T, Device> prompt_rows(const Pass& pass, const Texts& texts) const {
    const index_t images = pass.latents.extent(0);
    const auto rows = [&](const Var<T, 2, Device>& states) {
      return embedding(states, reinterpret_cast<const std::int32_t*>(pass.prompt_of_image.data()), images);
    };
    const auto& states = texts.prompts;
    const index_t prompts = states.context.extent(0), tokens = states.context.extent(1),
                  width = states.context.extent(2);
    RewardPrompt<T, Device> prompt;
    prompt.context = rows(states.context.reshape(Extents<2>{prompts, tokens * width}))
                         .reshape(Extents<3>{images, tokens, width});
    if constexpr (Lrm::config.addition_width > 0) {
      prompt.text_embedding = rows(states.pooled);
      prompt.time_ids = pass.time_ids;
    }
    if (texts.empty.context.present()) {
      prompt.context_empty = repeat_rows(texts.empty.context, images);
      if constexpr (Lrm::config.addition_width > 0)
        prompt.text_embedding_empty = repeat_rows(texts.empty.pooled, images);
    }
    return prompt;
  }

  Tape<Device>& tape_;
  Lrm& lrm_;
  TextEncoder& text_;
  const ParameterStore<T, Device>& store_;
  std::map<std::tuple<index_t, index_t, index_t, Purpose>, Pass> passes_;
  Pass other_;
};

}  // namespace lpo::inline LPO_ABI
