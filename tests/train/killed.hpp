// SPDX-License-Identifier: MIT
// Runs work in a child process that is killed (SIGKILL) in the middle, as a power cut would.
#pragma once

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>

/// `work(kill_at)` must call the given function when it wants to die.
template <class Work>
void run_and_kill(Work&& work) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    try {
      work([] { ::kill(::getpid(), SIGKILL); });
    } catch (...) {
    }
    ::_exit(3);  // it should have been killed
  }
  int status = 0;
  REQUIRE(::waitpid(child, &status, 0) == child);
  REQUIRE(WIFSIGNALED(status));
  REQUIRE(WTERMSIG(status) == SIGKILL);
}
