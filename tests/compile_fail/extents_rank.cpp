// expect: lpo Extents: rank must be 1 to 6
// SPDX-License-Identifier: MIT
// More axes than the library supports.
#include <lpo/base/extents.hpp>

lpo::Extents<7> extents;
