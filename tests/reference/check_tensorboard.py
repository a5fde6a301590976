# SPDX-License-Identifier: MIT
"""Reads the event files of a training run with TensorBoard's own reader and compares them with its metrics.jsonl.

  python tests/reference/check_tensorboard.py FOLDER_OF_THE_RUN
"""

import argparse
import json
import math
import pathlib
import struct
import sys

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def differences(folder):
    """Names of the metrics that differ, and what was read in words."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    expected = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        values = json.loads(line)
        step = values.pop("step")
        for name, value in values.items():
            expected.setdefault(name, []).append((step, math.nan if value is None else value))
    problems = sorted(set(expected) ^ set(events.Tags()["scalars"]))
    for name, points in expected.items():
        found = [(event.step, event.value) for event in events.Scalars(name)] if name not in problems else []
        same = [step for step, _ in found] == [step for step, _ in points] and all(
            struct.pack("<f", a) == struct.pack("<f", b) or (math.isnan(a) and math.isnan(b))
            for (_, a), (_, b) in zip(found, points))
        if not same:
            problems.append(name)
    pictures = {tag: [(image.step, image.width, image.height) for image in events.Images(tag)] for tag in events.Tags()["images"]}
    return problems, f"{len(expected)} scalars, {max(map(len, expected.values()))} steps, {len(pictures)} pictures: {pictures}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    problems, summary = differences(parser.parse_args().folder)
    print(summary)
    sys.exit(f"differ: {problems}" if problems else 0)


if __name__ == "__main__":
    main()
