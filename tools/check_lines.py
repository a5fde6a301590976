#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks what CONTRIBUTING.md says of every source file: its first lines hold the licence, and no line is longer than 150
characters. The generated single header is left to its own test.
"""
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("include", "examples", "tests", "bench", "tools")
SOURCES = {".hpp", ".cpp", ".cuh", ".cu", ".py"}
LONGEST = 150


def faults(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    name = path.relative_to(ROOT)
    if not any("SPDX-License-Identifier: MIT" in line for line in lines[:3]):
        yield f"{name}:1: no licence line (SPDX-License-Identifier: MIT)"
    for number, line in enumerate(lines, 1):
        if len(line) > LONGEST:
            yield f"{name}:{number}: {len(line)} characters, {LONGEST} at most"


def main():
    files = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SOURCES]
    found = [fault for path in files for fault in faults(path)]
    print("\n".join(found + [f"check_lines: {len(files)} files, {len(found)} faults"]))
    return 1 if found or not files else 0


if __name__ == "__main__":
    sys.exit(main())
