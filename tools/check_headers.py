#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Compiles every header of include/lpo alone, warnings as errors, with the first compiler given.

The other compilers get the headers that no other header includes, and so read all of them too. The first sees the
instruction set of this machine, the others the baseline, so both widths of the packs are read.
"""
import argparse
import concurrent.futures
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
WARNINGS = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Wno-sign-conversion", "-Werror"]


def compile_alone(compiler, is_native, header, isystem):
    """Returns the compiler's complaints about a translation unit that includes `header` twice, or an empty string."""
    command = [compiler, "-std=c++20", "-fsyntax-only", "-x", "c++", "-", f"-I{ROOT / 'include'}", *WARNINGS]
    command += [f"-isystem{path}" for path in isystem]
    if is_native:
        command.append("-march=native")
    source = f"#include <{header}>\n#include <{header}>\n"
    result = subprocess.run(command, input=source, capture_output=True, text=True)
    if result.returncode == 0 and not result.stderr:
        return ""
    return f"{header} does not compile alone with {compiler}:\n{result.stderr}"


def roots(headers):
    """The headers that no other of them includes."""
    text = {header: (ROOT / "include" / header).read_text() for header in headers}
    included = {name for header in headers for name in re.findall(r'#include <(lpo/[^>]+)>', text[header])}
    return [header for header in headers if header not in included]


def first_of_tests():
    """The headers that a test includes before anything else: compiling the tests shows that they compile alone."""
    found = set()
    for path in (ROOT / "tests").rglob("*_test.cpp"):
        first = re.search(r'^#include [<"]([^>"]+)', path.read_text(), re.MULTILINE)
        if first and "emulator" not in path.parts:  # where other headers stand in for those of the toolkit
            found.add(first.group(1))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compilers", default="g++", help="comma-separated compilers")
    parser.add_argument("--isystem", action="append", default=[], help="include folder of another library")
    parser.add_argument("--jobs", type=int, default=2, help="compilers that run at once")
    parser.add_argument("--without", action="append", default=[], help="header to leave out: what it needs is not here")
    parser.add_argument("--untested", action="store_true", help="leave those that a test includes first to that test")
    parser.add_argument("headers", nargs="*", help="headers as <lpo/…> names them; default: all of include/lpo")
    args = parser.parse_args()
    include = ROOT / "include"
    headers = args.headers or sorted(p.relative_to(include).as_posix() for p in (include / "lpo").rglob("*.hpp"))
    headers = [header for header in headers if header not in args.without]
    tested = first_of_tests() if args.untested else set()
    compilers = args.compilers.split(",")
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(compile_alone, compiler, i == 0, header, args.isystem)
                for i, compiler in enumerate(compilers)
                for header in (roots(headers) if i else [h for h in headers if h not in tested])]
        complaints = [job.result() for job in jobs if job.result()]
    for complaint in complaints:
        print(complaint)
    print(f"check_headers: {len(headers)} headers, compilers {', '.join(compilers)}, {len(complaints)} failures")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
