#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Reads the event files of a training run, taken up again after a stop, with TensorBoard's own reader.

    tests/programs/tensorboard_reader.py build/examples/train_dpo/train_dpo

Numbers must be those of metrics.jsonl, pictures those of the run's folder, and what the resumed run did again must be there
once. Exits with 77 (skipped) where Python has no tensorboard.
"""

import argparse
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib

try:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
except ImportError:
    print("skipped: Python has no tensorboard")
    sys.exit(77)

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/reference"))
import check_tensorboard  # noqa: E402


def write_png(path, colour, side=32):
    """A picture of one colour with a darker lower half."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    rows = [b"\0" + bytes(value // (1 + (y >= side // 2)) for value in colour) * side for y in range(side)]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)) +
                     chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b""))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train_dpo", type=pathlib.Path)
    program = parser.parse_args().train_dpo
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        data, out = folder / "pictures", folder / "out"
        data.mkdir()
        lines = []
        for i, colour in enumerate([(250, 20, 20), (20, 20, 250)]):
            write_png(data / f"good{i}.png", colour)
            write_png(data / f"bad{i}.png", (90, 90, 90))
            lines.append(json.dumps({"caption": "a red circle", "winner": f"good{i}.png", "loser": f"bad{i}.png"}))
        (data / "pairs.jsonl").write_text("\n".join(lines))

        def train(steps, *more):
            subprocess.run([program, "--pretrained_model_name_or_path", ROOT / "examples/tinyworld/model",
                            "--train_data_dir", data, "--output_dir", out, "--threads", "1", "--rank", "2",
                            "--train_batch_size", "2", "--gradient_accumulation_steps", "1", "--lr_scheduler", "constant",
                            "--max_train_steps", str(steps), "--checkpointing_steps", "2", "--validation_steps", "1",
                            "--validation_prompt", "a red circle", "--num_validation_images", "1",
                            "--num_inference_steps", "2", *more], check=True)
        train(3)
        shutil.rmtree(out / "checkpoint-3")  # as if it had died in the fourth step
        (out / "latest").unlink()
        train(5, "--resume")

        assert len(list(out.glob("events.out.tfevents.*"))) == 2
        problems, summary = check_tensorboard.differences(out)
        print(summary)
        events = EventAccumulator(str(out), size_guidance={"images": 0}).Reload()
        drawn = sorted(path.read_bytes() for path in out.glob("validation/*/*.png"))
        shown = sorted(image.encoded_image_string for tag in events.Tags()["images"] for image in events.Images(tag))
        assert len(drawn) == 6  # before the first step and after each
        assert shown == drawn, f"{len(shown)} pictures are not the {len(drawn)} of the folder"
        assert [event.step for event in events.Scalars("train_loss")] == [0, 1, 2, 3, 4]
        sys.exit(f"differ: {problems}" if problems else 0)


if __name__ == "__main__":
    main()
