// SPDX-License-Identifier: MIT
// What a run will need, before it begins: numbers in memory and arithmetic of the networks, from their architectures.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdio>
#include <string>

#include <lpo/backend/cpu/isa.hpp>
#include <lpo/kernel/gemm.hpp>
#include <lpo/model/clip_text_config.hpp>
#include <lpo/model/unet_config.hpp>
#include <lpo/model/vae_config.hpp>
#include <lpo/tensor/tensor.hpp>

#include "device_options.hpp"

namespace examples {

inline std::string memory_text(double bytes) {
  char text[32];
  if (bytes >= 1e9)
    std::snprintf(text, sizeof text, "%.2f GB", bytes / 1e9);
  else
    std::snprintf(text, sizeof text, "%.1f MB", bytes / 1e6);
  return text;
}

/// Bytes of one frozen weight of `stored` bytes in one packed form, if the options keep it: 16 bits are widened unless
/// products multiply them as they are.
inline double packed_number_bytes([[maybe_unused]] std::size_t stored, [[maybe_unused]] bool is_bfloat16,
                                  [[maybe_unused]] const DeviceOptions& o) {
#if defined(LPO_PROGRAM_WITH_CUDA) || defined(__CUDACC__)  // also in the sources of such programs that are C++
  return 0;
#else
  if (!o.keep_packed) return 0;
  return is_bfloat16 && lpo::detail::machine_multiplies_pairs() ? 2.0 : static_cast<double>(std::max(stored, sizeof(float)));
#endif
}

/// Bytes beside one trained weight of type T: its gradient, AdamW's two moments, the float copy of a 16-bit weight, and the
/// moving average with what is set aside while a 16-bit weight and its average change places.
template <class T>
double optimizer_bytes(bool average) {
  constexpr double is_short = sizeof(T) < sizeof(float) ? 1 : 0;
  return sizeof(T) + 8 + 4 * is_short + (average ? 4 + sizeof(T) * is_short : 0);
}

/// Numbers of floats in memory at once without gradients, roughly: every skip connection of the UNet, and the widest
/// layer's inputs and outputs (a transformer's feed-forward is 8 widths, its queries, keys, values, norms and sums 9; a
/// resnet's concatenated input and the rest 8).
inline double unet_activations(const lpo::UNetConfig& c, double rows, double height, double width) {
  double skips = 0, widest = 0, area = height * width;
  for (int level = 0; level < c.levels; ++level) {
    const double channels = c.level_channels(level);
    const bool attends = c.transformer_depth[static_cast<std::size_t>(level)] > 0;
    skips += area * channels * (c.layers_per_block + 1);
    widest = std::max(widest, area * channels * (attends ? 17 : 8));
    area /= 4;
  }
  return rows * (skips + widest);
}

/// The same for decoding one picture: three maps of the wider and three of the narrower width at full size.
inline double vae_activations(const lpo::VaeConfig& c, double height, double width) {
  return 3 * height * width * (c.level_channels(0) + c.level_channels(c.levels > 1 ? 1 : 0));
}

/// Arithmetic of one UNet pass for one row, in floating-point operations (2 per multiply-add) of matrix products,
/// convolutions and attention; and the numbers that a differentiated pass keeps.
struct UNetWork {
  double down = 0, middle = 0, up = 0;
  double kept = 0;           ///< numbers that backward needs, one row
  double kept_by_encoder = 0;  ///< of these, the down and the middle part's: all that a reward model runs
  double kept_by_layers = 0;  ///< with gradient checkpointing: the layers' inputs and outputs
  double widest_layer = 0;   ///< what one layer keeps while it is recomputed

  double total() const { return down + middle + up; }
};

namespace detail {

/// Adds up the layers of a UNet of one architecture.
class UNetCounter {
 public:
  UNetCounter(const lpo::UNetConfig& c, int tokens) : c_(c), tokens_(tokens) {}

  UNetWork count(double height, double width) {
    double in = c_.level_channels(0);
    const double time = c_.time_width(), added = c_.addition_width;
    work_.down += 2 * time * (in + time + (added > 0 ? added + time : 0));
    work_.down += convolution(c_.in_channels, in, 9, height * width);
    keep_layer(in * height * width, 0);
    for (int level = 0; level < c_.levels; ++level) {
      const double out = c_.level_channels(level), area = height * width;
      for (int i = 0; i < c_.layers_per_block; ++i) {
        work_.down += layer(in, out, depth(level), area);
        in = out;
      }
      if (level + 1 == c_.levels) break;
      work_.down += convolution(out, out, 9, area / 4);
      keep_layer(out * area / 4, 0);
      height /= 2, width /= 2;
    }
    const double middle = c_.last_channels(), low = height * width;
    work_.middle = layer(middle, middle, c_.mid_depth, low) + layer(middle, middle, 0, low);
    work_.kept_by_encoder = work_.kept;
    for (int level = c_.levels - 1; level >= 0; --level) {
      const double out = c_.level_channels(level), area = height * width;
      for (int i = 0; i <= c_.layers_per_block; ++i) {
        const double skip = i < c_.layers_per_block ? out : c_.level_channels(std::max(0, level - 1));
        work_.kept += (in + skip) * area;  // joined
        work_.up += layer(in + skip, out, depth(level), area);
        in = out;
      }
      if (level == 0) break;
      work_.up += convolution(out, out, 9, 4 * area);
      work_.kept += 4 * area * out;  // enlarged
      keep_layer(4 * area * out, 0);
      height *= 2, width *= 2;
    }
    work_.up += convolution(in, c_.out_channels, 9, height * width);
    work_.kept += (in + c_.out_channels) * height * width;
    return work_;
  }

 private:
  int depth(int level) const { return c_.transformer_depth[static_cast<std::size_t>(level)]; }
  static double convolution(double in, double out, double taps, double area) { return 2 * in * out * taps * area; }

  /// A resnet, and a transformer of some depth behind it.
  double layer(double in, double out, int transformer_depth, double area) {
    const bool shortcut = in != out;
    double work = convolution(in, out, 9, area) + convolution(out, out, 9, area) + 2 * c_.time_width() * out;
    double kept = area * (in + 5 * out);
    if (shortcut) work += convolution(in, out, 1, area);
    if (transformer_depth > 0) {
      const double square = 2 * out * out, text = tokens_ * 2 * c_.context_width * out;
      work += 2 * square * area;
      kept += 3 * out * area;
      // Self-attention: 4 projections and 2 products; cross-attention: 2 over positions, 2 over tokens, 2 products;
      // feed-forward: 8 widths and back from 4.
      work += transformer_depth *
              (area * (4 * square + 4 * out * area + 2 * square + 4 * out * tokens_ + 12 * square) + 2 * text);
      kept += transformer_depth * (24 * out * area + 2 * out * tokens_);
    }
    keep_layer(out * area, kept);
    return work;
  }

  void keep_layer(double output, double inside) {
    work_.kept += std::max(output, inside);
    work_.kept_by_layers += output;
    work_.widest_layer = std::max(work_.widest_layer, inside);
  }

  const lpo::UNetConfig& c_;
  int tokens_;
  UNetWork work_;
};

}  // namespace detail

/// `height` and `width` of the latent. Adapters keep next to nothing of their own.
inline UNetWork unet_work(const lpo::UNetConfig& c, int height, int width, int tokens) {
  return detail::UNetCounter(c, tokens).count(height, width);
}

/// Floating-point operations of a text encoder for one prompt.
inline double text_work(const lpo::ClipTextConfig& c) {
  const double n = c.positions, w = c.width;
  return c.layers * n * (8 * w * w + 4 * n * w + 4 * w * c.hidden);
}

/// Floating-point operations of encoding one picture: convolutions and the middle's attention.
inline double vae_encoder_work(const lpo::VaeConfig& c, double height, double width) {
  const auto convolution = [](double in, double out, double taps, double area) { return 2 * in * out * taps * area; };
  double area = height * width, in = c.level_channels(0), work = convolution(3, in, 9, area);
  const auto resnet = [&](double from, double to) {
    return convolution(from, to, 9, area) + convolution(to, to, 9, area) +
           (from != to ? convolution(from, to, 1, area) : 0);
  };
  for (int level = 0; level < c.levels; ++level) {
    const double out = c.level_channels(level);
    for (int i = 0; i < c.layers_per_block; ++i, in = out) work += resnet(in, out);
    if (level + 1 == c.levels) break;
    area /= 4;
    work += convolution(out, out, 9, area);
  }
  work += 2 * resnet(in, in) + (c.mid_attention ? 4 * convolution(in, in, 1, area) + 4 * area * area * in : 0);
  return work + convolution(in, 2 * c.latent_channels, 9, area);
}

/// What gradients of activations need beside the activations that a pass keeps, as a share of these (measured: 0.12 to
/// 0.21 from 2 to 20 rows of Stable Diffusion 1.5).
inline constexpr double gradient_share = 0.2;

/// A plan's line of memory: `bytes` of weights and activations, and what a GPU holds that no model asks for (the driver's,
/// workspace of kernels, keys and values of texts).
inline void print_memory(double bytes) {
  constexpr double device_overhead = this_build.cuda ? 1e9 : 0;
  std::printf("memory       about %s\n", memory_text(bytes + device_overhead).c_str());
}

/// Floating-point operations a second that matrix products reach here, from a product that takes some tenths of a
/// second on a CPU.
template <class T, class Device>
double measured_rate(lpo::Context<Device>& context) {
  using Matrix = lpo::Tensor<T, 2, Device>;
  const lpo::index_t n = lpo::is_host_device<Device> ? 768 : 4096;
  auto a = Matrix::zeros(lpo::Extents<2>{n, n}), b = Matrix::zeros(a.extents()), c = Matrix::zeros(a.extents());
  lpo::kernel::GemmParams<T> product{.m = n, .n = n, .k = n};
  product.a = a.data(), product.b = b.data(), product.c = c.data();
  product.lda = product.ldb = product.ldc = n;
  double best = 0;
  for (int i = 0; i < 4; ++i) {  // the first one warms up
    const auto begin = std::chrono::steady_clock::now();
    lpo::kernel::Gemm<Device>::run(context, product);
    T one;
    context.copy_to_host(&one, c.data(), sizeof(T));  // waits for a device
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    best = std::max(best, 2 * static_cast<double>(n * n * n) / seconds);
  }
  return best;
}

}  // namespace examples
