// SPDX-License-Identifier: MIT
// FolderLock: one process at a time writes into a folder.
#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstddef>
#include <string>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>
#include <lpo/io/file.hpp>

namespace lpo::inline LPO_ABI {

/// Holds a folder for this process while it lives, by flock() on the file `.lock` in it. The lock is advisory: it keeps
/// out those that ask for it too. The kernel gives it back when the process ends, however it ends, so the file that stays
/// behind locks nothing. It says who holds the folder: the process and its host.
class FolderLock {
 public:
  /// `folder` must exist. FileError, which names the holder, where another lock on it lives, of this process or another.
  /// Where a file system knows no locks, there is none.
  explicit FolderLock(const std::string& folder) : file_(open_lock(folder)) {
    if (::flock(file_.get(), LOCK_EX | LOCK_NB) != 0) {
      if (errno != EWOULDBLOCK) return;  // ENOLCK, ENOSYS, EOPNOTSUPP: of the file system
      const std::string holder = read_holder();
      throw FileError(message("[lock] ", folder, ": another run writes into this folder (",
                              holder.empty() ? "it does not say which" : holder, "); wait for it, or name another folder"));
    }
    std::array<char, 256> host{};
    const bool named = ::gethostname(host.data(), host.size() - 1) == 0;
    const std::string text = message("process ", ::getpid(), " on ", named ? host.data() : "an unknown host", "\n");
    // What a full disk loses of it is missed in a message alone.
    if (::ftruncate(file_.get(), 0) != 0 || ::pwrite(file_.get(), text.data(), text.size(), 0) < 0) return;
  }

 private:
  static int open_lock(const std::string& folder) {
    const std::string path = folder + "/.lock";
    const int descriptor = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (descriptor < 0) detail::file_failure("lock", path, errno);
    return descriptor;
  }

  std::string read_holder() const {
    std::array<char, 512> text{};
    const ::ssize_t count = ::pread(file_.get(), text.data(), text.size(), 0);
    std::string holder(text.data(), count > 0 ? static_cast<std::size_t>(count) : 0);
    return holder.substr(0, holder.find('\n'));
  }

  detail::Descriptor file_;
};

}  // namespace lpo::inline LPO_ABI
