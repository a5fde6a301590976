// SPDX-License-Identifier: MIT
// Trainers of two ranks on GPUs: the weights and logs of one rank, and the same weights on both. Each rank has a GPU of
// its own, and NCCL, where there are two; otherwise they share one, and sums go through the host.
#define LPO_SMALL_WORLD_DEVICE lpo::Cuda

#include <doctest/doctest.h>

#include <optional>

#include <lpo/cuda.cuh>
#include <lpo/distributed/nccl_communicator.cuh>
#include <lpo/distributed/thread_communicator.hpp>

#include "distributed/rank_cases.hpp"

using lpo::Cuda;
using rank_cases::Outcome;

namespace {

struct GpuRanks : lpo::ThreadCommunicator {
  std::optional<lpo::NcclCommunicator<lpo::ThreadCommunicator>> devices;

  void all_reduce(lpo::Context<Cuda>& context, float* values, lpo::index_t count) {
    devices ? devices->all_reduce(context, values, count) : ThreadCommunicator::all_reduce(context, values, count);
  }
  void broadcast(lpo::Context<Cuda>& context, void* memory, std::size_t bytes) {
    devices ? devices->broadcast(context, memory, bytes) : ThreadCommunicator::broadcast(context, memory, bytes);
  }
};

/// What `train(context, ranks)` gives on each of `size` ranks.
template <class Train>
std::vector<Outcome> on_gpus(int size, const Train& train) {
  int gpus = 0;
  REQUIRE(cudaGetDeviceCount(&gpus) == cudaSuccess);
  std::vector<Outcome> outcomes(static_cast<std::size_t>(size));
  lpo::run_on_threads(size, [&](lpo::ThreadCommunicator threads) {
    lpo::Context<Cuda> context(lpo::CudaOptions{.device = threads.rank() % gpus});
    GpuRanks ranks{threads, std::nullopt};
    if (gpus >= size) ranks.devices.emplace(context, threads);
    outcomes[static_cast<std::size_t>(threads.rank())] = train(context, ranks);
  });
  return outcomes;
}

template <class Train>
void check_two_as_one(const Train& train) {
  const auto alone = on_gpus(1, train).front();
  const auto two = on_gpus(2, train);
  MESSAGE("weights differ by ", rank_cases::largest_difference(two[0].weights, alone.weights), ", logs by ",
          rank_cases::largest_difference(two[0].lines, alone.lines));
  CHECK(rank_cases::largest_difference(two[0].weights, alone.weights) < 1e-5);
  CHECK(rank_cases::largest_difference(two[0].lines, alone.lines) < 1e-4);
  CHECK(alone.lines.size() > 0);
  CHECK(two[1].weights == two[0].weights);
  CHECK(two[0].accuracy == doctest::Approx(alone.accuracy));
}

}  // namespace

TEST_CASE("two ranks train the reward model that one trains, on GPUs") {
  auto options = rank_cases::lrm_options();
  SUBCASE("pair loss") {}
  SUBCASE("both losses") { options.loss.kind = lpo::RewardLossOptions::Kind::both; }
  const auto pairs = small_world::random_pairs(21, 16);
  check_two_as_one([&](lpo::Context<Cuda>& context, auto ranks) {
    return rank_cases::train_lrm(context, ranks, options, pairs);
  });
}

TEST_CASE("two ranks run LPO as one does, on GPUs") {
  check_two_as_one([](lpo::Context<Cuda>& context, auto ranks) {
    return rank_cases::train_on_rollouts<lpo::LpoTrainer>(context, ranks, rank_cases::lpo_options());
  });
}

TEST_CASE("two ranks run Diffusion-DPO as one does, on GPUs; in bfloat16 both have the same weights") {
  check_two_as_one([](lpo::Context<Cuda>& context, auto ranks) {
    return rank_cases::train_dpo<float>(context, ranks, rank_cases::dpo_options());
  });
  const auto two = on_gpus(2, [](lpo::Context<Cuda>& context, auto ranks) {
    return rank_cases::train_dpo<lpo::bfloat16>(context, ranks, rank_cases::dpo_options());
  });
  CHECK(two[1].weights == two[0].weights);
}
