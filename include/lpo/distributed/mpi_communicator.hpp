// SPDX-License-Identifier: MIT
// MpiCommunicator: ranks that are processes started by mpirun. Link lpo::mpi.
#pragma once

#include <mpi.h>

#include <algorithm>
#include <chrono>
#include <exception>
#include <limits>
#include <memory>
#include <string>
#include <thread>

#include <lpo/distributed/collectives.hpp>

namespace lpo::inline LPO_ABI {

/// All processes of an mpirun, or those of a communicator of the program's own. The first one that a process makes
/// initialises MPI, and the last of its copies finalises it, unless the program did so itself. Without mpirun a process
/// is alone and MPI is not touched.
///
/// Calls come from one thread. When the last copy dies by an exception, the other ranks, which would wait for ever, are
/// ended: catch errors that all ranks have together (CancelledError) inside its scope.
///
/// Memory of a GPU goes through the host; see NcclCommunicator.
class MpiCommunicator {
 public:
  explicit MpiCommunicator(MPI_Comm processes = MPI_COMM_WORLD) : job_(std::make_shared<Job>(processes)) {}

  int rank() const { return job_->rank; }
  int size() const { return job_->size; }
  /// Number and count of the ranks on this machine, to choose a GPU or share the cores.
  int local_rank() const { return job_->local_rank; }
  int local_size() const { return job_->local_size; }

  template <class Device>
  void all_reduce(Context<Device>& context, float* values, index_t count) {
    if (size() == 1) return;
    detail::on_host(context, values, static_cast<std::size_t>(count) * sizeof(float), [&](std::byte* host) {
      in_parts(static_cast<std::size_t>(count), [&](std::size_t begin, int part) {
        float* const sums = reinterpret_cast<float*>(host) + begin;
        check(MPI_Allreduce(MPI_IN_PLACE, sums, part, MPI_FLOAT, MPI_SUM, job_->world), "all_reduce");
      });
    });
  }
  template <class Device>
  void broadcast(Context<Device>& context, void* memory, std::size_t bytes) {
    if (size() == 1) return;
    detail::on_host(context, memory, bytes, [&](std::byte* host) {
      in_parts(bytes, [&](std::size_t begin, int part) {
        check(MPI_Bcast(host + begin, part, MPI_BYTE, 0, job_->world), "broadcast");
      });
    });
  }
  std::vector<HostBytes> all_gather(const HostBytes& own) {
    if (size() == 1) return {own};
    return exchange(std::vector<HostBytes>(static_cast<std::size_t>(size()), own));
  }
  std::vector<HostBytes> exchange(std::vector<HostBytes> parcels) {
    const int n = size();
    std::vector<HostBytes> arrived(static_cast<std::size_t>(n));
    const auto at = [](auto& list, int i) -> auto& { return list[static_cast<std::size_t>(i)]; };
    at(arrived, rank()) = std::move(at(parcels, rank()));
    // In round d everybody sends to the rank d after it: first how much, then the bytes.
    for (int d = 1; d < n; ++d) {
      const int to = (rank() + d) % n, from = (rank() - d + n) % n;
      const HostBytes& sent = at(parcels, to);
      std::size_t send = sent.size(), receive = 0;
      check(MPI_Sendrecv(&send, sizeof send, MPI_BYTE, to, 0, &receive, sizeof receive, MPI_BYTE, from, 0, job_->world,
                         MPI_STATUS_IGNORE),
            "exchange");
      at(arrived, from).resize(receive);
      std::vector<MPI_Request> pending;
      in_parts(receive, [&](std::size_t begin, int bytes) {
        std::byte* const to_here = at(arrived, from).data() + begin;
        check(MPI_Irecv(to_here, bytes, MPI_BYTE, from, 1, job_->world, &pending.emplace_back()), "exchange");
      });
      in_parts(send, [&](std::size_t begin, int bytes) {
        check(MPI_Isend(sent.data() + begin, bytes, MPI_BYTE, to, 1, job_->world, &pending.emplace_back()), "exchange");
      });
      check(MPI_Waitall(static_cast<int>(pending.size()), pending.data(), MPI_STATUSES_IGNORE), "exchange");
    }
    return arrived;
  }

  /// Sleeps while it waits, which may be long: for rank 0 to write files, say.
  void barrier() {
    if (size() > 1) wait_for_all(job_->world, std::numeric_limits<double>::infinity());
  }
  /// Does not return when there are other ranks.
  void abort() {
    if (size() > 1) MPI_Abort(job_->world, 1);
  }

  /// Whether all ranks call it within `seconds` of each other. A rank that failed learns so whether all did, and for
  /// the same reason then, or it is the only one. Not to be followed by other calls when the answer is no.
  bool all_arrive(double seconds) { return size() == 1 || wait_for_all(job_->errors, seconds); }

 private:
  /// MPI as long as somebody uses it.
  struct Job {
    int rank = 0, size = 1, local_rank = 0, local_size = 1;
    bool initialized = false, owned = false;
    int exceptions = std::uncaught_exceptions();
    MPI_Comm world = MPI_COMM_NULL, errors = MPI_COMM_NULL;

    explicit Job(MPI_Comm processes) {
      int before = 0;
      MPI_Initialized(&before);
      const int started = launched_processes();
      if (before == 0 && started == 0) return;
      if (before == 0) {
        int provided = 0;
        check(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &provided), "MpiCommunicator");
        owned = true;
      }
      initialized = true;
      check(MPI_Comm_dup(processes, &world), "MpiCommunicator");
      check(MPI_Comm_dup(processes, &errors), "MpiCommunicator");
      MPI_Comm_set_errhandler(world, MPI_ERRORS_RETURN);
      MPI_Comm_set_errhandler(errors, MPI_ERRORS_RETURN);
      MPI_Comm_rank(world, &rank);
      MPI_Comm_size(world, &size);
      if (size == 1 && started > 1 && processes == MPI_COMM_WORLD)
        throw DeviceError(message("[MpiCommunicator] mpirun started ", started,
                                  " processes, but each is alone; start them with the mpirun of the MPI that this "
                                  "program is built with"));
      MPI_Comm host;
      check(MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host), "MpiCommunicator");
      MPI_Comm_rank(host, &local_rank);
      MPI_Comm_size(host, &local_size);
      MPI_Comm_free(&host);
    }
    Job(const Job&) = delete;
    Job& operator=(const Job&) = delete;
    ~Job() {
      if (!initialized) return;
      if (size > 1 && std::uncaught_exceptions() > exceptions) MPI_Abort(world, 1);
      MPI_Comm_free(&world);
      MPI_Comm_free(&errors);
      if (owned) MPI_Finalize();
    }
  };

  static bool wait_for_all(MPI_Comm processes, double seconds) {
    MPI_Request request;
    check(MPI_Ibarrier(processes, &request), "barrier");
    const auto begin = std::chrono::steady_clock::now();
    for (int done = 0;;) {
      check(MPI_Test(&request, &done, MPI_STATUS_IGNORE), "barrier");
      if (done != 0) return true;
      if (std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count() > seconds) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  /// MPI counts in int: calls `use(begin, part)` for parts of `count`.
  template <class Use>
  static void in_parts(std::size_t count, const Use& use) {
    constexpr std::size_t largest = std::size_t{1} << 30;
    for (std::size_t begin = 0; begin < count; begin += largest)
      use(begin, static_cast<int>(std::min(count - begin, largest)));
  }

  static void check(int status, const char* operation) {
    if (status == MPI_SUCCESS) return;
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(status, text, &length);
    const std::string reason(text, static_cast<std::size_t>(length));
    throw DeviceError(message("[MpiCommunicator] ", operation, ": ", reason, "; did another rank end?"));
  }

  std::shared_ptr<Job> job_;
};

}  // namespace lpo::inline LPO_ABI
