// SPDX-License-Identifier: MIT
// A copy of a pipeline's folder with a LoRA merged into its weights: complete, or not there at all.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include <lpo/io/lora_merge.hpp>

namespace lora_tool {

/// A folder under a temporary name, gone at the end unless it was renamed to its own.
class TemporaryFolder {
 public:
  /// FileError if `path` exists already.
  explicit TemporaryFolder(std::string path) : final_(std::move(path)) {
    while (final_.size() > 1 && final_.back() == '/') final_.pop_back();
    if (std::filesystem::exists(final_))
      throw lpo::FileError(lpo::message("[lora] ", final_, " exists; give the name of a new folder"));
    name_ = lpo::message(final_, ".tmp-", ::getpid());
    lpo::make_directories(name_);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  ~TemporaryFolder() {
    std::error_code ignored;
    if (!name_.empty()) std::filesystem::remove_all(name_, ignored);
  }

  const std::string& path() const { return name_; }

  void keep() {
    std::error_code error;
    std::filesystem::rename(name_, final_, error);
    if (error) throw lpo::FileError(lpo::message("[lora] ", final_, ": ", error.message()));
    name_.clear();
  }

 private:
  std::string final_, name_;
};

/// True for the weights of `part` in whatever form, "unet/diffusion_pytorch_model.bin" or a shard's index.
inline bool is_weight_file(const std::string& relative, const lpo::BaseComponent& part) {
  const std::string stem = part.file_name.substr(0, part.file_name.find('.', part.file_name.rfind('/') + 1));
  const std::string_view rest = std::string_view(relative).substr(std::min(relative.size(), stem.size()));
  return relative.starts_with(stem) && (rest.starts_with('.') || rest.starts_with('-'));
}

/// Copies all files of `from` that are not weights of `rewritten`; links to files are followed, as in a download cache.
inline void copy_other_files(const std::string& from, const std::string& to,
                             const std::vector<const lpo::BaseComponent*>& rewritten) {
  namespace fs = std::filesystem;
  try {
    for (const auto& entry : fs::recursive_directory_iterator(from, fs::directory_options::follow_directory_symlink)) {
      const std::string relative = fs::relative(entry.path(), from).string();
      bool skip = false;
      for (const auto* part : rewritten) skip = skip || is_weight_file(relative, *part);
      if (entry.is_directory())
        lpo::make_directories(to + "/" + relative);
      else if (!skip)
        fs::copy_file(entry.path(), to + "/" + relative);
    }
  } catch (const fs::filesystem_error& error) {
    throw lpo::FileError(lpo::message("[lora] ", error.path1().string(), ": ", error.code().message()));
  }
}

/// Merges a LoRA into the parts of the folder `from` that it adapts and writes all of it to `out`, which must not
/// exist. With a type in `options`, the UNet and all text encoders get it. `progress(part)` gives the callback for one
/// part.
template <class Progress>
void merge_folder(const lpo::LoraFile& file, const std::string& from, const std::vector<lpo::BaseComponent>& base,
                  const std::string& out, const lpo::LoraMergeOptions& options, Progress&& progress) {
  file.require_plain();
  const auto fit = lpo::fit_lora(file, base);
  lpo::detail::require_fit(file, base, fit);
  std::vector<const lpo::BaseComponent*> rewritten;
  for (const auto& part : base) {
    bool touched = options.dtype.has_value();
    for (const auto& target : fit.targets) touched = touched || target.part == &part;
    if (touched) rewritten.push_back(&part);
  }
  TemporaryFolder folder(out);
  copy_other_files(from, folder.path(), rewritten);
  for (const auto* part : rewritten) {
    lpo::LoraMergeOptions one = options;
    one.progress = progress(*part);
    lpo::merge_lora_file(file, base, fit, *part, folder.path() + "/" + part->file_name, one);
  }
  folder.keep();
}

}  // namespace lora_tool
