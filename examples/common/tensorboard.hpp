// SPDX-License-Identifier: MIT
// Event files for TensorBoard: numbers and pictures over the steps of a run, in its record format.
#pragma once

#include <unistd.h>

#include <array>
#include <atomic>
#include <bit>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>
#include <string_view>
#include <utility>

#include <lpo/base/error.hpp>
#include <lpo/io/file.hpp>
#include <lpo/train/metrics.hpp>

namespace examples {

namespace detail {

/// CRC-32C (Castagnoli; reflected polynomial 0x82F63B78), as RFC 3720 uses it.
inline std::uint32_t crc32c(std::string_view bytes) {
  static constexpr auto table = [] {
    std::array<std::uint32_t, 256> values{};
    for (std::uint32_t i = 0; i < 256; ++i) {
      std::uint32_t value = i;
      for (int bit = 0; bit < 8; ++bit) value = (value >> 1) ^ ((value & 1) != 0 ? 0x82F63B78u : 0u);
      values[i] = value;
    }
    return values;
  }();
  std::uint32_t crc = 0xFFFFFFFFu;
  for (const char c : bytes) crc = (crc >> 8) ^ table[(crc ^ static_cast<unsigned char>(c)) & 0xFFu];
  return ~crc;
}

/// A message in protobuf's wire format, built field by field in ascending order. Numbers that are 0 are left out, as
/// proto3 does.
class ProtobufMessage {
 public:
  ProtobufMessage& integer(int field, std::uint64_t value) {
    if (value == 0) return *this;
    key(field, 0);
    varint(value);
    return *this;
  }
  ProtobufMessage& real64(int field, double value) {
    if (value == 0) return *this;
    key(field, 1);
    little_endian(std::bit_cast<std::uint64_t>(value), 8);
    return *this;
  }
  /// A member of a oneof: written even if it is 0.
  ProtobufMessage& real32(int field, float value) {
    key(field, 5);
    little_endian(std::bit_cast<std::uint32_t>(value), 4);
    return *this;
  }
  ProtobufMessage& text(int field, std::string_view value) {
    key(field, 2);
    varint(value.size());
    bytes_ += value;
    return *this;
  }
  ProtobufMessage& message(int field, const ProtobufMessage& value) { return text(field, value.bytes_); }

  const std::string& bytes() const { return bytes_; }

 private:
  void key(int field, unsigned kind) { varint((static_cast<std::uint64_t>(field) << 3) | kind); }
  void varint(std::uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>((value & 0x7F) | 0x80);
    bytes_ += static_cast<char>(value);
  }
  void little_endian(std::uint64_t value, int count) {
    for (int i = 0; i < count; ++i) bytes_ += static_cast<char>((value >> (8 * i)) & 0xFF);
  }

  std::string bytes_;
};

}  // namespace detail

/// One record: length, its checksum, data, its checksum; little endian. Checksums are rotated and shifted by a
/// constant, so that one over data with checksums in it stays a good one.
inline std::string event_record(std::string_view data) {
  const auto number = [](std::uint64_t value, int count) {
    std::string bytes;
    for (int i = 0; i < count; ++i) bytes += static_cast<char>((value >> (8 * i)) & 0xFF);
    return bytes;
  };
  const auto checksum = [&](std::string_view bytes) {
    const std::uint32_t crc = detail::crc32c(bytes);
    return number(((crc >> 15) | (crc << 17)) + 0xA282EAD8u, 4);
  };
  const std::string length = number(data.size(), 8);
  return length + checksum(length) + std::string(data) + checksum(data);
}

/// The events of a file as bytes for `event_record`. `wall_time` is in seconds since 1970.
class EventMessages {
 public:
  /// What a file begins with.
  static std::string version(double wall_time) {
    return detail::ProtobufMessage().real64(1, wall_time).text(3, "brain.Event:2").bytes();
  }
  /// The run goes on from `step`: readers forget what was logged for it and later ones before.
  static std::string restart(double wall_time, lpo::index_t step) {
    return begin(wall_time, step).message(7, detail::ProtobufMessage().integer(1, 1)).bytes();
  }
  static std::string scalars(double wall_time, lpo::index_t step, const lpo::MetricValues& values) {
    detail::ProtobufMessage summary;
    for (const auto& [tag, value] : values)
      summary.message(1, detail::ProtobufMessage().text(1, tag).real32(2, static_cast<float>(value)));
    return begin(wall_time, step).message(5, summary).bytes();
  }
  static std::string picture(double wall_time, lpo::index_t step, const std::string& tag, int height, int width,
                             std::string_view png) {
    detail::ProtobufMessage image;
    image.integer(1, static_cast<std::uint64_t>(height)).integer(2, static_cast<std::uint64_t>(width));
    image.integer(3, 3).text(4, png);  // 3 colours
    const auto value = detail::ProtobufMessage().text(1, tag).message(4, image);
    return begin(wall_time, step).message(5, detail::ProtobufMessage().message(1, value)).bytes();
  }

 private:
  static detail::ProtobufMessage begin(double wall_time, lpo::index_t step) {
    return detail::ProtobufMessage().real64(1, wall_time).integer(2, static_cast<std::uint64_t>(step));
  }
};

/// Writes `folder`/events.out.tfevents.<time>.<host>.<process>.<number>. A resumed run writes one file more; beginning
/// at `first_step`, it replaces what an interrupted run wrote from there on.
class EventWriter {
 public:
  EventWriter(const std::string& folder, lpo::index_t first_step) {
    static std::atomic<int> counter{0};
    lpo::make_directories(folder);
    char host[256] = "host";
    ::gethostname(host, sizeof host - 1);
    path_ = lpo::message(folder, "/events.out.tfevents.", static_cast<long long>(now()), ".", host, ".", ::getpid(),
                         ".", counter.fetch_add(1));
    file_ = std::fopen(path_.c_str(), "wb");
    if (file_ == nullptr)
      throw lpo::FileError(lpo::message("[EventWriter] cannot write ", path_, "; check the folder's permissions"));
    put(EventMessages::version(now()));
    if (first_step > 0) put(EventMessages::restart(now(), first_step));
  }
  EventWriter(const EventWriter&) = delete;
  EventWriter& operator=(const EventWriter&) = delete;
  ~EventWriter() { std::fclose(file_); }

  void scalars(lpo::index_t step, const lpo::MetricValues& values) { put(EventMessages::scalars(now(), step, values)); }
  /// `png`: the bytes of a PNG file.
  void picture(lpo::index_t step, const std::string& tag, int height, int width, std::string_view png) {
    put(EventMessages::picture(now(), step, tag, height, width, png));
  }

  const std::string& path() const { return path_; }

 private:
  static double now() {
    return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  }
  void put(const std::string& event) {
    const std::string record = event_record(event);
    if (std::fwrite(record.data(), 1, record.size(), file_) != record.size() || std::fflush(file_) != 0)
      throw lpo::FileError(lpo::message("[EventWriter] cannot write to ", path_, "; is the disk full?"));
  }

  std::string path_;
  std::FILE* file_ = nullptr;
};

}  // namespace examples
