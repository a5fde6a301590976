// SPDX-License-Identifier: MIT
// The two-dimensional copy of both host backends.
#include <lpo/backend/cpu/copy.hpp>
#include <lpo/backend/reference/copy.hpp>

#include <backend/copy_cases.hpp>

using namespace copy_cases;

TEST_CASE("reference copy_rows moves a column block") {
  const double source[] = {1, 2, 3, 4, 5, 6};
  double target[] = {0, 0, 0, 10, 10, 10, 20, 20, 20};
  lpo::Context<lpo::Reference> context(1);
  lpo::kernel::CopyRows<lpo::Reference>::run(context, 3, 2, source, 2, target + 1, 3, false);
  CHECK(std::vector<double>(target, target + 9) == std::vector<double>{0, 1, 2, 10, 3, 4, 20, 5, 6});
  lpo::kernel::CopyRows<lpo::Reference>::run(context, 3, 1, source + 1, 2, target, 3, true);
  CHECK(std::vector<double>(target, target + 9) == std::vector<double>{2, 1, 2, 14, 3, 4, 26, 5, 6});
}

TEST_CASE_TEMPLATE("cpu copy_rows agrees with the reference", T, LPO_STORAGE_TYPES) { compare_copies<lpo::Cpu, T>(); }
