// SPDX-License-Identifier: MIT
// LoraFile: the adapters in a safetensors or torch file, whatever naming they use (diffusers, peft, kohya).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <map>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lpo/io/checkpoint.hpp>
#include <lpo/io/json.hpp>
#include <lpo/io/lora_names.hpp>
#include <lpo/io/tensor_table.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

/// The shape of up * down, a 1x1 kernel left out; empty if `up` has a kernel of its own.
inline std::vector<index_t> delta_shape(const std::vector<index_t>& down, const std::vector<index_t>& up) {
  std::vector<index_t> delta = without_unit_kernel(down);
  const std::vector<index_t> left = without_unit_kernel(up);
  if (left.size() != 2 || delta.size() < 2) return {};
  delta[0] = left[0];
  return delta;
}

}  // namespace detail

/// A LoRA file with its keys sorted by module. Text encoders' adapters are found under the components "text_encoder"
/// and "text_encoder_2". Keys without any prefix belong to "unet".
class LoraFile {
 public:
  /// One adapter: delta W = alpha / rank * up * down.
  struct Adapter {
    std::string component, path;  ///< path in diffusers' names, "mid_block.attentions.0.proj_in"
    std::string down, up, alpha_key;
    index_t rank = 0;
    double alpha = 0;
    bool rank_stabilised = false;  ///< alpha / sqrt(rank) instead (rsLoRA)

    double scale() const {
      return alpha / (rank_stabilised ? std::sqrt(static_cast<double>(rank)) : static_cast<double>(rank));
    }
  };

  /// A key of an adapter that is no plain LoRA, and of what kind it is: "DoRA", "LoHa" …
  struct OtherKey {
    std::string key, kind;
  };

  /// `layers_per_block` is the UNet's, for files that number blocks as ldm does. FileError if the file cannot be read (see
  /// `open_tensor_file`), if half of a pair is missing, or if it holds no adapter at all.
  explicit LoraFile(const std::string& path, int layers_per_block = 2)
      : LoraFile(open_tensor_file(path), layers_per_block) {}
  explicit LoraFile(TensorTable file, int layers_per_block = 2) : file_(std::move(file)) {
    for (const std::string& key : file_.keys()) sort_in(key, layers_per_block);
    if (adapters_.empty() && other_.empty())
      throw FileError(message("[LoraFile] ", file_.path(), ": holds no LoRA; its keys begin with ",
                              unknown_.empty() ? std::string("nothing") : "\"" + unknown_.front() + "\""));
    if (const auto found = file_.metadata().find("lora_adapter_metadata"); found != file_.metadata().end())
      config_ = parse_json<OrderedJson>(found->second, "LoraFile", file_.path());
    // The alphas of a LoHa or LoKr.
    if (!other_.empty()) std::erase_if(adapters_, [](const auto& a) { return (a.second.down + a.second.up).empty(); });
    for (auto& [id, adapter] : adapters_) finish(adapter);
  }

  const TensorTable& file() const { return file_; }

  /// The conventions that its keys follow: one, in a sane file.
  const std::set<LoraFormat>& formats() const { return formats_; }

  /// The largest rank: what `enable_lora` needs.
  index_t rank() const {
    index_t largest = 0;
    for (const auto& [id, adapter] : adapters_) largest = std::max(largest, adapter.rank);
    return largest;
  }

  /// The adapter of a module, by its name in the model ("mid_block.attentions.0….attn1.to_q"), or null.
  const Adapter* find(const std::string& component, const std::string& path) const {
    const auto found = adapters_.find({component, detail::with_underscores(path)});
    return found == adapters_.end() ? nullptr : &found->second;
  }

  std::vector<const Adapter*> adapters() const {
    std::vector<const Adapter*> all;
    for (const auto& [id, adapter] : adapters_) all.push_back(&adapter);
    return all;
  }

  /// Keys that belong to no adapter.
  const std::vector<std::string>& unknown_keys() const { return unknown_; }

  /// Keys of DoRA, LoHa and other adapters, which lpo does not apply.
  const std::vector<OtherKey>& other_keys() const { return other_; }

  /// FileError if the file holds adapters of another kind: applied without them it would do something else than it
  /// should. Everything that loads, merges or converts a LoRA asks this first.
  void require_plain() const {
    if (other_.empty()) return;
    std::vector<std::string> named;
    for (const OtherKey& other : other_) named.push_back(message("\"", other.key, "\" (", other.kind, ")"));
    throw FileError(message("[LoraFile] ", file_.path(), ": ", other_.size(),
                            other_.size() == 1 ? " key is" : " keys are",
                            " of another kind than plain LoRA: ", detail::listed(named, 4),
                            "; merge it with the tool that made it, or extract a LoRA from the merged weights"));
  }

 private:
  void sort_in(const std::string& key, int layers_per_block) {
    if (const char* kind = detail::other_adapter_kind(key)) {
      other_.push_back({key, kind});
      return;
    }
    const auto parsed = detail::parse_lora_key(key, layers_per_block);
    if (!parsed) {
      unknown_.push_back(key);
      return;
    }
    formats_.insert(parsed->format);
    Adapter& adapter = adapters_[{parsed->component, detail::with_underscores(parsed->path)}];
    adapter.component = parsed->component;
    adapter.path = parsed->path;
    std::string& place = parsed->role == detail::LoraRole::down ? adapter.down
                         : parsed->role == detail::LoraRole::up ? adapter.up
                                                                : adapter.alpha_key;
    if (!place.empty())
      throw FileError(message("[LoraFile] ", file_.path(), ": \"", place, "\" and \"", key, "\" name the same weight"));
    place = key;
  }

  void finish(Adapter& adapter) {
    if (adapter.down.empty() || adapter.up.empty())
      throw FileError(message("[LoraFile] ", file_.path(), ": \"", adapter.down + adapter.up + adapter.alpha_key,
                              "\" has no partner: an adapter needs both matrices"));
    const auto& down = file_.info(adapter.down).shape;
    const auto& up = file_.info(adapter.up).shape;
    if (down.size() < 2 || up.size() < 2 || down[0] != up[1] || down[0] < 1)
      throw FileError(message("[LoraFile] ", file_.path(), ": \"", adapter.down, "\" is ", shape_text(down), ", \"",
                              adapter.up, "\" is ", shape_text(up), "; expected [rank, in] and [out, rank]"));
    adapter.rank = down[0];
    adapter.alpha = static_cast<double>(adapter.rank);
    if (!adapter.alpha_key.empty())
      file_.read(adapter.alpha_key, &adapter.alpha, index_t{1});
    else
      alpha_from_metadata(adapter);
    if (!std::isfinite(adapter.alpha))
      throw FileError(message("[LoraFile] ", file_.path(), ": alpha of \"", adapter.down, "\" is not a finite number"));
  }

  /// diffusers writes peft's LoraConfig as JSON text, its keys behind the component's name.
  void alpha_from_metadata(Adapter& adapter) const {
    const auto setting = [&](const char* name) -> const OrderedJson* {
      if (!config_.is_object()) return nullptr;
      const auto at = config_.find(adapter.component + "." + name);
      return at == config_.end() ? nullptr : &*at;
    };
    if (const auto* alpha = setting("lora_alpha"); alpha != nullptr && alpha->is_number())
      adapter.alpha = alpha->get<double>();
    if (const auto* patterns = setting("alpha_pattern"); patterns != nullptr && patterns->is_object())
      for (const auto& [pattern, value] : patterns->items()) {
        if (!value.is_number() || !matches(pattern, adapter.path)) continue;
        adapter.alpha = value.template get<double>();  // the first that matches, as in peft
        break;
      }
    if (const auto* stabilised = setting("use_rslora"); stabilised != nullptr && stabilised->is_boolean())
      adapter.rank_stabilised = stabilised->get<bool>();
  }

  /// peft reads `pattern` as the regular expression (.*\.)?(pattern)$; names of modules are all that is written in
  /// practice, with "^" for a whole path.
  bool matches(const std::string& pattern, const std::string& path) const {
    std::string name;
    for (std::size_t i = 0; i < pattern.size(); ++i) {
      if (pattern[i] == '\\' && i + 1 < pattern.size() && pattern[i + 1] == '.') continue;
      if ((pattern[i] == '^' && i == 0) || (pattern[i] == '$' && i + 1 == pattern.size())) continue;
      if (std::string_view("*+?()[]{}|\\^$").find(pattern[i]) != std::string_view::npos)
        throw FileError(message("[LoraFile] ", file_.path(), ": alpha_pattern \"", pattern,
                                "\" is a regular expression; only names of modules are read"));
      name += pattern[i];
    }
    return path == name || (!pattern.starts_with('^') && path.ends_with("." + name));
  }

  TensorTable file_;
  std::map<std::pair<std::string, std::string>, Adapter> adapters_;
  std::vector<std::string> unknown_;
  std::vector<OtherKey> other_;
  std::set<LoraFormat> formats_;
  OrderedJson config_;
};

}  // namespace lpo::inline LPO_ABI
