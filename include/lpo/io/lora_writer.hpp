// SPDX-License-Identifier: MIT
// LoraWriter: writes adapters as one LoRA file for diffusers, ComfyUI or kohya's tools, whatever they come from.
#pragma once

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include <lpo/io/lora_names.hpp>
#include <lpo/io/safetensors_file.hpp>
#include <lpo/io/safetensors_writer.hpp>

namespace lpo::inline LPO_ABI {

/// One matrix of an adapter: `down` [rank, in] or [rank, in, h, w], `up` [out, rank] or [out, rank, 1, 1].
struct LoraMatrix {
  DType dtype = DType::F32;
  std::vector<index_t> shape;
  const void* data = nullptr;
  std::shared_ptr<const void> owner = nullptr;  ///< keeps `data` alive; null if the caller does

  index_t count() const {
    index_t product = 1;
    for (const index_t extent : shape) product *= extent;
    return product;
  }
};

/// A matrix that owns its values.
inline LoraMatrix lora_matrix(std::vector<index_t> shape, std::vector<float> values) {
  auto owner = std::make_shared<const std::vector<float>>(std::move(values));
  return {DType::F32, std::move(shape), owner->data(), owner};
}

/// A tensor of an open file.
inline LoraMatrix lora_matrix(const TensorInfo& tensor) { return {tensor.dtype, tensor.shape, tensor.data, nullptr}; }

/// How a LoRA is written. `diffusers` is what pipelines and peft read today, with rank and alpha in the metadata;
/// `diffusers_old` is what the authors of LPO publish (it has no alpha, so alpha / rank is multiplied into the up
/// matrices; diffusers reads such a file right only where all adapters of a part have one rank); `kohya` is for kohya's
/// tools, ComfyUI and others, with alpha as tensors and in the metadata.
struct LoraOptions {
  LoraFormat format = LoraFormat::diffusers;
  std::optional<DType> dtype = DType::F32;           ///< nothing: the type that the matrices have
  std::string component = "unet";                    ///< the part of the pipeline that a model's adapters belong to
  std::map<std::string, std::string> metadata = {};  ///< further texts, for example ss_base_model_version
  /// Multiplies alpha / rank into the up matrices and writes alpha = rank, for programs that overlook alpha: ComfyUI,
  /// among others, does not read the one in diffusers' metadata. (diffusers refuses files of its own form with alpha
  /// tensors in them, so alpha cannot be written in both ways there.)
  bool fold_alpha = false;
};

namespace detail {

/// The last part of a module's path: "to_q", or "to_out.0" where it is a number in a list.
inline std::string own_module_name(const std::string& path) {
  std::size_t dot = path.rfind('.');
  if (dot != std::string::npos && path.find_first_not_of("0123456789", dot + 1) == std::string::npos)
    dot = dot == 0 ? dot : path.rfind('.', dot - 1);
  return path.substr(dot == std::string::npos ? 0 : dot + 1);
}

}  // namespace detail

/// Collects adapters, of several components if need be, then writes them.
class LoraWriter {
 public:
  explicit LoraWriter(LoraOptions options) : options_(std::move(options)) {}

  /// The adapter of one module: delta W = alpha / rank * up * down. `path` as diffusers' models name it.
  void add(const std::string& component, const std::string& path, double alpha, LoraMatrix down, LoraMatrix up) {
    if (down.shape.size() < 2 || up.shape.size() < 2 || down.shape[0] != up.shape[1])
      throw ValueError(message("[LoraWriter] adapter of \"", path, "\" has down ", shape_text(down.shape), " and up ",
                               shape_text(up.shape), "; expected [rank, in] and [out, rank]"));
    entries_[component].push_back({path, alpha, std::move(down), std::move(up)});
  }

  /// The metadata then lists the last part of each path as target ("to_q"), not every path. To be set when the model
  /// has no other modules of these names.
  void name_targets_by_suffix() { suffix_targets_ = true; }

  /// Writes the file, entirely or not at all.
  void write(const std::string& path) const {
    if (entries_.empty()) throw ValueError("[LoraWriter] there are no adapters to write");
    SafetensorsWriter writer;
    writer.set_metadata("format", "pt");
    SortedJson config;
    for (const auto& [component, adapters] : entries_) {
      for (const Entry& entry : adapters) add_tensors(writer, component, entry);
      describe(config, component, adapters);
    }
    if (options_.format == LoraFormat::diffusers) {
      writer.set_metadata("lora_adapter_metadata", config.dump(2));
    } else if (options_.format == LoraFormat::kohya) {
      const std::string main = entries_.contains("unet") ? "unet." : entries_.begin()->first + ".";
      writer.set_metadata("ss_network_module", "networks.lora");
      writer.set_metadata("ss_network_dim", config.at(main + "r").dump());
      writer.set_metadata("ss_network_alpha", config.at(main + "lora_alpha").dump());
    }
    for (const auto& [key, value] : options_.metadata) writer.set_metadata(key, value);
    writer.write(path);
  }

 private:
  struct Entry {
    std::string path;
    double alpha;
    LoraMatrix down, up;

    index_t rank() const { return down.shape[0]; }
  };

  bool folds() const { return options_.fold_alpha || options_.format == LoraFormat::diffusers_old; }

  /// alpha as it is written.
  double alpha_of(const Entry& entry) const { return folds() ? static_cast<double>(entry.rank()) : entry.alpha; }

  /// The key of a module's adapter without the role.
  std::string base_of(const std::string& component, const std::string& path) const {
    if (options_.format != LoraFormat::kohya) return component + "." + path;
    // SDXL's first text encoder is te1, SD1.5's only one te.
    const std::string part = component == "text_encoder_2"         ? "te2"
                             : component != "text_encoder"         ? component
                             : entries_.contains("text_encoder_2") ? "te1"
                                                                   : "te";
    return "lora_" + part + "_" + detail::with_underscores(path);
  }

  void add_tensors(SafetensorsWriter& writer, const std::string& component, const Entry& entry) const {
    const std::string base = base_of(component, entry.path);
    std::string down = ".lora_A.weight", up = ".lora_B.weight";
    if (options_.format == LoraFormat::diffusers_old) {
      const std::string infix = component.starts_with("text_encoder") ? ".lora_linear_layer" : ".lora";
      down = infix + ".down.weight", up = infix + ".up.weight";
    } else if (options_.format == LoraFormat::kohya) {
      down = ".lora_down.weight", up = ".lora_up.weight";
      writer.add_owned(base + ".alpha", DType::F32, {}, std::vector<float>{static_cast<float>(alpha_of(entry))});
    }
    add_matrix(writer, base + down, entry.down, 1.0);
    add_matrix(writer, base + up, entry.up, folds() ? entry.alpha / static_cast<double>(entry.rank()) : 1.0);
  }

  void add_matrix(SafetensorsWriter& writer, const std::string& key, const LoraMatrix& matrix, double scale) const {
    const DType target = options_.dtype.value_or(matrix.dtype);
    if (!is_floating(target))
      throw ValueError(
          message("[LoraWriter] \"", key, "\" cannot be stored as ", dtype_name(target), "; use F32, F16 or BF16"));
    if (scale == 1.0) {
      writer.add_stored(key, target, matrix.dtype, matrix.shape, matrix.data, matrix.owner);
      return;
    }
    writer.add_computed(key, target, matrix.shape, [matrix, scale] {
      std::vector<float> values(static_cast<std::size_t>(matrix.count()));
      convert_from(matrix.dtype, matrix.data, values.data(), matrix.count());
      for (float& value : values) value = static_cast<float>(static_cast<double>(value) * scale);
      return values;
    });
  }

  /// What most adapters have; the first of equals.
  template <class Value>
  static Value commonest(const std::vector<Value>& values) {
    std::map<Value, std::size_t> counts;
    for (const Value& value : values) ++counts[value];
    return std::max_element(counts.begin(), counts.end(),
                            [](const auto& a, const auto& b) { return a.second < b.second; })
        ->first;
  }

  /// peft's LoraConfig of one component.
  void describe(SortedJson& config, const std::string& component, const std::vector<Entry>& adapters) const {
    std::vector<index_t> ranks;
    std::vector<double> alphas;
    std::set<std::string> targets;
    for (const Entry& entry : adapters) {
      ranks.push_back(entry.rank());
      alphas.push_back(alpha_of(entry));
      targets.insert(suffix_targets_ ? detail::own_module_name(entry.path) : entry.path);
    }
    const index_t rank = commonest(ranks);
    const double alpha = commonest(alphas);
    auto rank_pattern = SortedJson::object(), alpha_pattern = SortedJson::object();
    for (const Entry& entry : adapters) {
      if (entry.rank() != rank) rank_pattern[entry.path] = entry.rank();
      if (alpha_of(entry) != alpha) alpha_pattern[entry.path] = alpha_of(entry);
    }
    const std::string part = component + ".";
    config[part + "r"] = rank;
    config[part + "lora_alpha"] = alpha;
    config[part + "lora_dropout"] = 0.0;
    config[part + "bias"] = "none";
    config[part + "target_modules"] = std::vector<std::string>(targets.begin(), targets.end());
    config[part + "rank_pattern"] = rank_pattern;
    config[part + "alpha_pattern"] = alpha_pattern;
    config[part + "use_rslora"] = false;
  }

  LoraOptions options_;
  std::map<std::string, std::vector<Entry>> entries_;
  bool suffix_targets_ = false;
};

}  // namespace lpo::inline LPO_ABI
