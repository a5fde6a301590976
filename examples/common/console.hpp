// SPDX-License-Identifier: MIT
// What every example program needs at a terminal: a progress line with time left, Ctrl-C that ends cleanly, error exits.
#pragma once

#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <exception>
#include <string>

#include <lpo/train/progress.hpp>

namespace examples {

/// True once the user pressed Ctrl-C; work then stops at the next step.
inline volatile std::sig_atomic_t& interrupted() {
  static volatile std::sig_atomic_t flag = 0;
  return flag;
}

inline void handle_interrupts() {
  std::signal(SIGINT, [](int) {
    interrupted() = 1;
    std::signal(SIGINT, SIG_DFL);  // a second Ctrl-C ends the program at once
  });
  // Launchers and batch systems pass the last one on, or send it some time before they end a job.
  for (const int signal : {SIGTERM, SIGUSR1}) std::signal(signal, [](int) { interrupted() = 1; });
}

inline std::string clock_text(double seconds) {
  const long total = static_cast<long>(seconds + 0.5);
  char text[32];
  if (total >= 3600)
    std::snprintf(text, sizeof text, "%ld:%02ld:%02ld", total / 3600, total / 60 % 60, total % 60);
  else
    std::snprintf(text, sizeof text, "%ld:%02ld", total / 60, total % 60);
  return text;
}

/// Draws progress on stderr: one line that is rewritten on a terminal, a line every ten seconds otherwise.
class ProgressBar {
 public:
  bool operator()(const lpo::Progress& p) {
    const bool terminal = isatty(2) != 0;
    const bool last = p.step >= p.total;
    if (p.stage != stage_ || p.seconds < shown_) {
      stage_ = p.stage;
      shown_ = -1e9;
      ended_ = false;
    }
    if ((last && !ended_) || p.seconds - shown_ >= (terminal ? 0.2 : 10.0)) {
      shown_ = p.seconds;
      ended_ = last;
      draw(p, terminal, last);
    }
    return interrupted() == 0;
  }

 private:
  static void draw(const lpo::Progress& p, bool terminal, bool last) {
    constexpr int width = 24;
    const double share = p.total > 0 ? static_cast<double>(p.step) / static_cast<double>(p.total) : 1.0;
    std::string bar(width, '.');
    for (int i = 0; i < static_cast<int>(share * width + 1e-9); ++i) bar[static_cast<std::size_t>(i)] = '#';
    std::string text;
    for (const auto& [name, value] : p.metrics) {
      char number[64];
      std::snprintf(number, sizeof number, "  %s %.4g", name.c_str(), value);
      text += number;
    }
    std::fprintf(stderr, "%s%-14s [%s] %lld/%lld  %s elapsed, %s left%s%s", terminal ? "\r\033[K" : "", p.stage.c_str(), bar.c_str(),
                 static_cast<long long>(p.step), static_cast<long long>(p.total), clock_text(p.seconds).c_str(),
                 clock_text(p.remaining()).c_str(), text.c_str(), terminal && !last ? "" : "\n");
    std::fflush(stderr);
  }

  std::string stage_;
  double shown_ = -1e9;
  bool ended_ = false;  ///< the last line is drawn once, however often the work is reported as done
};

/// Runs `body`. Where it runs out of a device's memory, `print_plan()` shows what was to be expected.
template <class Body, class PrintPlan>
void run_within_memory(const Body& body, const PrintPlan& print_plan) {
  try {
    body();
  } catch (const lpo::DeviceMemoryError&) {
    std::printf("\nthe device's memory ran out; the plan was\n");
    print_plan();
    throw;
  }
}

/// Runs a program's body; errors become one line on stderr and exit status 1, Ctrl-C becomes status 130.
template <class Body>
int run(const char* program, Body&& body) {
  handle_interrupts();
  try {
    body();
    return 0;
  } catch (const lpo::CancelledError& error) {
    std::fprintf(stderr, "\n%s: stopped: %s\n", program, error.what());
    return 130;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "\n%s: error: %s\n", program, error.what());
    return 1;
  }
}

}  // namespace examples
