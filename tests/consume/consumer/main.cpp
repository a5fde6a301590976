// SPDX-License-Identifier: MIT
// A user's program: includes the library, uses one thing of it, and reports its version.
#if __has_include(<lpo/lpo.hpp>)
#  include <lpo/lpo.hpp>
#else
#  include <lpo/base/config.hpp>
#endif

#include <cstdio>

int main() {
  std::printf("lpo %s\n", LPO_VERSION_STRING);
  return 0;
}
