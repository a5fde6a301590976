// SPDX-License-Identifier: MIT
// Communicator: what the ranks (processes or threads, a device each) that train one model ask of each other.
#pragma once

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <cstdlib>
#include <utility>
#include <vector>

#include <lpo/tensor/context.hpp>

namespace lpo::inline LPO_ABI {

using HostBytes = std::vector<std::byte>;

/// A handle of rank rank() among size(); copies are of the same rank. But for abort(), all ranks call the same
/// functions in the same order, and return when they have what they asked for.
template <class C, class Device>
concept Communicator = std::copyable<C> &&
    requires(C& ranks, Context<Device>& context, float* values, index_t count, void* memory, std::size_t bytes,
             const HostBytes& own, std::vector<HostBytes> parcels) {
  { ranks.rank() } -> std::same_as<int>;
  { ranks.size() } -> std::same_as<int>;
  ranks.all_reduce(context, values, count);  // floats of the device become sums over ranks, the same bits on all
  ranks.broadcast(context, memory, bytes);   // bytes of the device become those of rank 0
  { ranks.all_gather(own) } -> std::same_as<std::vector<HostBytes>>;               // by rank; lengths may differ
  { ranks.exchange(std::move(parcels)) } -> std::same_as<std::vector<HostBytes>>;  // parcels[r] goes to rank r
  ranks.barrier();
  ranks.abort();  // called by a rank that cannot go on: ends the others, which wait for it
};

/// The only rank: training in one process, at no cost.
struct SoloCommunicator {
  static constexpr int rank() { return 0; }
  static constexpr int size() { return 1; }
  template <class Device>
  static void all_reduce(Context<Device>&, float*, index_t) {}
  template <class Device>
  static void broadcast(Context<Device>&, void*, std::size_t) {}
  static std::vector<HostBytes> all_gather(const HostBytes& own) { return {own}; }
  static std::vector<HostBytes> exchange(std::vector<HostBytes> parcels) { return parcels; }
  static void barrier() {}
  static void abort() {}
};

/// Processes that a launcher says it started this one with, 1 if it does not say how many, 0 without a launcher: mpirun
/// of Open MPI, of MPICH and its relatives, or Slurm's srun.
inline int launched_processes() {
  for (const char* name : {"OMPI_COMM_WORLD_SIZE", "PMI_SIZE"})
    if (const char* const value = std::getenv(name)) return std::max(1, std::atoi(value));
  return std::getenv("PMI_RANK") != nullptr || std::getenv("PMIX_RANK") != nullptr ? 1 : 0;
}

namespace detail {

/// Calls `work(host)` on `bytes` bytes of a device: where they are, or, for a device that has memory of its own, on a
/// copy that goes back.
template <class Device, class Work>
void on_host(Context<Device>& context, void* memory, std::size_t bytes, const Work& work) {
  if constexpr (is_host_device<Device>) {
    work(static_cast<std::byte*>(memory));
  } else {
    HostBytes host(bytes);
    context.copy_to_host(host.data(), memory, bytes);
    work(host.data());
    context.copy_from_host(memory, host.data(), bytes);
  }
}

}  // namespace detail
}  // namespace lpo::inline LPO_ABI
