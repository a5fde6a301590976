// SPDX-License-Identifier: MIT
// Checkpoints of a training run: `checkpoint-<step>/` folders that appear whole or not at all, and resume from the newest.
#pragma once

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <lpo/base/device.hpp>
#include <lpo/base/extents.hpp>
#include <lpo/base/fnv1a.hpp>
#include <lpo/distributed/collectives.hpp>
#include <lpo/io/file.hpp>
#include <lpo/io/safetensors.hpp>
#include <lpo/tensor/memory.hpp>

namespace lpo::inline LPO_ABI {

/// A named array of floats: of the host, or, with its transfers, of the device that trains.
struct TrainingBuffer {
  std::string name;
  std::span<float> values;  ///< addresses where the buffer lives
  void (*to_host)(void*, const void*, std::size_t) = nullptr;    ///< null: values are the host's
  void (*from_host)(void*, const void*, std::size_t) = nullptr;
};

/// `count` floats in the memory of Device.
template <class Device>
TrainingBuffer device_buffer(std::string name, float* values, std::size_t count) {
  if constexpr (is_host_device<Device>)
    return {std::move(name), {values, count}};
  else
    return {std::move(name), {values, count}, &DeviceMemory<Device>::copy_to_host, &DeviceMemory<Device>::copy_from_host};
}

/// What every trainer keeps: named float buffers (weights, moments) and a JSON object (step, options that must not change).
/// Random numbers need no state: they are functions of the seed and the step.
struct TrainingState {
  index_t step = 0;
  nlohmann::ordered_json settings;  ///< compared on resume: a run continues only with the settings it began with
  std::vector<TrainingBuffer> buffers;
};

/// What a state's buffers held at a moment, on the host.
class TrainingStateCopy {
 public:
  void take(const TrainingState& state) {
    values_.resize(state.buffers.size());
    for (std::size_t i = 0; i < values_.size(); ++i) {
      const TrainingBuffer& buffer = state.buffers[i];
      values_[i].resize(buffer.values.size());
      if (buffer.to_host == nullptr)
        std::copy(buffer.values.begin(), buffer.values.end(), values_[i].begin());
      else
        buffer.to_host(values_[i].data(), buffer.values.data(), buffer.values.size_bytes());
    }
  }
  /// Into the buffers that they were taken from.
  void put_back(const TrainingState& state) const {
    for (std::size_t i = 0; i < values_.size(); ++i) {
      const TrainingBuffer& buffer = state.buffers[i];
      if (buffer.from_host == nullptr)
        std::copy(values_[i].begin(), values_[i].end(), buffer.values.begin());
      else
        buffer.from_host(buffer.values.data(), values_[i].data(), buffer.values.size_bytes());
    }
  }

 private:
  std::vector<std::vector<float>> values_;
};

namespace detail {

/// Makes the names in a directory durable. Some file systems cannot; what the files hold is safe all the same.
inline void sync_directory(const std::string& path) {
  const Descriptor directory(::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() >= 0) ::fsync(directory.get());
}

}  // namespace detail

/// Writes and finds checkpoints in one folder.
class CheckpointFolder {
 public:
  static constexpr int format_version = 2;

  /// Keeps the newest `limit` checkpoints (0 keeps all).
  CheckpointFolder(std::string folder, int limit) : folder_(std::move(folder)), limit_(limit) {}

  /// Writes `checkpoint-<step>` under a temporary name, with what `write_more(folder)` adds, and renames it when it is
  /// complete. Then `latest` is a link to it. Whenever the process dies, the newest checkpoint is a whole one.
  void save(const TrainingState& state, const std::function<void(const std::string&)>& write_more = {}) const {
    namespace fs = std::filesystem;
    const std::string name = "checkpoint-" + std::to_string(state.step);
    const fs::path partial = fs::path(folder_) / (".partial-" + name);
    std::error_code error;
    fs::create_directories(folder_, error);
    remove_left_overs();
    if (!fs::create_directory(partial, error))
      throw FileError(message("[checkpoint] cannot create ", partial.string(), ": ", error.message()));
    SafetensorsWriter writer;
    for (const auto& buffer : state.buffers) {
      const auto count = static_cast<index_t>(buffer.values.size());
      if (buffer.to_host == nullptr) {
        writer.add(buffer.name, DType::F32, {count}, buffer.values.data());
      } else {
        std::vector<float> host(buffer.values.size());
        buffer.to_host(host.data(), buffer.values.data(), buffer.values.size_bytes());
        writer.add_owned(buffer.name, DType::F32, {count}, std::move(host));
      }
    }
    writer.write((partial / "state.safetensors").string());
    nlohmann::ordered_json json;
    json["format_version"] = format_version;
    json["step"] = state.step;
    json["settings"] = state.settings;
    const std::string text = json.dump(2) + "\n";
    write_file_atomically((partial / "trainer_state.json").string(),
                          [&](FileSink& sink) { sink.write(text.data(), text.size()); });
    if (write_more) write_more(partial.string());
    detail::sync_directory(partial.string());
    publish(partial, name);
    prune();
    remove_left_overs();
  }

  const std::string& path() const { return folder_; }

  /// Whether there is a complete checkpoint of this step.
  bool contains(index_t step) const {
    const auto found = steps();
    return std::binary_search(found.begin(), found.end(), step);
  }

  /// Steps of the complete checkpoints, ascending.
  std::vector<index_t> steps() const {
    namespace fs = std::filesystem;
    std::vector<index_t> found;
    std::error_code error;
    for (fs::directory_iterator it(folder_, error), end; !error && it != end; it.increment(error)) {
      const std::string name = it->path().filename().string();
      constexpr std::string_view prefix = "checkpoint-";
      if (name.rfind(prefix, 0) != 0 || !fs::exists(it->path() / "trainer_state.json")) continue;
      const std::string digits = name.substr(prefix.size());
      if (!digits.empty() && digits.size() < 18 && digits.find_first_not_of("0123456789") == std::string::npos)
        found.push_back(std::stoll(digits));
    }
    std::sort(found.begin(), found.end());
    return found;
  }

  /// Removes all checkpoints, for a run that begins anew.
  void clear() const {
    for (const index_t step : steps()) set_aside("checkpoint-" + std::to_string(step));
    std::error_code error;
    std::filesystem::remove(std::filesystem::path(folder_) / "latest", error);
    remove_left_overs();
  }

  /// Restores the newest checkpoint into `state`'s buffers and step. False when there is none. Throws FileError when the
  /// checkpoint belongs to a run with other settings or buffer sizes; nothing is changed then.
  bool resume(TrainingState& state) const {
    namespace fs = std::filesystem;
    const auto found = steps();
    if (found.empty()) return false;
    const fs::path path = fs::path(folder_) / ("checkpoint-" + std::to_string(found.back()));
    const std::string json_path = (path / "trainer_state.json").string();
    const auto json = nlohmann::ordered_json::parse(read_text_file(json_path), nullptr, false);
    if (!json.is_object() || !json.contains("step") || !json["step"].is_number_integer() || !json.contains("settings"))
      throw FileError(message("[resume] ", json_path, " is not a trainer state; remove ", path.string(), " to resume from an older one"));
    if (json.value("format_version", 0) != format_version)
      throw FileError(message("[resume] ", json_path, " has format version ", json.value("format_version", 0), ", this program reads ",
                              format_version));
    compare_settings(json["settings"], state.settings, json_path);
    std::vector<std::vector<float>> loaded;
    try {
      const SafetensorsFile file((path / "state.safetensors").string());
      for (const auto& buffer : state.buffers) loaded.push_back(file.read_vector<float>(buffer.name));
    } catch (const FileError& error) {  // a disk or a copy that lost a part
      throw FileError(message("[resume] ", path.string(), " cannot be read: ", error.what(), "; remove this folder to ",
                              found.size() > 1 ? message("go on from step ", found[found.size() - 2]) : "begin anew"));
    }
    for (std::size_t i = 0; i < loaded.size(); ++i) {
      const auto& [name, values, to_host, from_host] = state.buffers[i];
      if (loaded[i].size() != values.size())
        throw FileError(message("[resume] ", path.string(), "/state.safetensors: ", name, " holds ",
                                static_cast<index_t>(loaded[i].size()), " values, this model needs ",
                                static_cast<index_t>(values.size())));
    }
    for (std::size_t i = 0; i < loaded.size(); ++i) {
      const auto& buffer = state.buffers[i];
      if (buffer.from_host == nullptr)
        std::copy(loaded[i].begin(), loaded[i].end(), buffer.values.begin());
      else
        buffer.from_host(buffer.values.data(), loaded[i].data(), buffer.values.size_bytes());
    }
    state.step = json["step"].get<index_t>();
    return true;
  }

 private:
  /// Of long lists the beginning.
  static std::string short_text(const nlohmann::ordered_json& value) {
    constexpr std::size_t longest = 80;
    const std::string text = value.dump();
    return value.is_array() && text.size() > longest ? text.substr(0, longest) + "..." : text;
  }

  /// "saved 1, now 2"; of two lists of one length that are long, where they begin to differ.
  static std::string difference(const nlohmann::ordered_json& saved, const nlohmann::ordered_json& now) {
    constexpr std::size_t few = 4;
    if (!saved.is_array() || !now.is_array() || saved.size() != now.size() || now.size() <= few)
      return message("saved ", short_text(saved), ", now ", short_text(now));
    std::size_t first = now.size(), count = 0;
    for (std::size_t i = now.size(); i-- > 0;)
      if (saved[i] != now[i]) first = i, ++count;
    return message(count, " of ", now.size(), " differ, first number ", first, ": saved ", saved[first].dump(), ", now ",
                   now[first].dump());
  }

  static void compare_settings(const nlohmann::ordered_json& found, const nlohmann::ordered_json& wanted, const std::string& path) {
    std::string differences;
    for (const auto& [key, value] : wanted.items()) {
      if (!found.contains(key))
        differences += message("\n  ", key, ": saved nothing, now ", short_text(value));
      else if (found[key] != value)
        differences += message("\n  ", key, ": ", difference(found[key], value));
    }
    for (const auto& [key, value] : found.items())
      if (!wanted.contains(key)) differences += message("\n  ", key, ": saved ", short_text(value), ", now nothing");
    if (!differences.empty())
      throw FileError(message("[resume] ", path, " was saved with other settings:", differences,
                              "\n  use the saved settings, or another output folder for a new run"));
  }

  /// Gives a complete folder its name. Folders cannot replace each other in one step, so an old one of the name moves
  /// aside first.
  void publish(const std::filesystem::path& partial, const std::string& name) const {
    namespace fs = std::filesystem;
    std::error_code error;
    const fs::path target = fs::path(folder_) / name;
    if (fs::exists(target, error)) set_aside(name);
    fs::rename(partial, target, error);
    if (error)
      throw FileError(
          message("[checkpoint] cannot rename ", partial.string(), " to ", target.string(), ": ", error.message()));
    detail::sync_directory(folder_);
    // Where a file system has no links, there is none.
    const fs::path link = fs::path(folder_) / ".latest";
    fs::remove(link, error);
    fs::create_directory_symlink(name, link, error);
    if (!error) fs::rename(link, fs::path(folder_) / "latest", error);
  }

  void prune() const {
    if (limit_ <= 0) return;
    auto found = steps();
    for (std::size_t i = 0; i + static_cast<std::size_t>(limit_) < found.size(); ++i)
      set_aside("checkpoint-" + std::to_string(found[i]));
  }

  /// Removing a folder takes time, in which it would be a checkpoint that cannot be read: it loses its name first.
  void set_aside(const std::string& name) const {
    namespace fs = std::filesystem;
    std::error_code error;
    const fs::path aside = fs::path(folder_) / (".removed-" + name);
    fs::remove_all(aside, error);
    fs::rename(fs::path(folder_) / name, aside, error);
  }

  /// What this process set aside, and what an earlier one could not finish.
  void remove_left_overs() const {
    namespace fs = std::filesystem;
    std::error_code error;
    std::vector<fs::path> found;
    for (fs::directory_iterator it(folder_, error), end; !error && it != end; it.increment(error)) {
      const std::string name = it->path().filename().string();
      if (name.starts_with(".partial-checkpoint-") || name.starts_with(".removed-checkpoint-"))
        found.push_back(it->path());
    }
    for (const auto& path : found) fs::remove_all(path, error);
  }

  std::string folder_;
  int limit_;
};

/// Begins a run on all ranks: with `resume`, from the newest checkpoint. Whether there was one. Throws when the ranks do
/// not have the same settings or do not find the same checkpoint; and, without `resume`, when the folder has checkpoints:
/// those of an earlier run would count as newer than this run's.
template <class Ranks>
bool begin_together(const CheckpointFolder& folder, bool resume, TrainingState& state, Ranks& ranks) {
  const std::uint64_t hash = Fnv1a().add(state.settings.dump()).value();
  for (const std::uint64_t other : gather_values(ranks, std::vector<std::uint64_t>{hash}))
    if (other != hash) throw ValueError("[Communicator] ranks have different options or data; start all of them alike");
  if (!resume && !folder.steps().empty())
    throw ValueError(message("[train] the output folder ", folder.path(),
                             " has checkpoints of an earlier run; set resume to go on with it, or use another folder"));
  const bool found = resume && folder.resume(state);
  const auto steps = gather_values(ranks, std::vector<index_t>{found ? state.step : -1});
  for (std::size_t rank = 0; rank < steps.size(); ++rank)
    if (steps[rank] != steps[0])
      throw FileError(message("[resume] rank 0 found the checkpoint of step ", steps[0], ", rank ", rank, " that of ",
                              steps[rank], " (-1: none); the output folder must be one that all ranks see"));
  return found;
}

}  // namespace lpo::inline LPO_ABI
