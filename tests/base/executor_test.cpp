// SPDX-License-Identifier: MIT
// Executor: chunks that depend on range and grain alone, exceptions, nesting, several callers.
#include <lpo/base/executor.hpp>

#include <doctest/doctest.h>

#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "error_text.hpp"
#include "few_threads.hpp"

using lpo::Executor;
using lpo::index_t;

namespace {

std::set<std::pair<index_t, index_t>> chunks(Executor& executor, index_t count, index_t grain) {
  std::mutex mutex;
  std::set<std::pair<index_t, index_t>> seen;
  executor.parallel_for(count, grain, [&](index_t begin, index_t end) {
    std::lock_guard lock(mutex);
    seen.emplace(begin, end);
  });
  return seen;
}

}  // namespace

TEST_CASE("chunks are the same for any number of threads and cover the range once") {
  Executor one(1), two(2), four(4);
  CHECK(one.threads() == 1);
  CHECK(four.threads() == 4);
  CHECK(Executor().threads() >= 1);
  for (const index_t count : {0, 1, 7, 64, 1000})
    for (const index_t grain : {0, 1, 3, 64, 5000}) {
      const auto expected = chunks(one, count, grain);
      CHECK(chunks(two, count, grain) == expected);
      CHECK(chunks(four, count, grain) == expected);
      index_t at = 0;
      for (const auto& [begin, end] : expected) {
        CHECK(begin == at);
        CHECK(end > begin);
        at = end;
      }
      CHECK(at == count);
    }
}

TEST_CASE("every index is visited once, job after job") {
  Executor executor(3);
  std::vector<int> hits(1000, 0);
  for (int job = 1; job <= 300; ++job) {
    executor.parallel_for(1000, 17, [&](index_t begin, index_t end) {
      for (index_t i = begin; i < end; ++i) ++hits[static_cast<std::size_t>(i)];
    });
    if (job % 100 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // workers fall asleep in between
  }
  CHECK(hits == std::vector<int>(1000, 300));
}

TEST_CASE("an exception reaches the caller, and the executor goes on") {
  Executor executor(3);
  for (int round = 0; round < 20; ++round) {
    std::string text;
    try {
      executor.parallel_for(100, 1, [&](index_t begin, index_t) {
        if (begin == 37) throw std::runtime_error("chunk 37");
      });
    } catch (const std::runtime_error& error) {
      text = error.what();
    }
    CHECK(text == "chunk 37");
    std::atomic<int> count{0};
    executor.parallel_for(10, 1, [&](index_t, index_t) { ++count; });
    CHECK(count == 10);
  }
}

TEST_CASE("a loop inside a chunk runs on that chunk's thread") {
  Executor executor(3);
  std::atomic<int> wrong{0}, count{0};
  executor.parallel_for(8, 1, [&](index_t, index_t) {
    const auto outer = std::this_thread::get_id();
    executor.parallel_for(8, 1, [&](index_t, index_t) {
      if (std::this_thread::get_id() != outer) ++wrong;
      ++count;
    });
  });
  CHECK(wrong == 0);
  CHECK(count == 64);
}

TEST_CASE("several callers take turns") {
  Executor executor(2);
  std::atomic<index_t> total{0};
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 4; ++caller)
    callers.emplace_back([&] {
      for (int job = 0; job < 50; ++job)
        executor.parallel_for(40, 3, [&](index_t begin, index_t end) { total += end - begin; });
    });
  for (auto& caller : callers) caller.join();
  CHECK(total == 4 * 50 * 40);
}

TEST_CASE("threads that the system does not give are an error, and those that it gave end") {
  CHECK(with_few_threads([] { return Executor(3).threads() == 3; }));
  CHECK(with_few_threads([] {
    const std::string text = error_text<lpo::ValueError>([] { Executor executor(16); });
    return text.starts_with("[Executor] cannot start 16 threads: ") && text.ends_with("; ask for fewer");
  }));
}

TEST_CASE("more threads than cores: short jobs do not wait for workers that come late") {
  const int threads = 4 * Executor().threads() + 4;
  std::vector<std::thread> callers;
  std::atomic<long> total{0};
  for (int caller = 0; caller < 3; ++caller)
    callers.emplace_back([&] {
      Executor executor(threads);
      for (int job = 0; job < 400; ++job) executor.parallel_for(2 + job % 9, 1, [&](index_t, index_t) { ++total; });
    });
  for (auto& caller : callers) caller.join();
  long expected = 0;
  for (int job = 0; job < 400; ++job) expected += 2 + job % 9;
  CHECK(total == 3 * expected);
}
