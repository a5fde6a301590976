// SPDX-License-Identifier: MIT
// A program that trains over ranks: the processes of an mpirun, where it is built with MPI. Rank 0 talks and writes.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <exception>
#include <string>
#include <thread>
#include <utility>

#include <lpo/distributed/collectives.hpp>
#if defined(LPO_PROGRAM_WITH_MPI)
#include <lpo/distributed/mpi_communicator.hpp>
#endif
#if defined(__CUDACC__) && defined(LPO_PROGRAM_WITH_NCCL)
#include <lpo/distributed/nccl_communicator.cuh>
#endif

#include "console.hpp"
#include "device.hpp"

namespace examples {

#if defined(LPO_PROGRAM_WITH_MPI)
using ProgramCommunicator = lpo::MpiCommunicator;
#else
struct ProgramCommunicator : lpo::SoloCommunicator {
  static constexpr int local_rank() { return 0; }
  static constexpr int local_size() { return 1; }
  static constexpr bool all_arrive(double) { return true; }
};
#endif

/// The processes that run this program together.
struct Processes : ProgramCommunicator {
  bool first() const { return rank() == 0; }
};

/// The end of the help of such a program.
inline constexpr const char* ranks_help =
    "On several processors or GPUs: mpirun -n N before the command, where the program is built with MPI. Options mean\n"
    "the same for any N, but for micro-batches and threads, which are of each process.";

/// Of `threads` threads, or on this rank's GPU. Ranks of one machine share the cores when `threads` is 0.
inline lpo::Context<Device> make_context(int threads, const DeviceOptions& options,
                                         [[maybe_unused]] const Processes& processes) {
#if defined(__CUDACC__)
  int devices = 0;
  if (cudaGetDeviceCount(&devices) == cudaSuccess && processes.local_size() > devices)
    throw lpo::DeviceError(lpo::message("[ranks] ", processes.local_size(), " ranks on a machine of ", devices,
                                        " GPUs; start one for each GPU"));
  (void)threads;
  return lpo::Context<Device>(cuda_options(options, processes.local_rank()));
#else
  if (threads == 0 && processes.local_size() > 1)
    threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()) / processes.local_size());
  return make_context(threads, options);
#endif
}

/// What trainers get: sums of GPUs go through NCCL where it is there.
inline auto make_ranks([[maybe_unused]] lpo::Context<Device>& context, const Processes& processes) {
#if defined(__CUDACC__) && defined(LPO_PROGRAM_WITH_NCCL)
  return lpo::NcclCommunicator(context, processes);
#else
  return processes;
#endif
}

/// Rank 0 does the work, and the others wait for it. What it throws, all throw.
template <class Work>
void on_first(Processes processes, const Work& work) {
  std::exception_ptr error;
  std::string cancelled, failed;
  if (processes.first()) {
    try {
      work();
    } catch (const lpo::CancelledError& e) {
      error = std::current_exception();
      cancelled = e.what();
    } catch (const std::exception& e) {
      error = std::current_exception();
      failed = e.what();
    }
  }
  processes.barrier();  // sleeps, while what follows would spin
  cancelled = lpo::first_text(processes, cancelled);
  failed = lpo::first_text(processes, failed);
  if (error) std::rethrow_exception(error);
  if (!cancelled.empty()) throw lpo::CancelledError(cancelled);
  if (!failed.empty()) throw lpo::ValueError(failed);
}

/// examples::run() for programs of ranks: `body(processes)` returns the exit status. Ranks but 0 print nothing, unless
/// one of them fails alone; the others are ended then, for they would wait for it.
template <class Body>
int run_ranks(const char* program, Body&& body) {
  handle_interrupts();
  try {
    Processes processes;
    if (processes.size() == 1 && lpo::launched_processes() > 1)
      throw lpo::ValueError(lpo::message("[ranks] mpirun started ", lpo::launched_processes(), " processes, but ",
                                         program,
                                         " is built without MPI; build it where MPI is installed (LPO_MPI=ON)"));
    const bool first = processes.first();
    const int errors = ::dup(2);
    if (!first) {
      const int nothing = ::open("/dev/null", O_WRONLY);
      ::dup2(nothing, 1);
      ::dup2(nothing, 2);
      ::close(nothing);
    }
    const auto fail = [&](const std::string& text, int status) {
      const bool told = first;
      if (told) ::dprintf(errors, "\n%s: %s\n", program, text.c_str());
      if (processes.all_arrive(10)) return status;  // all of them, for the same reason
      if (!told) ::dprintf(errors, "\n%s: rank %d: %s\n", program, processes.rank(), text.c_str());
      processes.abort();
      return status;
    };
    try {
      return body(processes);
    } catch (const lpo::CancelledError& error) {
      return fail(std::string("stopped: ") + error.what(), 130);
    } catch (const std::exception& error) {
      return fail(std::string("error: ") + error.what(), 1);
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s: error: %s\n", program, error.what());
    return 1;
  }
}

}  // namespace examples
