// SPDX-License-Identifier: MIT
// Arena and Pool: alignment, last in first out, reuse without new memory; Scratch gives back in scope order.
#include <lpo/tensor/memory.hpp>

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <lpo/tensor/repeated_work.hpp>
#include <set>
#include <utility>

namespace {

bool aligned(const void* pointer) { return reinterpret_cast<std::uintptr_t>(pointer) % lpo::memory_alignment == 0; }

}  // namespace

TEST_CASE("an arena gives aligned memory and rewinds to a mark") {
  lpo::Arena arena(1024);
  std::byte* first = arena.allocate(10);
  const auto mark = arena.mark();
  std::byte* second = arena.allocate(100);
  CHECK(aligned(first));
  CHECK(aligned(second));
  CHECK(second - first == 64);
  arena.rewind(mark);
  CHECK(arena.allocate(5) == second);
  CHECK(arena.reserved_bytes() == 1024);
  CHECK(arena.peak_bytes() == 64 + 128);
}

TEST_CASE("an arena grows by blocks, and a second pass maps nothing") {
  lpo::Arena arena(256);
  const auto start = arena.mark();
  std::size_t reserved = 0;
  std::set<std::byte*> addresses;
  for (int pass = 0; pass < 3; ++pass) {
    std::set<std::byte*> now;
    for (const std::size_t bytes : {200u, 100u, 5000u, 64u, 0u, 700u, 3000u}) {
      std::byte* p = arena.allocate(bytes);
      std::memset(p, pass, bytes);
      now.insert(p);
    }
    arena.rewind(start);
    if (pass == 0) {
      reserved = arena.reserved_bytes();
      addresses = now;
    }
    CHECK(arena.reserved_bytes() == reserved);
    CHECK(now == addresses);
  }
}

TEST_CASE("a pool reuses blocks of the same size class only") {
  lpo::Pool pool;
  std::byte* a = pool.allocate(1000);
  CHECK(aligned(a));
  std::byte* b = pool.allocate(1000);
  CHECK(a != b);
  const auto reserved = pool.reserved_bytes();
  CHECK(reserved >= 2000);
  CHECK(reserved <= 2500);  // classes are a quarter power of two apart
  pool.release(a, 1000);
  CHECK(pool.allocate(1010) == a);  // both round up to 1024
  pool.release(b, 1000);
  CHECK(pool.allocate(5000) != b);
  CHECK(pool.allocate(1) != b);
  CHECK(pool.allocate(0) != nullptr);
}

TEST_CASE("every size fits its class, with at most a quarter to spare") {
  for (std::size_t bytes = 1; bytes < 100000; bytes = bytes * 5 / 4 + 1) {
    lpo::Pool pool;
    std::byte* p = pool.allocate(bytes);
    std::memset(p, 1, bytes);
    CHECK(pool.reserved_bytes() >= bytes);
    CHECK(pool.reserved_bytes() <= std::max<std::size_t>(64, bytes + bytes / 4 + 64));
  }
}

TEST_CASE("scratch is given back at the end of its scope, inner scopes first") {
  lpo::Context<lpo::Cpu> context(1);
  float* first = nullptr;
  float* inner = nullptr;
  {
    lpo::Scratch<lpo::Cpu> outer(context);
    first = outer.allocate<float>(16);
    {
      lpo::Scratch<lpo::Cpu> nested(context);
      inner = nested.allocate<float>(16);
      CHECK(inner != first);
    }
    CHECK(outer.allocate<float>(16) == inner);
  }
  lpo::Scratch<lpo::Cpu> again(context);
  CHECK(again.allocate<double>(3) == reinterpret_cast<double*>(first));
  CHECK(context.reserved_bytes() == context.scratch().reserved_bytes());
}

TEST_CASE("a moved block has one owner") {
  lpo::detail::HostBlock a(100);
  std::byte* p = a.data();
  lpo::detail::HostBlock b(std::move(a));
  CHECK(b.data() == p);
  CHECK(a.data() == nullptr);
  a = std::move(b);
  CHECK(a.data() == p);
}

TEST_CASE("blocks of zeros are zero, small ones from the heap and large ones from the system") {
  for (const std::size_t bytes : {std::size_t{0}, std::size_t{100}, (std::size_t{32} << 20) + 100}) {
    for (int again = 0; again < 2; ++again) {  // memory that was in use before is zero too
      lpo::detail::HostBlock block = lpo::detail::HostBlock::zeros(bytes);
      CHECK(aligned(block.data()));
      REQUIRE(block.bytes() >= bytes);
      CHECK(std::all_of(block.data(), block.data() + block.bytes(), [](std::byte b) { return b == std::byte{0}; }));
      std::memset(block.data(), 1, block.bytes());
      const lpo::detail::HostBlock moved = std::move(block);
      CHECK(block.data() == nullptr);
      CHECK(moved.data()[bytes / 2] == std::byte{1});
    }
  }
}

TEST_CASE("on hosts every round of repeated work runs") {
  lpo::Context<lpo::Cpu> context(1);
  lpo::RepeatedWork<lpo::Cpu> work(2);
  int parts = 0;
  for (int round = 0; round < 3; ++round) {
    work.begin(context);
    work.run(context, [&] { ++parts; });
    work.run(context, [&] { ++parts; });
    CHECK_FALSE(work.replays());
  }
  CHECK(parts == 6);
}
