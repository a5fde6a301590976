// SPDX-License-Identifier: MIT
// Encoding and decoding in parts: overlapping tiles that are blended, and one image of a batch at a time, so that
// memory is bounded by the tile and not by the picture.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include <lpo/model/autoencoder_kl.hpp>

namespace lpo::inline LPO_ABI {

/// How much the autoencoder sees at once. The default is that of diffusers' `enable_tiling()` for SD1.5 and SD2.1.
struct VaeTiling {
  /// Width and height of a tile in pixels, a multiple of `VaeConfig::factor()` (diffusers: tile_sample_min_size, which
  /// starts as the `sample_size` of config.json). Pictures that fit one tile are not cut. 0: no tiles.
  index_t tile_size = 512;
  /// Part of a tile that its neighbour repeats, in [0, 1) (tile_overlap_factor). It must be whole latents.
  double overlap = 0.25;
  /// One image of the batch at a time (diffusers' `enable_slicing()`).
  bool slicing = false;
};

namespace detail {

/// Tiles begin every `stride` positions of the input; of each tile's output, `kept` positions from its begin are used
/// and `blend` are mixed with the neighbour before.
struct TilePlan {
  index_t tile, stride, blend, kept;
};

/// `factor` > 0: latents to pixels; `factor` < 0: pixels to latents.
inline TilePlan plan_tiles(const char* operation, const VaeTiling& tiling, int factor) {
  const index_t pixels_per_latent = factor > 0 ? factor : -factor, latents = tiling.tile_size / pixels_per_latent;
  if (tiling.tile_size <= 0 || latents * pixels_per_latent != tiling.tile_size)
    throw ValueError(message("[", operation, "] tiling.tile_size is ", tiling.tile_size,
                             ", expected a positive multiple of ", pixels_per_latent, ", the pixels of a latent"));
  if (!(tiling.overlap >= 0.0 && tiling.overlap < 1.0))
    throw ValueError(
        message("[", operation, "] tiling.overlap is ", tiling.overlap, ", expected at least 0 and below 1"));
  const index_t in = factor > 0 ? latents : tiling.tile_size, out = factor > 0 ? tiling.tile_size : latents;
  // Both are rounded down as diffusers does.
  const auto stride = static_cast<index_t>(static_cast<double>(in) * (1.0 - tiling.overlap));
  const auto blend = static_cast<index_t>(static_cast<double>(out) * tiling.overlap);
  if (stride <= 0 || stride * out != (out - blend) * in)
    throw ValueError(message("[", operation, "] tiling.overlap ", tiling.overlap, " of a tile of ", latents,
                             " latents is no whole number of latents; change the overlap or tile_size"));
  return {in, stride, blend, out - blend};
}

/// The first positions of `next` along `axis` go over from the last ones of `previous`: at position i of e,
/// next = previous (1 - i / e) + next i / e.
template <class T, class Device>
void blend_edge(Context<Device>& context, int axis, index_t blend, const View<T, 4, Device>& previous,
                const View<T, 4, Device>& next) {
  const index_t length = previous.extent(axis), e = std::min({length, next.extent(axis), blend});
  if (e == 0) return;
  std::vector<compute_t<T>> ramp(static_cast<std::size_t>(e));
  for (index_t i = 0; i < e; ++i)
    ramp[static_cast<std::size_t>(i)] = static_cast<compute_t<T>>(static_cast<double>(i) / static_cast<double>(e));
  Extents<4> along{1, 1, 1, 1};
  along[axis] = e;
  const auto weight = Tensor<compute_t<T>, 4, Device>::from(along, ramp);
  const auto before = previous.slice(axis, length - e, length), after = next.slice(axis, 0, e);
  evaluate(&context, after, before * (1.0 - bcast_last(weight)) + after * bcast_last(weight));
}

/// Runs `part(tile)` over the tiles of `input` in rows and writes the blended outputs to `output`. Besides one tile it
/// holds the lower edges of one row of tiles and the right edge of one tile.
template <class T, class Device, class Part>
void run_tiles(const TilePlan& plan, const Var<T, 4, Device>& input, const Var<T, 4, Device>& output, Part&& part) {
  auto& tape = input.tape();
  auto& context = tape.context();
  const index_t columns = (input.extent(2) + plan.stride - 1) / plan.stride;
  const index_t n = input.extent(0), channels = output.extent(3), side = plan.kept + plan.blend;
  const auto edges = [&](index_t h, index_t w) {
    return make_output<T>(tape, Extents<4>{n, h, w, channels}, false).view();
  };
  std::vector<View<T, 4, Device>> lower;  // of the row of tiles above: [n, blend, width of the tile, channels]
  for (index_t column = 0; column < columns; ++column) lower.push_back(edges(plan.blend, side));
  const auto right = edges(side, plan.blend);  // of the tile before

  for (index_t y = 0, row = 0; y < input.extent(1); y += plan.stride, ++row)
    for (index_t x = 0, column = 0; x < input.extent(2); x += plan.stride, ++column) {
      const auto start = tape.snapshot();
      const auto cut = input.slice(1, y, std::min(y + plan.tile, input.extent(1)))
                           .slice(2, x, std::min(x + plan.tile, input.extent(2)));
      const View<T, 4, Device> tile = part(contiguous(cut)).view();
      const index_t h = tile.extent(1), w = tile.extent(2);
      const index_t low = std::min(h, plan.blend), far = std::min(w, plan.blend);
      auto& above = lower[static_cast<std::size_t>(column)];
      const auto above_edge = above.slice(2, 0, w), left_edge = right.slice(1, 0, h);
      if (row > 0) blend_edge(context, 1, plan.blend, above_edge, tile);
      if (column > 0) blend_edge(context, 2, plan.blend, left_edge, tile);
      // Neighbours blend with edges that are blended themselves.
      evaluate(&context, above_edge.slice(1, plan.blend - low, plan.blend), tile.slice(1, h - low, h));
      evaluate(&context, left_edge.slice(2, plan.blend - far, plan.blend), tile.slice(2, w - far, w));
      const index_t used_h = std::min(h, plan.kept), used_w = std::min(w, plan.kept);
      evaluate(&context,
               output.view()
                   .slice(1, row * plan.kept, row * plan.kept + used_h)
                   .slice(2, column * plan.kept, column * plan.kept + used_w),
               tile.slice(1, 0, used_h).slice(2, 0, used_w));
      tape.rewind(start);
    }
}

/// `part` over `input` in the parts that `tiling` asks for. Output [n, h, w, channels] with h and w those of the input
/// times `factor`, or divided by `-factor`.
template <class T, class Device, class Part>
Var<T, 4, Device> run_in_parts(const char* operation, const VaeTiling& tiling, int factor, index_t channels,
                               const Var<T, 4, Device>& input, Part&& part) {
  auto& tape = input.tape();
  if (tape.recording() && input.requires_gradient())
    throw ValueError(message("[", operation, "] gives no gradients, but its input requires one; use the model itself"));
  const auto guard = tape.inference();
  auto extents = input.extents();
  for (int axis = 1; axis < 3; ++axis) {
    if (factor < 0 && extents[axis] % -factor != 0)
      throw ShapeError(message("[", operation, "] image ", to_string(input.extents()),
                               ": height and width must be multiples of ", -factor));
    extents[axis] = factor > 0 ? extents[axis] * factor : extents[axis] / -factor;
  }
  extents[3] = channels;
  const TilePlan plan = tiling.tile_size == 0 ? TilePlan{} : plan_tiles(operation, tiling, factor);
  const bool cut = tiling.tile_size != 0 && (input.extent(1) > plan.tile || input.extent(2) > plan.tile);
  if (!cut && !(tiling.slicing && extents[0] > 1)) return part(contiguous(input));
  const auto output = make_output<T>(tape, extents, false);
  const index_t step = tiling.slicing ? 1 : std::max<index_t>(1, extents[0]);
  for (index_t first = 0; first < extents[0]; first += step) {
    const auto start = tape.snapshot();
    const auto rows = input.slice(0, first, first + step), to = output.slice(0, first, first + step);
    if (cut)
      run_tiles(plan, rows, to, part);
    else
      evaluate(&tape.context(), to.view(), part(contiguous(rows)));
    tape.rewind(start);
  }
  return output;
}

}  // namespace detail

/// `vae.encode(image)` in parts. Nothing is recorded: the result is a constant on the tape. Tiles do not see each other
/// (each has its own group norms and attention), so the result differs a little from that of the whole, and equals that
/// of diffusers. Height and width must be multiples of `factor()`.
template <VaeConfig C, class T, class Device>
LatentPosterior<T, Device> encode_in_parts(AutoencoderKL<C, T, Device>& vae, const Var<T, 4, Device>& image,
                                           const VaeTiling& tiling = {}) {
  const auto moments =
      detail::run_in_parts("encode_in_parts", tiling, -C.factor(), 2 * C.latent_channels, image,
                           [&](const Var<T, 4, Device>& part) { return Var<T, 4, Device>(vae.moments(part)); });
  const auto guard = image.tape().inference();
  return vae.posterior_of(moments);
}

/// `vae.decode(latent)` in parts; see `encode_in_parts`.
template <VaeConfig C, class T, class Device>
Var<T, 4, Device, C.out_channels> decode_in_parts(AutoencoderKL<C, T, Device>& vae, const Var<T, 4, Device>& latent,
                                                  const VaeTiling& tiling = {}) {
  return detail::run_in_parts("decode_in_parts", tiling, C.factor(), C.out_channels, latent,
                              [&](const Var<T, 4, Device>& part) { return Var<T, 4, Device>(vae.decode(part)); })
      .template with_channels<C.out_channels>();
}

}  // namespace lpo::inline LPO_ABI
