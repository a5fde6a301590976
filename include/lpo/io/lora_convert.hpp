// SPDX-License-Identifier: MIT
// Converting a LoRA file between the conventions of diffusers, peft and kohya.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <iterator>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lpo/io/lora_base.hpp>
#include <lpo/io/lora_writer.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// True if the first part of a path is one that UNets of Stable Diffusion or CLIP's text encoders have.
inline bool is_known_module(const std::string& path) {
  static constexpr std::string_view roots[] = {"down_blocks", "up_blocks",      "mid_block",     "conv_in",
                                               "conv_out",    "time_embedding", "add_embedding", "class_embedding",
                                               "text_model",  "text_projection"};
  return std::find(std::begin(roots), std::end(roots), path.substr(0, path.find('.'))) != std::end(roots);
}

/// Metadata that describes the old file's layout or content and would be wrong in the new one.
inline bool is_stale_metadata(const std::string& key) {
  return key == "format" || key == "lora_adapter_metadata" || key == "ss_network_module" || key == "ss_network_dim" ||
         key == "ss_network_alpha" || key == "modelspec.hash_sha256" || key.starts_with("sshs_");
}

/// FileError unless both files adapt the same modules with the same ranks and scales; `folded` scales are 1.
inline void require_same_adapters(const LoraFile& one, const LoraFile& other, bool folded) {
  const auto describe = [](const LoraFile::Adapter& a) {
    return message("\"", a.path, "\" of ", a.component, ", rank ", a.rank, ", scale ", a.scale());
  };
  const auto left = one.adapters(), right = other.adapters();
  if (left.size() != right.size())
    throw FileError(message("[lora] ", other.file().path(), " has ", right.size(), " adapters, ", one.file().path(),
                            " ", left.size()));
  for (std::size_t i = 0; i < left.size(); ++i) {
    const double scale = folded ? 1.0 : left[i]->scale();
    const bool same = left[i]->component == right[i]->component &&
                      with_underscores(left[i]->path) == with_underscores(right[i]->path) &&
                      left[i]->rank == right[i]->rank &&
                      std::fabs(scale - right[i]->scale()) <= 1e-6 * std::fabs(scale);
    if (!same)
      throw FileError(message("[lora] ", other.file().path(), " has ", describe(*right[i]), " where ",
                              one.file().path(), " has ", describe(*left[i])));
  }
}

}  // namespace detail

/// Writes the adapters of `file` in another form; `options.component` is not used. kohya's names have no dots: they
/// come from the base, if one is given, else from what UNets and CLIP are known to contain (FileError for other
/// models). Texts of the old metadata are kept where they still hold. The file is read again and compared.
inline void convert_lora(const LoraFile& file, const std::string& path, LoraOptions options,
                         const std::vector<BaseComponent>& base = {}) {
  file.require_plain();
  std::map<const LoraFile::Adapter*, std::string> path_in_base;
  for (const LoraTarget& target : fit_lora(file, base).targets)
    path_in_base[target.adapter] = target.key.substr(0, target.key.size() - 7);
  for (const auto& [key, value] : file.file().metadata())
    if (!detail::is_stale_metadata(key)) options.metadata.emplace(key, value);
  LoraWriter writer(options);
  for (const auto* adapter : file.adapters()) {
    const auto known = path_in_base.find(adapter);
    const std::string& name = known == path_in_base.end() ? adapter->path : known->second;
    // Names that came with dots are right as they are; those of kohya's files were guessed.
    if (known == path_in_base.end() && options.format != LoraFormat::kohya && !detail::is_known_module(name) &&
        file.formats().contains(LoraFormat::kohya))
      throw FileError(message("[lora] ", file.file().path(), ": cannot tell which underscores of \"", adapter->down,
                              "\" are dots; give the base model"));
    writer.add(adapter->component, name, adapter->scale() * static_cast<double>(adapter->rank),
               lora_matrix(file.file().info(adapter->down)), lora_matrix(file.file().info(adapter->up)));
  }
  writer.write(path);
  detail::require_same_adapters(file, LoraFile(path),
                                options.fold_alpha || options.format == LoraFormat::diffusers_old);
}

}  // namespace lpo::inline LPO_ABI
