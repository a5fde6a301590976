// SPDX-License-Identifier: MIT
// The embedding lookup and its gradient on both host backends.
#include <lpo/backend/cpu/embedding.hpp>
#include <lpo/backend/reference/embedding.hpp>

#include <backend/embedding_cases.hpp>

using namespace embedding_cases;

TEST_CASE("reference embedding looks up and adds repeated rows") {
  lpo::Context<lpo::Reference> context(1);
  const std::int32_t ids[] = {2, 0, 2};
  const double table[] = {1, 2, 3, 4, 5, 6}, dy[] = {1, 10, 2, 20, 4, 40};
  double y[6], dtable[] = {9, 9, 9, 9, 9, 9};
  using lpo::kernel::Embedding;
  Embedding<lpo::Reference>::forward(context, 3, 2, ids, table, y);
  CHECK(std::vector<double>(y, y + 6) == std::vector<double>{5, 6, 1, 2, 5, 6});
  Embedding<lpo::Reference>::backward(context, 3, 2, 3, ids, dy, dtable, false);
  CHECK(std::vector<double>(dtable, dtable + 6) == std::vector<double>{2, 20, 0, 0, 5, 50});
  Embedding<lpo::Reference>::backward(context, 3, 2, 3, ids, dy, dtable, true);
  CHECK(std::vector<double>(dtable, dtable + 6) == std::vector<double>{4, 40, 0, 0, 10, 100});
}

TEST_CASE_TEMPLATE("cpu embedding agrees with the reference", T, LPO_STORAGE_TYPES) { compare_embeddings<lpo::Cpu, T>(); }
