// SPDX-License-Identifier: MIT
// Communicators of threads and of one process: sums, gathering, exchanging, a rank that fails.
#include <doctest/doctest.h>

#include <atomic>
#include <numeric>

#include <lpo/autograd/linear.hpp>
#include <lpo/autograd/reduce.hpp>
#include <lpo/backend/reference/copy.hpp>
#include <lpo/backend/reference/elementwise.hpp>
#include <lpo/backend/reference/gemm.hpp>
#include <lpo/backend/reference/reduce.hpp>
#include <lpo/distributed/gather_rows.hpp>
#include <lpo/distributed/thread_communicator.hpp>

#include "communicator_cases.hpp"
#include "few_threads.hpp"

using namespace lpo;

static_assert(Communicator<SoloCommunicator, Cpu> && Communicator<ThreadCommunicator, Cpu>);

TEST_CASE("shares follow each other, cover everything, and differ by one at most") {
  for (const index_t count : {0, 1, 2, 5, 12})
    for (const int size : {1, 2, 3, 7}) {
      index_t end = 0;
      for (int rank = 0; rank < size; ++rank) {
        const Share share = share_of(count, rank, size);
        CHECK(share.begin == end);
        CHECK(share.size() >= count / size);
        CHECK(share.size() <= count / size + 1);
        end = share.end;
      }
      CHECK(end == count);
    }
}

TEST_CASE("one rank keeps what it has") {
  Context<Cpu> context(1);
  SoloCommunicator solo;
  CHECK(communicator_cases::mistakes(context, solo) == 0);
}

TEST_CASE("ranks that are threads") {
  for (const int size : {1, 2, 3, 5}) {
    std::atomic<int> mistakes = 0;
    run_on_threads(size, [&](ThreadCommunicator ranks) {
      Context<Cpu> context(1);
      mistakes += communicator_cases::mistakes(context, ranks);
    });
    CHECK(mistakes == 0);
  }
  CHECK_THROWS_AS(run_on_threads(0, [](ThreadCommunicator) {}), ValueError);
}

TEST_CASE("a rank that throws ends the others, and its error is the one that is told") {
  std::atomic<int> ended = 0;
  const auto body = [&](ThreadCommunicator ranks) {
    if (ranks.rank() == 1) throw ValueError("rank 1 had enough");
    try {
      for (;;) ranks.barrier();
    } catch (const DeviceError&) {
      ++ended;
      throw;
    }
  };
  CHECK_THROWS_WITH_AS(run_on_threads(3, body), "rank 1 had enough", ValueError);
  CHECK(ended == 2);
}

TEST_CASE("ranks that the system gives no thread end the others") {
  CHECK(with_few_threads([] {
    try {
      run_on_threads(16, [](ThreadCommunicator ranks) { ranks.barrier(); });
    } catch (const ValueError& error) {
      const std::string text = error.what();
      return text.starts_with("[run_on_threads] cannot start 16 threads: ") && text.ends_with("; ask for fewer");
    }
    return false;
  }));
}

TEST_CASE("gradients through gathered rows add up to the gradient of the whole loss") {
  // loss = sum of squares of (rows^T rows), which mixes all rows; 1 + 2 + 1 rows of width 3
  const std::vector<std::vector<float>> parts = {{0.5f, -1, 2}, {1, 0.25f, -0.5f, -2, 1, 0.75f}, {0.1f, 0.2f, -0.3f}};
  const auto values_of = [](const Tensor<float, 2, Reference>& tensor) {
    return std::vector<float>(tensor.data(), tensor.data() + tensor.size());
  };
  const auto loss_of = [](const Var<float, 2, Reference>& rows) {
    const Var<float, 2, Reference> products = linear(rows, rows);  // [n, n]
    const Var<float, 2, Reference> squares = products * products;
    return sum(squares);
  };
  std::vector<float> all, expected, gathered;
  for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
  {
    Context<Reference> context;
    Tape<Reference> tape(context);
    auto values = Tensor<float, 2, Reference>::from(Extents<2>{4, 3}, all);
    const auto rows = variable(tape, values);
    backward(loss_of(rows));
    expected = values_of(read_gradient(rows));
  }
  std::vector<std::vector<float>> gradients(3);
  run_on_threads(3, [&](ThreadCommunicator ranks) {
    Context<Reference> context;
    Tape<Reference> tape(context);
    const auto& part = parts[static_cast<std::size_t>(ranks.rank())];
    auto values = Tensor<float, 2, Reference>::from(Extents<2>{static_cast<index_t>(part.size()) / 3, 3}, part);
    const auto rows = variable(tape, values);
    backward(loss_of(gather_rows(ranks, rows)));
    gradients[static_cast<std::size_t>(ranks.rank())] = values_of(read_gradient(rows));
  });
  for (const auto& part : gradients) gathered.insert(gathered.end(), part.begin(), part.end());
  REQUIRE(gathered.size() == expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) CHECK(gathered[i] == doctest::Approx(expected[i]).epsilon(1e-6));
}
