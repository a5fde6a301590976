#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prints what it costs to include lpo: seconds and lines for the umbrella and for all headers of each room.

The umbrella has a limit. Elsewhere the table is only for reading; `--each` lists every header on its own.
"""
import argparse
import os
import pathlib
import resource
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
INCLUDE = ROOT / "include"
UMBRELLA_BUDGET_SECONDS = 1.0
# The build machine may be busy with other work, so only a gross excess over the budget fails.
UMBRELLA_LIMIT_SECONDS = 6.0


def run(command, source):
    start_cpu = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, input=source, capture_output=True, text=True)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode != 0:
        raise SystemExit(f"include_cost: cannot compile {source!r}:\n{result.stderr}")
    # Processor time: other programs on the machine do not change it much.
    return used.ru_utime + used.ru_stime - start_cpu.ru_utime - start_cpu.ru_stime, result.stdout


def measure(compiler, headers, isystem):
    """Returns (seconds to compile, preprocessed lines) of a unit that includes `headers` at -O0."""
    source = "".join(f"#include <{h}>\n" for h in headers)
    flags = ["-std=c++20", "-O0", "-x", "c++", f"-I{INCLUDE}", *(f"-isystem{p}" for p in isystem), "-"]
    seconds, _ = run([compiler, "-c", "-o", os.devnull, *flags], source)
    _, text = run([compiler, "-E", "-P", *flags], source)
    return seconds, text.count("\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--isystem", action="append", default=[], help="include folder of another library")
    parser.add_argument("--each", action="store_true", help="list every header, not only the rooms")
    args = parser.parse_args()
    everything = sorted(p.relative_to(INCLUDE).as_posix() for p in (INCLUDE / "lpo").rglob("*.hpp"))
    rows = {}
    for header in everything:
        parts = header.split("/")
        title = header if args.each or len(parts) == 2 else "/".join(parts[:-1]) + "/*"
        rows.setdefault(title, []).append(header)
    print(f"{'include':<40} {'headers':>7} {'seconds':>8} {'lines':>8}")
    is_over = False
    for title, headers in rows.items():
        seconds, lines = measure(args.compiler, headers, args.isystem)
        note = ""
        if title == "lpo/lpo.hpp":
            note = f"  budget {UMBRELLA_BUDGET_SECONDS} s" + (" EXCEEDED" if seconds > UMBRELLA_BUDGET_SECONDS else "")
            is_over = seconds > UMBRELLA_LIMIT_SECONDS
        print(f"{title:<40} {len(headers):>7} {seconds:>8.2f} {lines:>8}{note}")
    if is_over:
        print(f"lpo/lpo.hpp costs more than {UMBRELLA_LIMIT_SECONDS} s, far above its budget")
    return 1 if is_over else 0


if __name__ == "__main__":
    sys.exit(main())
