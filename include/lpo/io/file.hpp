// SPDX-License-Identifier: MIT
// Files as the library sees them: a read-only mapping, a text read whole, and a write that happens entirely or not at
// all.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <lpo/base/config.hpp>
#include <lpo/base/error.hpp>

namespace lpo::inline LPO_ABI {

namespace detail {

[[noreturn]] LPO_COLD inline void file_failure(const char* operation, const std::string& path, int error_number) {
  throw FileError(message("[", operation, "] ", path, ": ", std::strerror(error_number)));
}

/// A file descriptor that closes itself.
class Descriptor {
 public:
  explicit Descriptor(int number) : number_(number) {}
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor() {
    if (number_ >= 0) ::close(number_);
  }
  int get() const { return number_; }
  int release() { return std::exchange(number_, -1); }

 private:
  int number_;
};

inline std::string directory_of(const std::string& path) {
  const std::size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace detail

/// True if `path` names an existing regular file (or a link to one).
inline bool file_exists(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISREG(status.st_mode);
}

/// True if `path` names an existing directory (or a link to one).
inline bool directory_exists(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

/// Makes a directory and those above it; one that exists already is fine.
inline void make_directories(const std::string& path) {
  for (std::size_t slash = path.find('/', 1);; slash = path.find('/', slash + 1)) {
    const std::string part = path.substr(0, slash);
    if (!part.empty() && ::mkdir(part.c_str(), 0777) != 0 && errno != EEXIST)
      detail::file_failure("mkdir", part, errno);
    if (slash == std::string::npos) break;
  }
  struct stat status {};
  if (::stat(path.c_str(), &status) != 0) detail::file_failure("mkdir", path, errno);
  if (!S_ISDIR(status.st_mode)) detail::file_failure("mkdir", path, ENOTDIR);
}

/// A regular file mapped read-only into memory; pages are read when touched. Another process that shortens the file
/// while it is mapped makes reads fault, as for every mapping; files replaced by rename (as lpo writes them) are safe.
class MappedFile {
 public:
  MappedFile() = default;

  /// Throws FileError with the path and the system's reason.
  explicit MappedFile(std::string path) : path_(std::move(path)) {
    const detail::Descriptor file(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    if (file.get() < 0) detail::file_failure("open", path_, errno);
    struct stat status {};
    if (::fstat(file.get(), &status) != 0) detail::file_failure("open", path_, errno);
    if (S_ISDIR(status.st_mode)) detail::file_failure("open", path_, EISDIR);
    if (!S_ISREG(status.st_mode)) throw FileError(message("[open] ", path_, ": not a regular file"));
    size_ = static_cast<std::size_t>(status.st_size);
    if (size_ == 0) return;  // mmap refuses length 0
    void* const address = ::mmap(nullptr, size_, PROT_READ, MAP_PRIVATE, file.get(), 0);
    if (address == MAP_FAILED) detail::file_failure("map", path_, errno);
    data_ = static_cast<const std::byte*>(address);
  }

  MappedFile(MappedFile&& other) noexcept
      : path_(std::move(other.path_)),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)) {}
  MappedFile& operator=(MappedFile&& other) noexcept {
    std::swap(path_, other.path_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~MappedFile() {
    if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_);
  }

  /// Gives back the memory of pages that were read; they are fetched from the file again when touched. For programs
  /// that walk through files larger than the memory they may take.
  void release_pages() const {
    release_pages(data_, size_);
  }
  /// The same for the pages that hold any of `bytes` bytes at `first`, which lie in this mapping.
  void release_pages(const std::byte* first, std::size_t bytes) const {
    if (data_ == nullptr || bytes == 0) return;
    const auto before = reinterpret_cast<std::uintptr_t>(first) % static_cast<std::uintptr_t>(::sysconf(_SC_PAGESIZE));
    ::madvise(const_cast<std::byte*>(first - before), bytes + before, MADV_DONTNEED);
  }

  /// True for a byte of this mapping.
  bool contains(const std::byte* byte) const {
    return data_ != nullptr && !std::less<>()(byte, data_) && std::less<>()(byte, data_ + size_);
  }

  const std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  const std::string& path() const { return path_; }
  std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  std::size_t size_ = 0;
};

/// The whole of a small file. More than `limit` bytes is a FileError, so that a wrong path cannot eat the memory.
inline std::string read_text_file(const std::string& path, std::size_t limit = std::size_t{1} << 28) {
  const MappedFile file(path);
  if (file.size() > limit)
    throw FileError(message("[read] ", path, ": has ", file.size(), " bytes, expected at most ", limit));
  return std::string(file.text());
}

/// Where `write_file_atomically` lets its writer put bytes; buffers small pieces.
class FileSink {
 public:
  FileSink(int descriptor, const std::string& path) : descriptor_(descriptor), path_(path) {
    buffer_.reserve(buffer_bytes);
  }
  FileSink(const FileSink&) = delete;
  FileSink& operator=(const FileSink&) = delete;

  void write(const void* data, std::size_t bytes) {
    const auto* const first = static_cast<const char*>(data);
    if (buffer_.size() + bytes > buffer_bytes) flush();
    if (bytes >= buffer_bytes) {
      put(first, bytes);
    } else if (bytes != 0) {
      buffer_.insert(buffer_.end(), first, first + bytes);
    }
  }
  void write(std::string_view text) { write(text.data(), text.size()); }

  void flush() {
    put(buffer_.data(), buffer_.size());
    buffer_.clear();
  }

 private:
  static constexpr std::size_t buffer_bytes = std::size_t{1} << 16;

  void put(const char* data, std::size_t bytes) {
    while (bytes != 0) {
      const ::ssize_t written = ::write(descriptor_, data, bytes);
      if (written < 0) {
        if (errno == EINTR) continue;
        detail::file_failure("write", path_, errno);
      }
      data += written;
      bytes -= static_cast<std::size_t>(written);
    }
  }

  int descriptor_;
  const std::string& path_;
  std::vector<char> buffer_;
};

/// Calls `writer(FileSink&)` on a temporary file beside `path`, syncs it, and renames it to `path`. If the writer or
/// the disk fails, the temporary is removed, an older file at `path` is as it was, and the exception goes on to the
/// caller.
template <class Writer>
void write_file_atomically(const std::string& path, Writer&& writer) {
  static std::atomic<unsigned> counter{0};
  std::string temporary;
  int descriptor = -1;
  do {  // a killed process of the same id, often 1 in containers, may have left a file of the name behind
    temporary = message(path, ".tmp-", ::getpid(), "-", counter.fetch_add(1));
    // open() and not mkstemp(): the file shall get the permissions that the user's umask asks for.
    descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
  } while (descriptor < 0 && errno == EEXIST);
  if (descriptor < 0) detail::file_failure("write", path, errno);
  detail::Descriptor file(descriptor);
  try {
    FileSink sink(file.get(), path);
    std::forward<Writer>(writer)(sink);
    sink.flush();
    if (::fsync(file.get()) != 0) detail::file_failure("write", path, errno);
    if (::close(file.release()) != 0) detail::file_failure("write", path, errno);
    if (std::rename(temporary.c_str(), path.c_str()) != 0) detail::file_failure("rename", path, errno);
  } catch (...) {
    ::unlink(temporary.c_str());
    throw;
  }
  // Makes the new name durable. Some file systems cannot sync a directory; the data itself is safe by now.
  const detail::Descriptor directory(::open(detail::directory_of(path).c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (directory.get() >= 0) ::fsync(directory.get());
}

/// Writes `text` to `path`, entirely or not at all.
inline void write_text_file(const std::string& path, std::string_view text) {
  write_file_atomically(path, [&](FileSink& sink) { sink.write(text); });
}

}  // namespace lpo::inline LPO_ABI
