// SPDX-License-Identifier: MIT
// NcclCommunicator: ranks with a GPU each, whose sums go from GPU to GPU. Link lpo::nccl.
#pragma once

#include <nccl.h>

#include <cstring>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include <lpo/backend/cuda/context.cuh>
#include <lpo/distributed/collectives.hpp>

namespace lpo::inline LPO_ABI {

/// Adds NCCL for what lies on the device to a communicator of hosts (MpiCommunicator, ThreadCommunicator), which does
/// the rest and brings the ranks together. `context` is on this rank's own GPU:
///
///   MpiCommunicator processes;
///   Context<Cuda> context({.device = processes.local_rank()});
///   NcclCommunicator ranks(context, processes);
///
/// Sums run on the context's stream, in the order of its work.
template <class Host>
class NcclCommunicator {
 public:
  NcclCommunicator(Context<Cuda>& context, Host host) : host_(std::move(host)) {
    if (size() == 1) return;
    ncclUniqueId id{};
    if (rank() == 0) check(ncclGetUniqueId(&id), "NcclCommunicator");
    HostBytes bytes(sizeof id);
    std::memcpy(bytes.data(), &id, sizeof id);
    std::memcpy(&id, host_.all_gather(bytes).front().data(), sizeof id);
    detail::cuda_check(cudaSetDevice(context.options().device), "NcclCommunicator");
    ncclComm_t devices = nullptr;
    check(ncclCommInitRank(&devices, size(), id, rank()), "NcclCommunicator");
    // Work that other ranks do not join would never end: it is given up when an error is on its way.
    devices_ = {devices, [exceptions = std::uncaught_exceptions()](ncclComm_t c) {
                  std::uncaught_exceptions() > exceptions ? ncclCommAbort(c) : ncclCommDestroy(c);
                }};
  }

  int rank() const { return host_.rank(); }
  int size() const { return host_.size(); }

  void all_reduce(Context<Cuda>& context, float* values, index_t count) {
    if (size() == 1) return;
    check(ncclAllReduce(values, values, static_cast<std::size_t>(count), ncclFloat32, ncclSum, devices_.get(),
                        context.stream()),
          "all_reduce");
  }
  void broadcast(Context<Cuda>& context, void* memory, std::size_t bytes) {
    if (size() == 1) return;
    check(ncclBroadcast(memory, memory, bytes, ncclChar, 0, devices_.get(), context.stream()), "broadcast");
  }

  std::vector<HostBytes> all_gather(const HostBytes& own) { return host_.all_gather(own); }
  std::vector<HostBytes> exchange(std::vector<HostBytes> parcels) { return host_.exchange(std::move(parcels)); }
  void barrier() { host_.barrier(); }
  void abort() { host_.abort(); }

 private:
  static void check(ncclResult_t status, const char* operation) {
    if (status == ncclSuccess || status == ncclInProgress) return;
    throw DeviceError(
        message("[NcclCommunicator] ", operation, ": ", ncclGetErrorString(status), ", ", ncclGetLastError(nullptr)));
  }

  Host host_;
  std::shared_ptr<ncclComm> devices_;
};

}  // namespace lpo::inline LPO_ABI
