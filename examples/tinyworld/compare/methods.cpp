// SPDX-License-Identifier: MIT
// Methods by their names, and the prompts that those which roll out train on.
#include "methods.hpp"

#include <utility>

namespace compare {

Method method_of(const std::string& name) {
  static constexpr std::pair<const char*, Method> methods[] = {
      {"lpo", train_lpo}, {"dpo", train_dpo}, {"grpo", train_grpo}, {"spo", train_spo}};
  std::string names;
  for (const auto& [known, method] : methods) {
    if (name == known) return method;
    names += (names.empty() ? "" : ", ") + std::string(known);
  }
  throw lpo::ValueError("[compare] there is no method " + name + "; expected one of " + names);
}

std::vector<std::int32_t> prompt_ids(const demo::Studio& studio, std::uint64_t seed, index_t count) {
  std::vector<std::int32_t> all;
  for (const auto& caption : demo::sample_captions(seed + 500, count, tw::Split::train)) {
    const auto ids = studio.generator.tokenizer.encode(caption);
    all.insert(all.end(), ids.begin(), ids.end());
  }
  return all;
}

}  // namespace compare
