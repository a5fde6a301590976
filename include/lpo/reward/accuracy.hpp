// SPDX-License-Identifier: MIT
// How sure an accuracy is that was measured on a finite set: Wilson's interval.
#pragma once

#include <cmath>

#include <lpo/base/error.hpp>
#include <lpo/base/extents.hpp>

namespace lpo::inline LPO_ABI {

/// An accuracy between 0 and 1 and the ends of its confidence interval.
struct AccuracyInterval {
  double accuracy = 0, low = 0, high = 1;
};

/// Wilson's score interval of a proportion that was seen on `count` examples (E. B. Wilson, 1927). `z` is the normal
/// quantile: 1.96 is 95 %. Ties that count half make it a little too wide, never too narrow. No examples: [0, 1].
inline AccuracyInterval wilson_interval(double proportion, index_t count, double z = 1.959963984540054) {
  if (!(proportion >= 0 && proportion <= 1) || count < 0 || !(z >= 0))
    throw ValueError(message("[wilson_interval] proportion ", proportion, " of ", count, " examples with z = ", z,
                             "; expected 0 <= proportion <= 1, a count and z >= 0"));
  if (count == 0) return {};
  const double n = static_cast<double>(count), square = z * z;
  const double centre = (proportion + square / (2 * n)) / (1 + square / n);
  const double reach = z / (1 + square / n) * std::sqrt(proportion * (1 - proportion) / n + square / (4 * n * n));
  return {proportion, std::fmax(0.0, centre - reach), std::fmin(1.0, centre + reach)};
}

}  // namespace lpo::inline LPO_ABI
