#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Prints what it costs to compile lpo: the umbrella, whole programs, and, when asked, all headers of each room.

Times are processor seconds of the compiler, so that other work on the machine changes them little. The umbrella and the
programs have budgets; a budget is marked when it is exceeded, and fails when it is exceeded grossly.
"""
import argparse
import os
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
INCLUDE = ROOT / "include"
UMBRELLA_BUDGET = (1.0, 400)  # seconds, MB
# Machines differ, and caches are shared with whatever else runs: only this many times the budget is a failure.
TOLERANCE = 6.0


def compile_cost(command, source):
    """Returns (processor seconds, peak MB, standard output) of a compiler that reads `source`."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
        child.stdin.write(source)
        child.stdin.close()
        output = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise SystemExit(f"include_cost: cannot compile\n{source}\n{output}")
    # wait4 counts the compiler proper together with its driver; ru_maxrss is the larger of the two, in kB.
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output


def measure(compiler, source, optimisation, isystem):
    """Returns (seconds, MB, preprocessed lines) of compiling `source`."""
    flags = ["-std=c++20", "-x", "c++", f"-I{INCLUDE}", *(f"-isystem{p}" for p in isystem), "-"]
    seconds, megabytes, _ = compile_cost([compiler, optimisation, "-c", "-o", os.devnull, *flags], source)
    _, _, text = compile_cost([compiler, "-E", "-P", *flags], source)
    return seconds, megabytes, text.count("\n")


def header_rows(is_rooms, is_each):
    """Yields (title, source, optimisation, budget) for the umbrella, then also for each room, or for each header."""
    rooms = {}
    for path in sorted((INCLUDE / "lpo").rglob("*.hpp")):
        header = path.relative_to(INCLUDE).as_posix()
        folder = header.rpartition("/")[0]
        title = header if is_each or folder == "lpo" else folder + "/*"
        rooms.setdefault(title, []).append(header)
    for title, headers in rooms.items():
        source = "".join(f"#include <{h}>\n" for h in headers)
        budget = UMBRELLA_BUDGET if title == "lpo/lpo.hpp" else None
        if budget or is_rooms or is_each:
            yield title, source, "-O0", budget


def program_row(path):
    """A program states its budget in its first line: `// budget: 10 s, 1000 MB`."""
    source = path.read_text()
    budget = re.match(r"// budget: ([\d.]+) s, (\d+) MB\n", source)
    if not budget:
        raise SystemExit(f"include_cost: {path}: the first line must be '// budget: <seconds> s, <megabytes> MB'")
    return path.name, source, "-O2", (float(budget.group(1)), int(budget.group(2)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compiler", default="g++")
    parser.add_argument("--isystem", action="append", default=[], help="include folder of another library")
    parser.add_argument("--rooms", action="store_true", help="list the rooms, which have no budgets")
    parser.add_argument("--each", action="store_true", help="list every header")
    parser.add_argument("programs", nargs="*", type=pathlib.Path, help="programs to compile at -O2")
    args = parser.parse_args()
    gross = []
    print(f"{'compiled':<36} {'flag':<4} {'seconds':>8} {'MB':>6} {'lines':>8}")
    for title, source, optimisation, budget in [*header_rows(args.rooms, args.each), *map(program_row, args.programs)]:
        seconds, megabytes, lines = measure(args.compiler, source, optimisation, args.isystem)
        note = ""
        if budget:
            is_over = seconds > budget[0] or megabytes > budget[1]
            note = f"  budget {budget[0]:g} s, {budget[1]} MB" + (" EXCEEDED" if is_over else "")
            if seconds > TOLERANCE * budget[0] or megabytes > TOLERANCE * budget[1]:
                gross.append(title)
        print(f"{title:<36} {optimisation:<4} {seconds:>8.2f} {megabytes:>6.0f} {lines:>8}{note}", flush=True)
    if gross:
        print(f"more than {TOLERANCE:g} times over budget: {', '.join(gross)}")
    return 1 if gross else 0


if __name__ == "__main__":
    sys.exit(main())
