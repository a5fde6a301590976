// SPDX-License-Identifier: MIT
// NcclCommunicator: two threads of one process, each with a GPU of its own.
#include <doctest/doctest.h>

#include <atomic>

#include <lpo/cuda.cuh>
#include <lpo/distributed/nccl_communicator.cuh>
#include <lpo/distributed/thread_communicator.hpp>

#include "distributed/communicator_cases.hpp"

using lpo::Cuda;
using Ranks = lpo::NcclCommunicator<lpo::ThreadCommunicator>;

static_assert(lpo::Communicator<Ranks, Cuda> && lpo::Communicator<lpo::ThreadCommunicator, Cuda>);

namespace {
int devices() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}
}  // namespace

TEST_CASE("ranks of one GPU add up through the host") {
  std::atomic<int> mistakes = 0;
  lpo::run_on_threads(3, [&](lpo::ThreadCommunicator threads) {
    lpo::Context<Cuda> context;
    mistakes += communicator_cases::mistakes(context, threads);
  });
  CHECK(mistakes == 0);
}

TEST_CASE("two GPUs add up with NCCL" * doctest::skip(devices() < 2)) {
  std::atomic<int> mistakes = 0;
  lpo::run_on_threads(2, [&](lpo::ThreadCommunicator threads) {
    lpo::Context<Cuda> context(lpo::CudaOptions{.device = threads.rank()});
    Ranks ranks(context, threads);
    mistakes += communicator_cases::mistakes(context, ranks);
  });
  CHECK(mistakes == 0);
}

TEST_CASE("one GPU is alone") {
  lpo::Context<Cuda> context;
  lpo::NcclCommunicator ranks(context, lpo::SoloCommunicator());
  CHECK(communicator_cases::mistakes(context, ranks) == 0);
}
