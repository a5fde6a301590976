// SPDX-License-Identifier: MIT
// From pictures to a cache of their posteriors: filter, decode, resize, encode; what a cache has already is not done
// again.
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include <lpo/io/preference_gaps.hpp>
#include <lpo/io/resize.hpp>
#include <lpo/reward/mpcf.hpp>
#include <lpo/train/latent_pairs_file.hpp>
#include <lpo/train/posterior_cache.hpp>

#include "console.hpp"
#include "decode_picture.hpp"
#include "device.hpp"
#include "model_source.hpp"
#include "preference_data.hpp"

namespace examples {

using lpo::index_t;

/// Which pairs a program trains on, and how it makes latents of their pictures.
struct PairSettings {
  ModelSource model;       ///< its autoencoder encodes
  int resolution = 0;      ///< pictures are resized to this square
  std::string score_file;  ///< MPCF by these scores; empty keeps all pairs
  lpo::MpcfOptions mpcf;
  bool training = true;  ///< false: pairs to validate on, of which all are kept
};

/// What was found while a set was read.
struct EncodeReport {
  lpo::PreferenceCounts counts;
  index_t unlabelled = 0, images = 0, encoded = 0;
};

/// What the posteriors of a set depend on.
inline lpo::OrderedJson cache_settings(const PairSettings& pairs, const ModelFamily& family) {
  lpo::OrderedJson settings;
  settings["autoencoder"] = weights_fingerprint(pairs.model.weights("vae", family));
  settings["resolution"] = pairs.resolution;
  return settings;
}

/// The base model's autoencoder.
template <const ModelFamily& F>
class PictureEncoder {
 public:
  PictureEncoder(const PairSettings& pairs, lpo::Tape<Device>& tape) : tape_(tape), side_(pairs.resolution) {
    store_.add("vae", vae_);
    store_.allocate_frozen();
    pairs.model.load_vae(vae_, store_);
  }

  /// Mean and deviation of the scaled latent, [h, w, c] each. FileError if the picture cannot be read or gives no
  /// number.
  void encode(const std::string& bytes, const std::string& name, float* mean, float* deviation) {
    const lpo::RgbImage picture = lpo::resize_image(decode_picture(bytes, name), side_, side_);
    const auto guard = tape_.inference();
    const auto start = tape_.snapshot();
    std::vector<float> values(static_cast<std::size_t>(side_) * static_cast<std::size_t>(side_) * 3);
    lpo::values_of_image(picture, values.data());
    const auto pixels = lpo::Tensor<float, 4, Device>::from(lpo::Extents<4>{1, side_, side_, 3}, values);
    const auto posterior = vae_.encode(lpo::constant(tape_, pixels));
    const auto count = static_cast<std::size_t>(posterior.mean.size());
    tape_.context().copy_to_host(mean, posterior.mean.data(), count * sizeof(float));
    tape_.context().copy_to_host(deviation, posterior.log_variance.data(), count * sizeof(float));
    bool finite = true;
    for (std::size_t k = 0; k < count; ++k) {
      mean[k] *= vae_.scaling_factor;
      deviation[k] = std::exp(0.5f * deviation[k]) * vae_.scaling_factor;
      finite = finite && std::isfinite(mean[k]) && std::isfinite(deviation[k]);
    }
    tape_.rewind(start);
    if (!finite) throw lpo::FileError("[encode] " + name + ": the autoencoder gives a latent that is not finite");
  }

 private:
  lpo::Tape<Device>& tape_;
  int side_;
  lpo::AutoencoderKL<F.vae, float, Device> vae_;
  lpo::ParameterStore<float, Device> store_;
};

/// Makes or completes the cache in `folder` of the pairs that the filter keeps. Ctrl-C keeps what is done.
template <const ModelFamily& F>
EncodeReport encode_data_set(const PairSettings& pairs, lpo::Tape<Device>& tape, const DataSet& data,
                             const std::string& folder) {
  auto settings = cache_settings(pairs, F);
  if (pairs.training) settings["mpcf_strategy"] = pairs.score_file.empty() ? 0 : pairs.mpcf.strategy;
  if (!pairs.score_file.empty())
    settings["mpcf_tie_abs"] = pairs.mpcf.tie_abs, settings["mpcf_inclusive"] = pairs.mpcf.inclusive;
  auto filter =
      pairs.score_file.empty() ? lpo::PreferenceFilter() : lpo::PreferenceFilter(pairs.score_file, pairs.mpcf);
  const index_t side = pairs.resolution / F.vae.factor(), channels = F.unet.in_channels;
  lpo::PosteriorCacheWriter cache(folder, lpo::Extents<3>{side, side, channels}, std::move(settings));
  std::unique_ptr<PictureEncoder<F>> encoder;  // read only if there is something to encode
  EncodeReport report;
  const RecordCount count(data);
  index_t seen = 0;
  double bytes = 0;
  bool stopped = false;
  ProgressBar bar;
  const auto begin = std::chrono::steady_clock::now();
  for_each_record(data, [&](lpo::PreferenceRecord record) {
    ++seen;
    bytes += static_cast<double>(record.encoded[0].size() + record.encoded[1].size());
    if (!record.has_label) {
      ++report.unlabelled;
    } else if (filter.keeps(record.row, record.label.tie())) {
      cache.add(record, [&](int which, float* mean, float* deviation) {
        const auto at = static_cast<std::size_t>(which);
        if (!encoder) encoder = std::make_unique<PictureEncoder<F>>(pairs, tape);
        if (record.path[at].empty()) {
          encoder->encode(record.encoded[at], record.name + " picture " + std::to_string(which), mean, deviation);
        } else {
          const lpo::MappedFile file(record.path[at]);
          encoder->encode(std::string(file.text()), record.path[at], mean, deviation);
        }
      });
    }
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    stopped = !bar(
        {"encode", seen, count.total(seen, bytes), seconds, 0, {{"pictures", static_cast<double>(cache.encoded())}}});
    return !stopped;
  });
  if (stopped) {
    cache.flush();
    throw lpo::CancelledError(
        lpo::message("[encode] stopped after ", seen, " pairs; the same command goes on from there"));
  }
  report.counts = filter.counts();
  if (cache.pairs() == 0)
    throw lpo::ValueError(lpo::message("[data] ", data.path, ": of ", seen, " pairs none is left to train on: ",
                                       report.unlabelled, " have no label, the filter took the rest"));
  cache.finish();
  report.images = cache.images();
  report.encoded = cache.encoded();
  return report;
}

inline void print_counts(const EncodeReport& report, const PairSettings& pairs) {
  const auto& c = report.counts;
  std::fprintf(stderr,
               "train: kept %lld of %lld win-lose pairs and %lld of %lld ties (%s); %lld without a label; %lld "
               "pictures, %lld encoded now\n",
               static_cast<long long>(c.kept_win_lose), static_cast<long long>(c.win_lose),
               static_cast<long long>(c.kept_ties), static_cast<long long>(c.ties),
               pairs.score_file.empty() ? "no filter" : lpo::message("MPCF strategy ", pairs.mpcf.strategy).c_str(),
               static_cast<long long>(report.unlabelled), static_cast<long long>(report.images),
               static_cast<long long>(report.encoded));
}

/// The pairs of a set, whose latents must be those of this model at this size; pictures are in the cache `cache`.
template <const ModelFamily& F, class Tokenize>
lpo::LatentPairs load_pairs(const PairSettings& settings, const DataSet& data, const std::string& cache,
                            const Tokenize& tokenize) {
  const std::string folder = data.kind == DataSet::Kind::cache ? data.path : cache;
  const bool file = data.kind == DataSet::Kind::latents;
  if (data.kind == DataSet::Kind::cache) {
    const auto found = lpo::read_posterior_cache_index(folder)["settings"], wanted = cache_settings(settings, F);
    for (const auto& [key, value] : wanted.items())
      if (!found.is_object() || !found.contains(key) || found[key] != value)
        throw lpo::FileError(lpo::message("[data] ", folder, "/cache.json: ", key, " is ",
                                          found.is_object() && found.contains(key) ? found[key].dump() : "missing",
                                          ", this run has ", value.dump(),
                                          "; encode the pictures again, into another folder"));
  }
  auto pairs = file ? lpo::load_latent_pairs(data.path) : lpo::load_posterior_cache(folder, tokenize);
  const index_t side = settings.resolution / F.vae.factor(), tokens = static_cast<index_t>(tokenize("").size());
  if (pairs.height != side || pairs.width != side || pairs.channels != F.unet.in_channels || pairs.tokens != tokens)
    throw lpo::FileError(lpo::message("[data] ", file ? data.path : folder, ": latents are ", pairs.height, " x ",
                                      pairs.width, " x ", pairs.channels, " and prompts have ", pairs.tokens,
                                      " tokens; this run needs ", side, " x ", side, " x ", F.unet.in_channels, " and ",
                                      tokens, "; is --resolution right?"));
  return pairs;
}

/// What a set is, for a plan.
inline std::string data_text(const DataSet& data) {
  using Kind = DataSet::Kind;
  switch (data.kind) {
    case Kind::none:
      return "none";
    case Kind::lines:
      return lpo::message(data.files.front(), ", ", RecordCount(data).total(0, 0), " pairs of pictures");
    case Kind::shards:
      return lpo::message(data.path, ", ", data.files.size(), " shards, about ", RecordCount(data).total(0, 0),
                          " pairs of pictures");
    case Kind::cache:
      return lpo::message(data.path, ", ", lpo::read_posterior_cache_index(data.path)["pairs"].dump(),
                          " encoded pairs");
    case Kind::latents:
      return lpo::message(data.path, ", a file of latents");
  }
  return "";
}

/// Pictures that are in a pair: held-out pairs leave theirs in the set.
inline index_t pictures_of(const lpo::LatentPairs& data) {
  std::vector<bool> used(static_cast<std::size_t>(data.images()), false);
  for (const auto& [first, second] : data.pairs)
    used[static_cast<std::size_t>(first)] = used[static_cast<std::size_t>(second)] = true;
  return std::count(used.begin(), used.end(), true);
}

}  // namespace examples
