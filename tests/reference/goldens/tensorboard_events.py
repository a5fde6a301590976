# SPDX-License-Identifier: MIT
"""Event files as TensorBoard's own classes write them."""

import io
import math
import struct
import zlib

SCALARS = [(0, [("loss", 0.6931472)]),
           (1, [("loss", -2.5), ("a/long name", 0.0), ("größe", math.nan)]),
           (300, [("loss", 1e-30), ("lr", 6e-5)]),
           (5_000_000_000, [])]


def png_of(width, height):
    """A grey PNG file, written by hand so that no library's compression is in the bytes."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = b"".join(b"\0" + bytes([7 * y % 256] * (3 * width)) for y in range(height))
    stored = b"\x78\x01\x01" + struct.pack("<HH", len(rows), len(rows) ^ 0xFFFF) + rows + struct.pack(">I", zlib.adler32(rows))
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)) +
            chunk(b"IDAT", stored) + chunk(b"IEND", b""))


def make_events(directory):
    from tensorboard.compat.proto import event_pb2, summary_pb2  # needed by nothing else here
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    stream.close = lambda: None
    writer = RecordWriter(stream)
    events = [event_pb2.Event(wall_time=1700000000.25, file_version="brain.Event:2"),
              event_pb2.Event(wall_time=1700000001.5, step=7, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))]
    for i, (step, values) in enumerate(SCALARS):
        summary = summary_pb2.Summary(value=[summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values])
        events.append(event_pb2.Event(wall_time=1700000002.0 + i, step=step, summary=summary))
    image = summary_pb2.Summary.Image(height=3, width=5, colorspace=3, encoded_image_string=png_of(5, 3))
    events.append(event_pb2.Event(wall_time=1700000010.125, step=12, summary=summary_pb2.Summary(
        value=[summary_pb2.Summary.Value(tag="validation/0", image=image)])))
    for event in events:
        writer.write(event.SerializeToString())
    (directory / "tensorboard.events").write_bytes(stream.getvalue())
    (directory / "tensorboard.png").write_bytes(png_of(5, 3))
