// SPDX-License-Identifier: MIT
// From pictures to a cache of their posteriors: filter, decode, resize, encode; what a cache has already is not done
// again.
#pragma once

#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include <lpo/io/preference_gaps.hpp>
#include <lpo/io/resize.hpp>
#include <lpo/train/posterior_cache.hpp>

#include "../common/console.hpp"
#include "../common/decode_picture.hpp"
#include "../common/device.hpp"
#include "options.hpp"

namespace train_lrm {

using examples::Device, lpo::index_t;

/// What was found while a set was read.
struct EncodeReport {
  lpo::PreferenceCounts counts;
  index_t unlabelled = 0, images = 0, encoded = 0;
};

/// A number that other weights do not have: FNV-1a over names and bytes, eight at a time.
inline std::string weights_fingerprint(const lpo::TensorTable& weights) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  const auto add = [&](std::uint64_t word) { hash = (hash ^ word) * 0x100000001b3u; };
  for (const std::string& key : weights.keys()) {
    for (const char c : key) add(static_cast<unsigned char>(c));
    const auto& info = weights.info(key);
    std::size_t at = 0;
    for (; at + 8 <= info.bytes; at += 8) {
      std::uint64_t word;
      std::memcpy(&word, info.data + at, 8);
      add(word);
    }
    for (; at < info.bytes; ++at) add(std::to_integer<std::uint64_t>(info.data[at]));
  }
  char text[20];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(hash));
  return text;
}

/// What the posteriors of a set depend on.
inline lpo::OrderedJson cache_settings(const Job& job, const examples::ModelFamily& family) {
  lpo::OrderedJson settings;
  settings["autoencoder"] = weights_fingerprint(job.model.weights("vae", family));
  settings["resolution"] = job.resolution;
  return settings;
}

/// The base model's autoencoder.
template <const examples::ModelFamily& F>
class PictureEncoder {
 public:
  PictureEncoder(const Job& job, lpo::Tape<Device>& tape) : tape_(tape), side_(job.resolution) {
    store_.add("vae", vae_);
    store_.allocate_frozen();
    job.model.load_vae(vae_, store_);
  }

  /// Mean and deviation of the scaled latent, [h, w, c] each. FileError if the picture cannot be read or gives no
  /// number.
  void encode(const std::string& bytes, const std::string& name, float* mean, float* deviation) {
    const lpo::RgbImage picture = lpo::resize_image(examples::decode_picture(bytes, name), side_, side_);
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
template <const examples::ModelFamily& F>
EncodeReport encode_data_set(const Job& job, lpo::Tape<Device>& tape, const DataSet& data, const std::string& folder,
                             lpo::PreferenceFilter filter, lpo::OrderedJson settings) {
  const index_t side = job.resolution / F.vae.factor(), channels = F.unet.in_channels;
  lpo::PosteriorCacheWriter cache(folder, lpo::Extents<3>{side, side, channels}, std::move(settings));
  std::unique_ptr<PictureEncoder<F>> encoder;  // read only if there is something to encode
  EncodeReport report;
  const RecordCount count(data);
  index_t seen = 0;
  double bytes = 0;
  bool stopped = false;
  examples::ProgressBar bar;
  const auto begin = std::chrono::steady_clock::now();
  for_each_record(data, [&](lpo::PreferenceRecord record) {
    ++seen;
    bytes += static_cast<double>(record.encoded[0].size() + record.encoded[1].size());
    if (!record.has_label) {
      ++report.unlabelled;
    } else if (filter.keeps(record.row, record.label.tie())) {
      cache.add(record, [&](int which, float* mean, float* deviation) {
        const auto at = static_cast<std::size_t>(which);
        if (!encoder) encoder = std::make_unique<PictureEncoder<F>>(job, tape);
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

}  // namespace train_lrm
