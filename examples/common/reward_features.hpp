// SPDX-License-Identifier: MIT
// With what features a program uses a reward model: those that its folder says it was trained with, unless it is told
// otherwise.
#pragma once

#include <charconv>
#include <cstdio>
#include <string>

#include <lpo/base/error.hpp>
#include <lpo/io/latent_reward_folder.hpp>

#include "option_list.hpp"

namespace examples {

/// The options of the features, with the first of their spellings; null for one that a program does not have.
struct RewardFeatureNames {
  const char* guidance = "--lrm_guidance";
  const char* multi_scale = "--lrm_multi_scale";
  const char* multi_scale_cfg = "--lrm_multi_scale_cfg";
  const char* single_scale = nullptr;  ///< a flag, the opposite of multi_scale
};

/// Of programs that use a reward model as it was trained.
inline void add_reward_feature_options(const OptionList& add, lpo::RewardFeatureOptions& features) {
  add("lrm_guidance", features.guidance, "visual feature enhancement, 1 is none; else as the reward model was trained");
  add("lrm_multi_scale", features.multi_scale,
      "true or false: pool features of every level; only the way the reward model was trained fits its weights");
  add("lrm_multi_scale_cfg", features.multi_scale_cfg,
      "true or false: guide the features of every level; else as the reward model was trained");
}

/// Puts into `features` what the folder of a reward model says (lrm_config.json), and of what it does not say the released
/// models' settings, wherever the command line or its --config says nothing; these are then in effect, also in the
/// settings that a run keeps. `say` notes on stderr what is assumed and what differs from the training. ValueError for
/// levels that do not fit the folder's weights.
inline void settle_reward_features(CLI::App& app, const std::string& program, const std::string& folder,
                                   lpo::RewardFeatureOptions& features, bool say,
                                   const RewardFeatureNames& names = {}) {
  const auto stored = lpo::read_reward_features(folder);
  const lpo::RewardFeatureOptions& own = stored.options;
  std::string assumed, differing;
  const auto settle = [&](const char* name, auto& value, const auto& trained, const auto& text) {
    CLI::Option* const option = name == nullptr ? nullptr : app.get_option(name);
    if (option != nullptr && option->count() > 0) {
      if (value != trained)
        differing += lpo::message(differing.empty() ? "" : ", ", name, " ", text(value), " (trained with ", text(trained), ")");
      return;
    }
    value = trained;
    if (option == nullptr) return;
    option->default_str(text(trained));
    assumed += lpo::message(assumed.empty() ? "" : ", ", name, " ", text(trained));
  };
  const auto truth = [](bool value) { return std::string(value ? "true" : "false"); };
  const char* const levels = names.single_scale != nullptr ? names.single_scale : names.multi_scale;
  if (levels != nullptr && app.get_option(levels)->count() > 0 && features.multi_scale != own.multi_scale)
    throw lpo::ValueError(lpo::message("[", program, "] ", levels, ": ", folder, " was trained with features of ",
                                       own.multi_scale ? "every level" : "the middle alone",
                                       ", for which its projection is made; leave the option out"));
  settle(names.guidance, features.guidance, own.guidance,
         [](float value) {
           char digits[32];
           return std::string(digits, std::to_chars(digits, digits + sizeof digits, value).ptr);
         });
  if (names.single_scale != nullptr) {
    bool single = !features.multi_scale;
    settle(names.single_scale, single, !own.multi_scale, truth);
    features.multi_scale = !single;
  } else {
    settle(names.multi_scale, features.multi_scale, own.multi_scale, truth);
  }
  settle(names.multi_scale_cfg, features.multi_scale_cfg, own.multi_scale_cfg, truth);
  features.sdxl_first_unguided = own.sdxl_first_unguided;
  if (!say) return;
  if (!stored.stored && !assumed.empty() && lpo::file_exists(folder + "/unet/config.json"))  // else there is no such model
    std::fprintf(stderr, "%s: note: %s does not say with what features it was trained (no lrm_config.json); assumed: %s\n",
                 program.c_str(), folder.c_str(), assumed.c_str());
  if (stored.stored && !differing.empty())
    std::fprintf(stderr, "%s: note: %s is used otherwise than it was trained: %s\n", program.c_str(), folder.c_str(),
                 differing.c_str());
}

}  // namespace examples
