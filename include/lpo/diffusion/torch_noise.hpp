// SPDX-License-Identifier: MIT
// Latent noise as diffusers draws it on the CPU: the same picture for the same seed.
#pragma once

#include <span>
#include <vector>

#include <lpo/base/torch_random.hpp>
#include <lpo/tensor/tensor.hpp>

namespace lpo::inline LPO_ABI {

/// Fills a dense view [n, h, w, c] with torch.randn((n, c, h, w), generator=generator, dtype=T): the same numbers,
/// moved to channels last. One generator for a batch, or one per row of it (`view.slice(0, i, i + 1)`), as diffusers
/// takes either. A NoiseSource is `[&](int, const auto& z) { fill_torch_normal(context, z, generator); }`.
template <class T, class Device>
void fill_torch_normal(Context<Device>& context, const View<T, 4, Device>& view, TorchGenerator& generator) {
  if (!view.dense())
    throw ShapeError(message("[fill_torch_normal] ", to_string(view.extents), " is strided; fill a dense tensor"));
  const auto count = static_cast<std::size_t>(view.size());
  const auto channels = static_cast<std::size_t>(view.extent(3));
  const auto area = static_cast<std::size_t>(view.extent(1) * view.extent(2)), image = area * channels;
  std::vector<T> drawn(count), moved(count);
  generator.randn(std::span<T>(drawn));
  for (std::size_t first = 0; first < count; first += image)
    for (std::size_t channel = 0; channel < channels; ++channel)
      for (std::size_t at = 0; at < area; ++at)
        moved[first + at * channels + channel] = drawn[first + channel * area + at];
  if (count > 0) context.copy_from_host(view.data, moved.data(), count * sizeof(T));
}

}  // namespace lpo::inline LPO_ABI
