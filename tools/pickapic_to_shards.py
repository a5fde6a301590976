#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Converts a preference set in Parquet files (the columns of Pick-a-Pic) to tar shards that train_lrm reads.

    pickapic_to_shards.py pickapic_v1/data/train-*.parquet --out shards/train

A shard holds NAME.json, NAME.0.jpg and NAME.1.jpg for each row; NAME is the row's number over all files in the order
given, which score files refer to. Shards that are there already are left alone, so an interrupted run goes on. Needs
pyarrow.
"""

import argparse
import io
import json
import os
import pathlib
import sys
import tarfile
import tempfile

TEXTS = ["caption", "image_0_uid", "image_1_uid", "best_image_uid"]
NUMBERS = ["label_0", "label_1", "num_example_per_prompt"]
FLAGS = ["are_different", "has_label"]
NEEDED = ["caption", "jpg_0", "jpg_1", "label_0", "label_1"]
SKIPPED = 77  # what CTest takes for "skipped"


def rows_of(paths, parquet):
    """Yields the rows of all files as dictionaries of the columns above."""
    for path in paths:
        file = parquet.ParquetFile(path)
        names = set(file.schema_arrow.names)
        missing = [name for name in NEEDED if name not in names]
        if missing:
            sys.exit(f"pickapic_to_shards: {path}: has no column {missing[0]!r}; expected {', '.join(NEEDED)}")
        columns = [name for name in ["jpg_0", "jpg_1"] + TEXTS + NUMBERS + FLAGS if name in names]
        for batch in file.iter_batches(batch_size=64, columns=columns):
            yield from batch.to_pylist()


def members(number, row):
    """(name, bytes) of one row's files."""
    about = {"row": number, **{key: row[key] for key in TEXTS + NUMBERS + FLAGS if row.get(key) is not None}}
    about["caption"] = row["caption"] or ""
    name = f"{number:08d}"
    yield name + ".json", json.dumps(about, ensure_ascii=False).encode()
    for which in (0, 1):
        picture = row[f"jpg_{which}"]
        if isinstance(picture, dict):  # the datasets library's Image feature
            picture = picture["bytes"]
        if not picture:
            sys.exit(f"pickapic_to_shards: row {number} has no jpg_{which}")
        yield f"{name}.{which}.{'png' if picture.startswith(bytes([0x89]) + b'PNG') else 'jpg'}", picture


class ShardWriter:
    """Writes shard-<number>.tar under a temporary name and renames it when it is complete."""

    def __init__(self, folder, number):
        self.path = folder / f"shard-{number:06d}.tar"
        self.tar = None
        if not self.path.exists():
            self.partial = folder / f".partial-{os.getpid()}-{self.path.name}"
            self.tar = tarfile.open(self.partial, "w", format=tarfile.USTAR_FORMAT)

    def add(self, number, row):
        for name, content in members(number, row) if self.tar else ():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            self.tar.addfile(info, io.BytesIO(content))

    def close(self):
        if self.tar:
            self.tar.close()
            with open(self.partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(self.partial, self.path)
            print(self.path, flush=True)


def convert(paths, folder, per_shard, parquet):
    """Returns the number of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    shard, count = None, 0
    for row in rows_of(paths, parquet):
        if count % per_shard == 0:
            if shard:
                shard.close()
            shard = ShardWriter(folder, count // per_shard)
        shard.add(count, row)
        count += 1
    if shard:
        shard.close()
    return count


def self_test(parquet):
    import pyarrow

    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        rows = [{"caption": f"prompt {i} \u00e9", "jpg_0": b"\xff\xd8" + bytes([i]), "jpg_1": b"\x89PNG" + bytes([i]),
                 "label_0": 0.5, "label_1": 0.5, "has_label": True, "num_example_per_prompt": 2, "image_0_uid": f"u{i}"}
                for i in range(5)]
        paths = [folder / "a.parquet", folder / "b.parquet"]
        parquet.write_table(pyarrow.Table.from_pylist(rows[:3]), paths[0])
        parquet.write_table(pyarrow.Table.from_pylist(rows[3:]), paths[1])
        out = folder / "out"
        assert convert(paths, out, 2, parquet) == 5
        shards = sorted(out.iterdir())
        assert [path.name for path in shards] == [f"shard-{i:06d}.tar" for i in range(3)], shards
        with tarfile.open(shards[1]) as tar:
            assert tar.getnames() == ["00000002.json", "00000002.0.jpg", "00000002.1.png",
                                      "00000003.json", "00000003.0.jpg", "00000003.1.png"]
            about = json.load(tar.extractfile("00000003.json"))
            assert about == {"row": 3, "caption": "prompt 3 \u00e9", "image_0_uid": "u3", "label_0": 0.5, "label_1": 0.5,
                             "num_example_per_prompt": 2, "has_label": True}, about
            assert tar.extractfile("00000003.1.png").read() == b"\x89PNG\x03"
        before = shards[0].read_bytes()
        shards[2].unlink()
        shards[0].write_bytes(b"left alone")
        assert convert(paths, out, 2, parquet) == 5
        assert shards[0].read_bytes() == b"left alone" and shards[2].exists() and before
    print("self-test: five rows in two files became three shards")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=pathlib.Path, help="Parquet files, in the order of the set")
    parser.add_argument("--out", type=pathlib.Path, help="folder of the shards")
    parser.add_argument("--per-shard", type=int, default=1000, help="rows of a shard")
    parser.add_argument("--self-test", action="store_true", help="convert a small set and check the shards")
    arguments = parser.parse_args()
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        print("pickapic_to_shards: needs pyarrow (pip install pyarrow)", file=sys.stderr)
        return SKIPPED if arguments.self_test else 1
    if arguments.self_test:
        return self_test(parquet)
    if not arguments.files or not arguments.out or arguments.per_shard < 1:
        parser.error("give Parquet files, --out and at least 1 row a shard")
    print(f"{convert(arguments.files, arguments.out, arguments.per_shard, parquet)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
