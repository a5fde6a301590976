// SPDX-License-Identifier: MIT
// Tests of file mappings and of writes that happen entirely or not at all.
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <lpo/io/file.hpp>
#include <lpo/io/folder_lock.hpp>
#include <optional>
#include <stdexcept>
#include <string>

#include "temporary_directory.hpp"

namespace {

std::size_t entries_in(const std::string& path) {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(path)) ++count;
  return count;
}

}  // namespace

TEST_CASE("a mapping shows the bytes of the file") {
  const TemporaryDirectory directory;
  const lpo::MappedFile file(directory.write("a.txt", "some bytes"));
  CHECK(file.text() == "some bytes");
  CHECK(lpo::MappedFile(directory.write("empty", "")).size() == 0);
  lpo::MappedFile moved;
  lpo::MappedFile source(directory.file("a.txt"));
  moved = std::move(source);
  CHECK(moved.text() == "some bytes");
}

TEST_CASE("a file that cannot be mapped is named, with the reason") {
  const TemporaryDirectory directory;
  const std::string missing = directory.file("missing.bin");
  const std::string text = message_of<lpo::FileError>([&] { lpo::MappedFile file(missing); });
  CHECK(has_part(text, missing));
  CHECK(has_part(text, "No such file"));
  CHECK(has_part(message_of<lpo::FileError>([&] { lpo::MappedFile file(directory.path()); }), "Is a directory"));
  CHECK(has_part(message_of<lpo::FileError>([&] { lpo::MappedFile file("/dev/null"); }), "not a regular file"));
  directory.write("long", "12345");
  CHECK(has_part(message_of<lpo::FileError>([&] { lpo::read_text_file(directory.file("long"), 4); }),
                 "has 5 bytes, expected at most 4"));
}

TEST_CASE("an atomic write replaces the file") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("out.txt");
  const std::string big(200000, 'x');
  lpo::write_text_file(path, "first");
  lpo::write_file_atomically(path, [&](lpo::FileSink& sink) {
    sink.write("second ");
    sink.write(big);
    sink.write(" end");
  });
  CHECK(directory.read("out.txt") == "second " + big + " end");
  CHECK(entries_in(directory.path()) == 1);
}

TEST_CASE("what a killed process of the same id left behind does not hinder a write") {
  const TemporaryDirectory directory;
  const std::string path = directory.file("out.txt"), name = "out.txt.tmp-" + std::to_string(::getpid()) + "-";
  std::string temporary;
  lpo::write_file_atomically(path, [&](lpo::FileSink&) {
    for (const auto& entry : std::filesystem::directory_iterator(directory.path()))
      temporary = entry.path().filename().string();
  });
  REQUIRE(temporary.starts_with(name));
  const int number = std::stoi(temporary.substr(name.size()));
  for (const int next : {1, 2}) directory.write(name + std::to_string(number + next), "left over");
  lpo::write_text_file(path, "text");
  CHECK(directory.read("out.txt") == "text");
  CHECK(entries_in(directory.path()) == 3);
}

TEST_CASE("an exception in the writer leaves the older file and nothing else") {
  const TemporaryDirectory directory;
  const std::string path = directory.write("out.txt", "older");
  CHECK_THROWS_AS(lpo::write_file_atomically(path,
                                             [](lpo::FileSink& sink) {
                                               sink.write("half of it");
                                               throw std::runtime_error("disk");
                                             }),
                  std::runtime_error);
  CHECK(directory.read("out.txt") == "older");
  CHECK(entries_in(directory.path()) == 1);
  CHECK_THROWS_AS(lpo::write_text_file(directory.file("no/such/directory"), "x"), lpo::FileError);
}

TEST_CASE("one lock on a folder at a time, of a process that still runs") {
  const TemporaryDirectory directory;
  const auto attempt = [&] { return message_of<lpo::FileError>([&] { lpo::FolderLock again(directory.path()); }); };
  std::optional<lpo::FolderLock> lock(directory.path());
  const std::string own = attempt();
  CAPTURE(own);
  CHECK(own.starts_with("[lock] " + directory.path() + ": another run writes into this folder (process " +
                        std::to_string(::getpid()) + " on "));
  lock.reset();
  CHECK(attempt() == "(nothing was thrown)");

  int ready[2] = {};
  REQUIRE(::pipe(ready) == 0);
  const ::pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const lpo::FolderLock held(directory.path());
    if (::write(ready[1], "x", 1) != 1) ::_exit(1);
    for (;;) ::pause();
  }
  char byte = 0;
  REQUIRE(::read(ready[0], &byte, 1) == 1);
  CHECK(has_part(attempt(), "process " + std::to_string(child) + " on "));
  ::kill(child, SIGKILL);
  ::waitpid(child, nullptr, 0);
  CHECK(attempt() == "(nothing was thrown)");
  for (const int end : ready) ::close(end);
  CHECK_THROWS_AS(lpo::FolderLock(directory.file("nothing")), lpo::FileError);
}
