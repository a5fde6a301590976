// SPDX-License-Identifier: MIT
// test_context: a context of any device, for code that is run on several of them and compared.
#pragma once

#include <lpo/tensor/context.hpp>

namespace lpo::inline LPO_ABI {
namespace testing {

/// A context with so many threads. Devices without threads ignore the number: their runs must give the same bits anyway.
template <class Device>
Context<Device> test_context(int threads) {
  if constexpr (is_host_device<Device>)
    return Context<Device>(threads);
  else
    return Context<Device>();
}

}  // namespace testing
}  // namespace lpo::inline LPO_ABI
