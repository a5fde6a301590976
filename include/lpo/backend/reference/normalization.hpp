// SPDX-License-Identifier: MIT
// Reference group norm, layer norm and row softmax with their gradients: plain loops, sums in double.
#pragma once

#include <cmath>

#include <lpo/kernel/normalization.hpp>
#include <lpo/tensor/pack.hpp>

namespace lpo::inline LPO_ABI {
namespace kernel {

template <>
struct GroupNorm<Reference> {
  template <class T>
  static void forward(Context<Reference>&, const GroupNormShape& shape, const T* x, const T* weight, const T* bias,
                      T* y, compute_t<T>* mean, compute_t<T>* inverse_deviation) {
    const index_t width = shape.c / shape.groups;
    const double count = static_cast<double>(shape.spatial * width);
    for (index_t i = 0; i < shape.n; ++i)
      for (index_t g = 0; g < shape.groups; ++g) {
        double sum = 0.0, square = 0.0;
        each(shape, i, g, [&](index_t at, index_t) { sum += value(x, at); });
        const double center = count > 0.0 ? sum / count : 0.0;
        each(shape, i, g, [&](index_t at, index_t) { square += (value(x, at) - center) * (value(x, at) - center); });
        const double variance = count > 0.0 ? square / count : 0.0;
        const double inverse = 1.0 / std::sqrt(variance + static_cast<double>(shape.epsilon));
        each(shape, i, g, [&](index_t at, index_t channel) {
          const double z = (value(x, at) - center) * inverse * value(weight, channel) + value(bias, channel);
          detail::store_lanes(y + at, shape.silu ? z / (1.0 + std::exp(-z)) : z);
        });
        mean[i * shape.groups + g] = static_cast<compute_t<T>>(center);
        inverse_deviation[i * shape.groups + g] = static_cast<compute_t<T>>(inverse);
      }
  }

  template <class T>
  static void backward(Context<Reference>&, const GroupNormShape& shape, const T* x, const T* weight, const T* bias,
                       const compute_t<T>* mean, const compute_t<T>* inverse_deviation, const T* dy, T* dx,
                       bool accumulate_x, T* dweight, bool accumulate_weight, T* dbias, bool accumulate_bias) {
    const index_t width = shape.c / shape.groups;
    const double count = static_cast<double>(shape.spatial * width);
    const auto normalized = [&](index_t at, index_t stat) {
      return (value(x, at) - static_cast<double>(mean[stat])) * static_cast<double>(inverse_deviation[stat]);
    };
    const auto slope = [&](index_t at, index_t channel, double hat) {  // d loss / d (the affine result)
      if (!shape.silu) return value(dy, at);
      const double z = hat * value(weight, channel) + value(bias, channel);
      const double gate = 1.0 / (1.0 + std::exp(-z));
      return value(dy, at) * gate * (1.0 + z * (1.0 - gate));
    };
    for (index_t channel = 0; channel < shape.c; ++channel) {
      double weight_sum = 0.0, bias_sum = 0.0;
      for (index_t i = 0; i < shape.n; ++i)
        for (index_t p = 0; p < shape.spatial; ++p) {
          const index_t at = (i * shape.spatial + p) * shape.c + channel;
          const double hat = normalized(at, i * shape.groups + channel / width);
          weight_sum += slope(at, channel, hat) * hat;
          bias_sum += slope(at, channel, hat);
        }
      if (dweight)
        detail::store_lanes(dweight + channel, weight_sum + (accumulate_weight ? value(dweight, channel) : 0.0));
      if (dbias) detail::store_lanes(dbias + channel, bias_sum + (accumulate_bias ? value(dbias, channel) : 0.0));
    }
    if (!dx) return;
    for (index_t i = 0; i < shape.n; ++i)
      for (index_t g = 0; g < shape.groups; ++g) {
        const index_t stat = i * shape.groups + g;
        double plain = 0.0, along = 0.0;
        each(shape, i, g, [&](index_t at, index_t channel) {
          const double hat = normalized(at, stat);
          plain += slope(at, channel, hat) * value(weight, channel);
          along += slope(at, channel, hat) * value(weight, channel) * hat;
        });
        each(shape, i, g, [&](index_t at, index_t channel) {
          const double hat = normalized(at, stat);
          const double change = slope(at, channel, hat) * value(weight, channel) - plain / count - hat * along / count;
          detail::store_lanes(
              dx + at, static_cast<double>(inverse_deviation[stat]) * change + (accumulate_x ? value(dx, at) : 0.0));
        });
      }
  }

 private:
  template <class T>
  static double value(const T* p, index_t at) {
    return detail::load_lanes<double>(p + at);
  }
  /// Calls body(element, channel) for every element of group g of image i.
  template <class Body>
  static void each(const GroupNormShape& shape, index_t i, index_t g, Body&& body) {
    const index_t width = shape.c / shape.groups;
    for (index_t p = 0; p < shape.spatial; ++p)
      for (index_t channel = g * width; channel < (g + 1) * width; ++channel)
        body((i * shape.spatial + p) * shape.c + channel, channel);
  }
};

template <>
struct LayerNorm<Reference> {
  template <class T>
  static void forward(Context<Reference>&, index_t rows, index_t c, float epsilon, const T* x, const T* weight,
                      const T* bias, T* y, compute_t<T>* mean, compute_t<T>* inverse_deviation) {
    for (index_t row = 0; row < rows; ++row) {
      double sum = 0.0, square = 0.0;
      for (index_t j = 0; j < c; ++j) sum += value(x, row * c + j);
      const double center = sum / static_cast<double>(c);
      for (index_t j = 0; j < c; ++j) square += (value(x, row * c + j) - center) * (value(x, row * c + j) - center);
      const double inverse = 1.0 / std::sqrt(square / static_cast<double>(c) + static_cast<double>(epsilon));
      for (index_t j = 0; j < c; ++j)
        detail::store_lanes(y + row * c + j,
                            (value(x, row * c + j) - center) * inverse * value(weight, j) + value(bias, j));
      mean[row] = static_cast<compute_t<T>>(center);
      inverse_deviation[row] = static_cast<compute_t<T>>(inverse);
    }
  }

  template <class T>
  static void backward(Context<Reference>&, index_t rows, index_t c, const T* x, const T* weight,
                       const compute_t<T>* mean, const compute_t<T>* inverse_deviation, const T* dy, T* dx,
                       bool accumulate_x, T* dweight, bool accumulate_weight, T* dbias, bool accumulate_bias) {
    const auto normalized = [&](index_t row, index_t j) {
      return (value(x, row * c + j) - static_cast<double>(mean[row])) * static_cast<double>(inverse_deviation[row]);
    };
    for (index_t j = 0; j < c; ++j) {
      double weight_sum = 0.0, bias_sum = 0.0;
      for (index_t row = 0; row < rows; ++row) {
        weight_sum += value(dy, row * c + j) * normalized(row, j);
        bias_sum += value(dy, row * c + j);
      }
      if (dweight) detail::store_lanes(dweight + j, weight_sum + (accumulate_weight ? value(dweight, j) : 0.0));
      if (dbias) detail::store_lanes(dbias + j, bias_sum + (accumulate_bias ? value(dbias, j) : 0.0));
    }
    if (!dx) return;
    for (index_t row = 0; row < rows; ++row) {
      double plain = 0.0, along = 0.0;
      for (index_t j = 0; j < c; ++j) {
        plain += value(dy, row * c + j) * value(weight, j);
        along += value(dy, row * c + j) * value(weight, j) * normalized(row, j);
      }
      plain /= static_cast<double>(c);
      along /= static_cast<double>(c);
      for (index_t j = 0; j < c; ++j) {
        const index_t at = row * c + j;
        const double change = value(dy, at) * value(weight, j) - plain - normalized(row, j) * along;
        detail::store_lanes(
            dx + at, static_cast<double>(inverse_deviation[row]) * change + (accumulate_x ? value(dx, at) : 0.0));
      }
    }
  }

 private:
  template <class T>
  static double value(const T* p, index_t at) {
    return detail::load_lanes<double>(p + at);
  }
};

template <>
struct Softmax<Reference> {
  template <class T>
  static void forward(Context<Reference>&, index_t rows, index_t c, const T* x, T* y) {
    for (index_t row = 0; row < rows && c > 0; ++row) {
      double highest = value(x, row * c), sum = 0.0;
      for (index_t j = 1; j < c; ++j) highest = std::fmax(highest, value(x, row * c + j));
      for (index_t j = 0; j < c; ++j) sum += std::exp(value(x, row * c + j) - highest);
      for (index_t j = 0; j < c; ++j)
        detail::store_lanes(y + row * c + j, std::exp(value(x, row * c + j) - highest) / sum);
    }
  }

  template <class T>
  static void backward(Context<Reference>&, index_t rows, index_t c, const T* y, const T* dy, T* dx, bool accumulate) {
    for (index_t row = 0; row < rows; ++row) {
      double along = 0.0;
      for (index_t j = 0; j < c; ++j) along += value(y, row * c + j) * value(dy, row * c + j);
      for (index_t j = 0; j < c; ++j) {
        const index_t at = row * c + j;
        detail::store_lanes(dx + at, value(y, at) * (value(dy, at) - along) + (accumulate ? value(dx, at) : 0.0));
      }
    }
  }

 private:
  template <class T>
  static double value(const T* p, index_t at) {
    return detail::load_lanes<double>(p + at);
  }
};

}  // namespace kernel
}  // namespace lpo::inline LPO_ABI
