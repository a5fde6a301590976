// SPDX-License-Identifier: MIT
// ThreadCommunicator: ranks that are threads of one process, for several GPUs without MPI, and for tests.
#pragma once

#include <algorithm>
#include <condition_variable>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <lpo/distributed/collectives.hpp>

namespace lpo::inline LPO_ABI {

/// One rank of run_on_threads(). Sums are added in the order of the ranks.
class ThreadCommunicator {
 public:
  int rank() const { return rank_; }
  int size() const { return group_->size; }

  template <class Device>
  void all_reduce(Context<Device>& context, float* values, index_t count) {
    detail::on_host(context, values, static_cast<std::size_t>(count) * sizeof(float),
                    [&](std::byte* host) { add_up(reinterpret_cast<float*>(host), count); });
  }
  template <class Device>
  void broadcast(Context<Device>& context, void* memory, std::size_t bytes) {
    detail::on_host(context, memory, bytes, [&](std::byte* host) {
      show(host);
      if (rank_ != 0 && bytes > 0) std::memcpy(host, group_->shown[0], bytes);
      barrier();
    });
  }
  std::vector<HostBytes> all_gather(const HostBytes& own) {
    show(&own);
    std::vector<HostBytes> all;
    for (const void* shown : group_->shown) all.push_back(*static_cast<const HostBytes*>(shown));
    barrier();
    return all;
  }
  std::vector<HostBytes> exchange(const std::vector<HostBytes>& parcels) {
    show(&parcels);
    std::vector<HostBytes> arrived;
    for (const void* shown : group_->shown)
      arrived.push_back((*static_cast<const std::vector<HostBytes>*>(shown))[static_cast<std::size_t>(rank_)]);
    barrier();
    return arrived;
  }

  void barrier() {
    Group& group = *group_;
    std::unique_lock lock(group.mutex);
    const auto turn = group.turn;
    if (++group.waiting == group.size) {
      group.waiting = 0;
      ++group.turn;
      group.wake.notify_all();
    }
    group.wake.wait(lock, [&] { return group.turn != turn || group.aborted; });
    if (group.turn == turn) throw DeviceError("[ThreadCommunicator] another rank ended early, see its error");
  }
  void abort() {
    std::lock_guard lock(group_->mutex);
    group_->aborted = true;
    group_->wake.notify_all();
  }

 private:
  template <class Body>
  friend void run_on_threads(int, const Body&);

  struct Group {
    explicit Group(int ranks) : size(ranks), shown(static_cast<std::size_t>(ranks)) {}

    int size, waiting = 0;
    unsigned turn = 0;
    bool aborted = false;
    std::mutex mutex;
    std::condition_variable wake;
    std::vector<const void*> shown;  ///< what each rank lets the others read until the next barrier
  };

  ThreadCommunicator(std::shared_ptr<Group> group, int rank) : group_(std::move(group)), rank_(rank) {}

  void show(const void* own) {
    group_->shown[static_cast<std::size_t>(rank_)] = own;
    barrier();
  }

  /// Each rank adds up its share of the values, and all read all shares.
  void add_up(float* values, index_t count) {
    const Share share = own_share(*this, count);
    show(values);
    std::vector<float> sums(static_cast<std::size_t>(share.size()), 0.0f);
    for (const void* shown : group_->shown) {
      const float* const from = static_cast<const float*>(shown) + share.begin;
      for (std::size_t i = 0; i < sums.size(); ++i) sums[i] += from[i];
    }
    barrier();  // before what is shown changes
    show(sums.data());
    for (int rank = 0; rank < size(); ++rank) {
      const Share part = share_of(count, rank, size());
      std::copy_n(static_cast<const float*>(group_->shown[static_cast<std::size_t>(rank)]), part.size(),
                  values + part.begin);
    }
    barrier();
  }

  std::shared_ptr<Group> group_;
  int rank_;
};

/// Calls `body(communicator)` on `ranks` threads. A rank that throws ends the others; rethrows what the first one
/// threw. ValueError if the system does not give so many threads.
template <class Body>
void run_on_threads(int ranks, const Body& body) {
  if (ranks < 1) throw ValueError(message("[run_on_threads] ", ranks, " ranks; expected at least 1"));
  const auto group = std::make_shared<ThreadCommunicator::Group>(ranks);
  std::exception_ptr first;
  std::mutex mutex;
  const auto end_all = [&](ThreadCommunicator& communicator, const std::exception_ptr& error) {
    {
      std::lock_guard lock(mutex);
      if (!first) first = error;
    }
    communicator.abort();
  };
  std::vector<std::thread> threads;
  try {
    for (int rank = 0; rank < ranks; ++rank)
      threads.emplace_back([&, rank] {
        ThreadCommunicator communicator(group, rank);
        try {
          body(communicator);
        } catch (...) {
          end_all(communicator, std::current_exception());
        }
      });
  } catch (const std::exception& error) {  // those that run wait for the one that does not
    ThreadCommunicator communicator(group, static_cast<int>(threads.size()));
    end_all(communicator, std::make_exception_ptr(ValueError(message(
                              "[run_on_threads] cannot start ", ranks, " threads: ", error.what(), "; ask for fewer"))));
  }
  for (auto& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace lpo::inline LPO_ABI
