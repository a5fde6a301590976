// SPDX-License-Identifier: MIT
// Runs a program as a user would, and keeps what it printed.
#pragma once

#include <fcntl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <chrono>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

/// The tiny world's model that the repository ships.
inline const std::string tiny_model = std::string(LPO_TEST_SOURCE_DIR) + "/examples/tinyworld/model";

struct ProgramResult {
  int status = 0;       ///< exit status; 128 + signal if it was killed
  std::string printed;  ///< stdout and stderr
};

/// `arguments` are quoted for the shell.
inline ProgramResult run_program(const std::string& path, const std::vector<std::string>& arguments) {
  std::string command = path;
  for (const std::string& argument : arguments) {
    command += " '";
    for (const char c : argument) command += c == '\'' ? std::string("'\\''") : std::string(1, c);
    command += "'";
  }
  command += " 2>&1";
  std::FILE* const pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) throw std::runtime_error("popen failed");
  ProgramResult result;
  std::array<char, 4096> buffer;
  while (const std::size_t count = std::fread(buffer.data(), 1, buffer.size(), pipe))
    result.printed.append(buffer.data(), count);
  const int status = ::pclose(pipe);
  result.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
}

/// Whether a plan is that of a program for GPUs, whose options of a device have a line in it.
inline bool is_plan_for_gpu(const std::string& printed) {
  return printed.find("\ndevice       cuDNN ") != std::string::npos;
}

/// Bytes that a plan counts for the model: its line of memory without the gigabyte that a GPU holds besides. NaN without
/// such a line.
inline double memory_for_model(const std::string& printed) {
  const std::string before = "\nmemory       about ";
  const std::size_t line = printed.find(before);
  if (line == std::string::npos) return std::nan("");
  std::istringstream text(printed.substr(line + before.size()));
  double number = 0;
  std::string unit;
  text >> number >> unit;
  return number * (unit == "GB" ? 1e9 : 1e6) - (is_plan_for_gpu(printed) ? 1e9 : 0);
}

/// A program that runs beside the test and can be sent signals; what it prints goes to a file.
class RunningProgram {
 public:
  RunningProgram(const std::string& path, const std::vector<std::string>& arguments, const std::string& output) {
    std::vector<char*> argv{const_cast<char*>(path.c_str())};
    for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
    argv.push_back(nullptr);
    process_ = ::fork();
    if (process_ < 0) throw std::runtime_error("fork failed");
    if (process_ == 0) {
      const int file = ::open(output.c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
      ::dup2(file, 1);
      ::dup2(file, 2);
      ::execv(path.c_str(), argv.data());
      ::_exit(127);
    }
  }
  RunningProgram(const RunningProgram&) = delete;
  RunningProgram& operator=(const RunningProgram&) = delete;
  ~RunningProgram() {
    if (process_ > 0) {
      ::kill(process_, SIGKILL);
      ::waitpid(process_, nullptr, 0);
    }
  }

  void send(int signal) { ::kill(process_, signal); }

  /// Waits until it ends or `condition()` holds; true if it still runs.
  template <class Condition>
  bool runs_until(const Condition& condition) {
    while (!ended()) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }

  /// Waits for the end. As ProgramResult::status.
  int wait() {
    runs_until([] { return false; });
    return status_;
  }

 private:
  bool ended() {
    if (process_ <= 0) return true;
    int status = 0;
    if (::waitpid(process_, &status, WNOHANG) != process_) return false;
    process_ = 0;
    status_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    return true;
  }

  ::pid_t process_ = 0;
  int status_ = 0;
};
