// SPDX-License-Identifier: MIT
// Runs work where the system gives two more threads and no third.
#pragma once

#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

/// Whether `work()` returned true in a child process in which stacks are so large that two have room. False, too, when it
/// did not return within a minute.
template <class Work>
bool with_few_threads(const Work& work) {
  const pid_t child = ::fork();
  if (child == 0) {
    bool good = false;
    try {
      constexpr std::size_t stack = std::size_t{1} << 31;
      std::size_t pages = 0;
      std::ifstream("/proc/self/statm") >> pages;
      const rlim_t room = pages * static_cast<std::size_t>(::sysconf(_SC_PAGESIZE)) + stack * 13 / 5;
      const rlimit limit{room, room};
      pthread_attr_t attributes;
      good = ::pthread_attr_init(&attributes) == 0 && ::pthread_attr_setstacksize(&attributes, stack) == 0 &&
             ::pthread_setattr_default_np(&attributes) == 0 && ::setrlimit(RLIMIT_AS, &limit) == 0;
      ::alarm(60);
      good = good && work();
    } catch (...) {
      good = false;
    }
    ::_exit(good ? 0 : 1);
  }
  int status = 0;
  return child > 0 && ::waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}
