// SPDX-License-Identifier: MIT
// The autoencoder in parts: tiles equal diffusers', slices equal the whole batch, memory is that of a tile.
#include <doctest/doctest.h>

#include <cstring>
#include <memory>

#include <lpo/model/vae_tiling.hpp>

#include "model_backends.hpp"
#include "model_goldens.hpp"

using namespace lpo;

namespace {

template <class T, class Device>
struct Small {
  std::unique_ptr<AutoencoderKL<golden::vae, T, Device>> vae = std::make_unique<AutoencoderKL<golden::vae, T, Device>>();
  ParameterStore<T, Device> store;

  Small() {
    store.add("vae", *vae);
    store.allocate_all_trainable();
    load_parameters(store, golden::open("vae"), {.model_prefix = "vae", .file_prefix = "weights/"});
  }
};

template <class T, class Device>
void check_against_diffusers(double tolerance) {
  Small<T, Device> model;
  const auto file = golden::open("vae_tiled");
  const auto image = golden::tensor<T, 4, Device>(file, "in/image");
  const auto latent = golden::tensor<T, 4, Device>(file, "in/latent");
  Context<Device> context(2);
  Tape<Device> tape(context);
  for (const bool slicing : {false, true})
    for (const double overlap : {0.25, 0.5}) {
      const std::string out = overlap == 0.25 ? "out/0.25/" : "out/0.5/";
      const VaeTiling tiling{16, overlap, slicing};
      const auto posterior = encode_in_parts(*model.vae, constant(tape, image), tiling);
      golden::check_value(file, out + "mean", posterior.mean, tolerance);
      golden::check_value(file, out + "logvar", posterior.log_variance, tolerance);
      const auto decoded = decode_in_parts(*model.vae, constant(tape, latent), tiling);
      golden::check_value(file, out + "decoded", decoded, tolerance);
      CHECK_FALSE(decoded.requires_gradient());
    }
}

/// Arena bytes at the height of one decode.
std::size_t decoding_peak(index_t rows, index_t side, const VaeTiling& tiling) {
  Small<float, Cpu> model;
  const auto latent = Tensor<float, 4, Cpu>::full(Extents<4>{rows, side, side, 4}, 0.5);
  Context<Cpu> context(1);
  Tape<Cpu> tape(context);
  decode_in_parts(*model.vae, constant(tape, latent), tiling);
  return context.activations().peak_bytes();
}

}  // namespace

TEST_CASE("tiled encoding and decoding equal diffusers, also where edge tiles are smaller than the overlap") {
  check_against_diffusers<float, Cpu>(1e-5);
  check_against_diffusers<double, Reference>(2e-7);
}

TEST_CASE("slices equal the whole batch, and a picture that fits one tile gives the bits of the whole") {
  Small<float, Cpu> model;
  const auto file = golden::open("vae");
  const auto image = golden::tensor<float, 4, Cpu>(file, "in/image");
  const auto latent = golden::tensor<float, 4, Cpu>(file, "in/latent");
  Context<Cpu> context(2);
  Tape<Cpu> tape(context);
  const auto guard = tape.inference();
  const auto same = [](const auto& a, const auto& b, bool slicing) {
    if (!(a.extents() == b.extents())) return false;
    // Products of another height sum in another order.
    if (slicing) return golden::relative_error(a.data(), b.data(), a.size()) <= 1e-6;
    return std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * sizeof(float)) == 0;
  };
  const auto posterior = model.vae->encode(constant(tape, image));
  const auto decoded = model.vae->decode(constant(tape, latent));
  for (const VaeTiling tiling : {VaeTiling{0, 0.25, true}, VaeTiling{}, VaeTiling{512, 0.25, true}, VaeTiling{0}}) {
    const auto again = encode_in_parts(*model.vae, constant(tape, image), tiling);
    CHECK(same(again.mean, posterior.mean, tiling.slicing));
    CHECK(same(again.log_variance, posterior.log_variance, tiling.slicing));
    CHECK(same(decode_in_parts(*model.vae, constant(tape, latent), tiling), decoded, tiling.slicing));
  }
}

TEST_CASE("tiles of one latent without overlap are decoded each for itself") {
  Small<float, Cpu> model;
  const auto latent = golden::tensor<float, 4, Cpu>(golden::open("vae"), "in/latent");
  Context<Cpu> context(1);
  Tape<Cpu> tape(context);
  const auto whole = constant(tape, latent);
  const auto decoded = decode_in_parts(*model.vae, whole, {4, 0.0, false});
  const auto guard = tape.inference();
  const auto last = model.vae->decode(contiguous(whole.slice(1, 4, 5).slice(2, 2, 3)));
  for (index_t c = 0; c < 3; ++c) CHECK(decoded.view()(1, 19, 11, c) == last.view()(1, 3, 3, c));
  const auto none = decode_in_parts(*model.vae, whole.slice(0, 0, 0), {4, 0.0, true});
  CHECK(none.extents() == Extents<4>{0, 20, 12, 3});
}

TEST_CASE("memory is that of a tile, the picture and the edges of a row of tiles") {
  const std::size_t tile = decoding_peak(1, 8, {0});
  const std::size_t whole = decoding_peak(2, 32, {0});
  const std::size_t parts = decoding_peak(2, 32, {32, 0.25, true});
  const std::size_t picture = sizeof(float) * 2 * 128 * 128 * 3, edges = sizeof(float) * (6 * 32 + 128) * 8 * 3;
  CHECK(parts <= tile + picture + 2 * edges + (std::size_t{1} << 16));
  CHECK(4 * parts < whole);
}

TEST_CASE("parts that cannot be are refused") {
  Small<float, Cpu> model;
  auto latent = Tensor<float, 4, Cpu>::full(Extents<4>{1, 6, 6, 4}, 0.5);
  auto image = Tensor<float, 4, Cpu>::full(Extents<4>{1, 22, 24, 3}, 0.5);
  Context<Cpu> context(1);
  Tape<Cpu> tape(context);
  const auto in = constant(tape, latent);
  CHECK_THROWS_WITH_AS(decode_in_parts(*model.vae, in, {18}),
                       "[decode_in_parts] tiling.tile_size is 18, expected a positive multiple of 4, the pixels of a "
                       "latent",
                       ValueError);
  CHECK_THROWS_WITH_AS(decode_in_parts(*model.vae, in, {16, 1.0}),
                       "[decode_in_parts] tiling.overlap is 1, expected at least 0 and below 1", ValueError);
  CHECK_THROWS_WITH_AS(decode_in_parts(*model.vae, in, {20, 0.25}),
                       "[decode_in_parts] tiling.overlap 0.25 of a tile of 5 latents is no whole number of latents; "
                       "change the overlap or tile_size",
                       ValueError);
  CHECK_THROWS_WITH_AS(encode_in_parts(*model.vae, constant(tape, image), {16}),
                       "[encode_in_parts] image [1, 22, 24, 3]: height and width must be multiples of 4", ShapeError);
  CHECK_THROWS_WITH_AS(decode_in_parts(*model.vae, variable(tape, latent), {16}),
                       "[decode_in_parts] gives no gradients, but its input requires one; use the model itself",
                       ValueError);
}
