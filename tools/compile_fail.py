#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks that a wrong program fails to compile with exactly one error that holds the expected sentence.

The first line of the program is `// expect: <sentence>`. Every compiler given must say the sentence, once. A second line
`// flags: <flags>` gives the compiler these too, behind -std=c++20.
"""
import argparse
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
ERROR = re.compile(r"\b(?:fatal )?error: ")


def shorten(text, width=300, lines=40):
    """Compilers print whole expression trees; the first part of each line is enough to see what happened."""
    return "\n".join(line[:width] for line in text.splitlines()[:lines])


def judge(compiler, source, isystem):
    """Returns what is wrong with the way `compiler` rejects `source`, or an empty string."""
    first_line, *others = source.read_text().splitlines()
    if not first_line.startswith("// expect: "):
        return f"{source.name}: the first line must be '// expect: <sentence>'"
    sentence = first_line.removeprefix("// expect: ").strip()
    flags = others[0].removeprefix("// flags: ").split() if others and others[0].startswith("// flags: ") else []
    command = [compiler, "-std=c++20", *flags, "-fsyntax-only", f"-I{ROOT / 'include'}", *(f"-isystem{p}" for p in isystem), str(source)]
    result = subprocess.run(command, capture_output=True, text=True)
    errors = [line for line in result.stderr.splitlines() if ERROR.search(line)]
    if result.returncode == 0:
        return f"{source.name}: {compiler} accepts it, expected: {sentence}"
    if not any(sentence in line for line in errors):
        return f"{source.name}: {compiler} does not say: {sentence}\n{shorten(result.stderr)}"
    if len(errors) != 1:
        return f"{source.name}: {compiler} reports {len(errors)} errors, expected exactly 1\n{shorten(result.stderr)}"
    return ""


def self_test(compilers):
    """Judges tiny programs whose verdicts are known."""
    cases = [
        ("// expect: lpo add: ranks differ\nstatic_assert(false, \"lpo add: ranks differ; reshape one\");\n", ""),
        ("// expect: lpo add: ranks differ\nint main() {}\n", "accepts it"),
        ("// expect: lpo add: ranks differ\nstatic_assert(false, \"another sentence\");\n", "does not say"),
        ("// expect: lpo add: ranks differ\nstatic_assert(false, \"lpo add: ranks differ\");\nint x = nothing;\n", "2 errors"),
        ("// expect: asked for\n// flags: -DASKED\n#if defined(ASKED)\n#error asked for\n#endif\n", ""),
    ]
    with tempfile.TemporaryDirectory() as folder:
        source = pathlib.Path(folder) / "case.cpp"
        for compiler in compilers:
            for text, expected in cases:
                source.write_text(text)
                verdict = judge(compiler, source, [])
                if (expected not in verdict) if expected else verdict:
                    print(f"self-test: {compiler}: expected {expected!r}, got {verdict!r} for\n{text}")
                    return 1
    print(f"self-test: {len(cases)} programs judged rightly with {', '.join(compilers)}")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compilers", default="g++", help="comma-separated compilers")
    parser.add_argument("--isystem", action="append", default=[], help="include folder of another library")
    parser.add_argument("--self-test", action="store_true", help="judge programs whose verdicts are known")
    parser.add_argument("sources", nargs="*", type=pathlib.Path)
    args = parser.parse_args()
    compilers = args.compilers.split(",")
    if args.self_test:
        return self_test(compilers)
    verdicts = [judge(compiler, source, args.isystem) for source in args.sources for compiler in compilers]
    for verdict in filter(None, verdicts):
        print(verdict)
    return 1 if any(verdicts) else 0


if __name__ == "__main__":
    sys.exit(main())
