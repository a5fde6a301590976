// SPDX-License-Identifier: MIT
// Event files: byte for byte those of TensorBoard's own classes; checksums against published vectors; files of a run.
#include <doctest/doctest.h>
#include <common/tensorboard.hpp>

#include <cmath>
#include <limits>

#include "../io/temporary_directory.hpp"

using examples::EventMessages, examples::event_record;

TEST_CASE("CRC-32C gives the check values of RFC 3720 and of the catalogue of CRC algorithms") {
  CHECK(examples::detail::crc32c("123456789") == 0xE3069283u);
  CHECK(examples::detail::crc32c(std::string(32, '\0')) == 0x8A9136AAu);
  CHECK(examples::detail::crc32c(std::string(32, '\xff')) == 0x62A8AB43u);
  CHECK(examples::detail::crc32c("") == 0u);
}

TEST_CASE("events are byte for byte those of TensorBoard's own classes") {
  const std::string golden = LPO_TEST_GOLDEN_DIR;
  const std::string png = lpo::read_text_file(golden + "/tensorboard.png");
  const double t = 1700000002.0;
  std::string file = event_record(EventMessages::version(1700000000.25));
  file += event_record(EventMessages::restart(1700000001.5, 7));
  file += event_record(EventMessages::scalars(t, 0, {{"loss", 0.6931472}}));
  file += event_record(EventMessages::scalars(
      t + 1, 1, {{"loss", -2.5}, {"a/long name", 0.0}, {"größe", std::numeric_limits<double>::quiet_NaN()}}));
  file += event_record(EventMessages::scalars(t + 2, 300, {{"loss", 1e-30}, {"lr", 6e-5}}));
  file += event_record(EventMessages::scalars(t + 3, 5000000000, {}));
  file += event_record(EventMessages::picture(1700000010.125, 12, "validation/0", 3, 5, png));
  CHECK(file == lpo::read_text_file(golden + "/tensorboard.events"));
}

TEST_CASE("a run's files have names of their own; a resumed run says from where") {
  const TemporaryDirectory directory;
  std::string first, second;
  {
    examples::EventWriter writer(directory.path(), 0);
    writer.scalars(0, {{"loss", 1.0}});
    first = writer.path();
  }
  {
    examples::EventWriter writer(directory.path(), 4);
    second = writer.path();
  }
  CHECK(first != second);
  CHECK(directory.entries().size() == 2);
  for (const std::string& name : directory.entries()) CHECK(name.starts_with("events.out.tfevents."));
  // Header of 12 bytes, 9 of time, 2 + 13 of the version, checksum of 4; then the same frame with time, tag and number.
  CHECK(lpo::read_text_file(first).size() == 40 + 16 + 9 + 2 + 2 + 2 + 4 + 5);
  CHECK(lpo::read_text_file(second).size() == 40 + 16 + 9 + 2 + 2 + 2);
  CHECK(has_part(message_of<lpo::FileError>([&] { examples::EventWriter(first + "/x", 0); }), "x"));
}
