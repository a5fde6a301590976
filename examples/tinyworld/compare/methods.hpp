// SPDX-License-Identifier: MIT
// The methods that are compared. Each trains the adapters of the studio's generator until the recorder says that its
// time is used up; a further method is a function like these and a line in method_of().
#pragma once

#include <string>
#include <vector>

#include "recorder.hpp"

namespace compare {

using Method = void (*)(demo::Studio& studio, const Options& options, Recorder& recorder);

void train_lpo(demo::Studio& studio, const Options& options, Recorder& recorder);
void train_dpo(demo::Studio& studio, const Options& options, Recorder& recorder);
void train_grpo(demo::Studio& studio, const Options& options, Recorder& recorder);
void train_spo(demo::Studio& studio, const Options& options, Recorder& recorder);

/// ValueError names the methods if there is none of this name.
Method method_of(const std::string& name);

/// Folder of the pairs that strategy 0 to 3 of MPCF keeps.
inline std::string pairs_file(const Options& o, int strategy) {
  return o.data + "/pairs-" + std::to_string(strategy) + ".safetensors";
}

/// Token ids of `count` captions to align on, the same for the policy and the reward model.
std::vector<std::int32_t> prompt_ids(const demo::Studio& studio, std::uint64_t seed, index_t count);

}  // namespace compare
