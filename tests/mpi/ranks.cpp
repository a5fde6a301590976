// SPDX-License-Identifier: MIT
// Run by mpirun: the communicator, and trainers whose ranks are processes. Every rank also trains alone, to compare. LPO
// over processes is in programs/ranks_test.cpp, SPO over threads in distributed/.
#define DOCTEST_CONFIG_IMPLEMENT
#include <doctest/doctest.h>

#include <optional>

#include <lpo/distributed/mpi_communicator.hpp>

#include "../distributed/communicator_cases.hpp"
#include "../distributed/rank_cases.hpp"

using namespace lpo;

namespace {
std::optional<MpiCommunicator> processes;

/// This process by itself.
MpiCommunicator alone() {
  int initialized = 0;
  MPI_Initialized(&initialized);
  return initialized != 0 ? MpiCommunicator(MPI_COMM_SELF) : MpiCommunicator();
}
}  // namespace

static_assert(Communicator<MpiCommunicator, Cpu> && Communicator<MpiCommunicator, Reference>);

TEST_CASE("processes add up, gather and exchange") {
  Context<Cpu> context(1);
  CHECK(communicator_cases::mistakes(context, *processes) == 0);
  CHECK(processes->local_rank() == processes->rank());
  CHECK(processes->local_size() == processes->size());
}

TEST_CASE("all arrive") { CHECK(processes->all_arrive(60)); }

namespace {
void check_alike(const rank_cases::Outcome& together, const rank_cases::Outcome& expected) {
  CHECK(rank_cases::largest_difference(together.weights, expected.weights) < 2e-6);
  CHECK(together.accuracy == doctest::Approx(expected.accuracy));
  CHECK(expected.lines.size() > 0);
  if (processes->rank() == 0) CHECK(rank_cases::largest_difference(together.lines, expected.lines) < 2e-5);
  const auto all = gather_values(*processes, together.weights);
  for (std::size_t i = 0; i < all.size(); ++i)
    if (all[i] != together.weights[i % together.weights.size()]) FAIL("ranks end with different weights");
}
}  // namespace

TEST_CASE("processes train the reward model that one trains") {
  Context<Cpu> context(1);
  const auto pairs = small_world::random_pairs(21, 16);
  auto options = rank_cases::lrm_options();
  SUBCASE("pair loss") {}
  SUBCASE("both losses") { options.loss.kind = RewardLossOptions::Kind::both; }
  check_alike(rank_cases::train_lrm(context, *processes, options, pairs),
              rank_cases::train_lrm(context, alone(), options, pairs));
}

TEST_CASE("processes run Diffusion-DPO as one does") {
  Context<Cpu> context(1);
  const auto options = rank_cases::dpo_options();
  check_alike(rank_cases::train_dpo<float>(context, *processes, options),
              rank_cases::train_dpo<float>(context, alone(), options));
}

int main(int argc, char** argv) {
  processes.emplace();
  const int status = doctest::Context(argc, argv).run();
  processes.reset();
  return status;
}
