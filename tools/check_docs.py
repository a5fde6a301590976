#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Keeps the pages' example code and output equal to the real programs.

A page (README.md, docs/**/*.md) marks a fenced block with a comment on the line above it:
  <!-- code: examples/expression.cpp -->     the block is that file, without its licence line
  <!-- output: examples/expression.cpp -->   the block is what that program prints; numbers may differ by 0.2 %

Without options, every code block is compared. `--program SOURCE --binary PATH` runs one program and compares its output.
`--update` writes the truth into the pages instead.
"""
import argparse
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- (code|output): (\S+) -->\n+```[^\n]*\n)(.*?)(^```)", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
RELATIVE, ABSOLUTE = 2e-3, 1e-5


def pages():
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def same_output(expected, actual):
    """Equal text, with numbers compared by value: they may differ between compilers and instruction sets."""
    if NUMBER.sub("#", expected).split() != NUMBER.sub("#", actual).split():
        return False
    pairs = zip(map(float, NUMBER.findall(expected)), map(float, NUMBER.findall(actual)))
    return all(abs(e - a) <= ABSOLUTE + RELATIVE * abs(e) for e, a in pairs)


def code_of(source):
    lines = (ROOT / source).read_text().splitlines(keepends=True)
    return "".join(line for line in lines if "SPDX-License-Identifier" not in line)


def visit(kind, source, truth, is_same, update):
    """Compares or updates all `kind` blocks of `source` (None: of every source). Returns (blocks seen, problems)."""
    seen, problems = 0, []
    for page in filter(pathlib.Path.exists, pages()):
        text = page.read_text()

        def replace(match):
            nonlocal seen
            head, block_kind, block_source, body, end = match.groups()
            if block_kind != kind or source not in (None, block_source):
                return match.group(0)
            seen += 1
            expected = truth(block_source)
            if is_same(body, expected):
                return match.group(0)
            problems.append(f"{page.relative_to(ROOT)}: the {kind} of {block_source} differs; run tools/check_docs.py --update\n"
                            f"--- page\n{body}+++ program\n{expected}")
            return head + expected + end

        updated = BLOCK.sub(replace, text)
        if update and updated != text:
            page.write_text(updated)
    return seen, [] if update else problems


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--program", help="source of the program whose output is compared, such as examples/expression.cpp")
    parser.add_argument("--binary", help="the compiled program")
    parser.add_argument("--update", action="store_true", help="write what is true into the pages")
    args = parser.parse_args()
    if args.program:
        run = subprocess.run([args.binary], capture_output=True, text=True)
        if run.returncode != 0:
            print(f"{args.program} ended with {run.returncode}:\n{run.stdout}{run.stderr}")
            return 1
        seen, problems = visit("output", args.program, lambda _: run.stdout, same_output, args.update)
        if not seen:
            problems.append(f"no page shows what {args.program} prints; put '<!-- output: {args.program} -->' above a block")
    else:
        seen, problems = visit("code", None, code_of, lambda a, b: a == b, args.update)
    for problem in problems:
        print(problem)
    print(f"check_docs: {seen} blocks, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
