#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks the include order of include/lpo against the lists in docs/architecture.md.

The page holds three fenced blocks that this script reads:
  rooms      one line per level, from the ground up: `name[, sibling…] [not room…]`. A room includes itself and the rooms
             on lines above it, except those after `not`. A name stands for its sub-rooms too.
  externals  `pattern… : room…`: headers of other libraries, and the only rooms that may include them.
  banned     standard headers that no room includes.
Files directly in include/lpo are umbrellas: they may include every room, and no room may include them.
"""
import argparse
import fnmatch
import pathlib
import re
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


class PlanError(Exception):
    """The lists in the page cannot be read."""


class Plan:
    """The three lists of docs/architecture.md."""

    def __init__(self, page):
        self.level, self.forbidden, self.externals = {}, {}, []
        for level, line in enumerate(self._block(page, "rooms")):
            names, _, exceptions = line.partition(" not ")
            for name in (n.strip() for n in names.split(",")):
                if name in self.level:
                    raise PlanError(f"room '{name}' is listed twice")
                self.level[name] = level
                self.forbidden[name] = exceptions.split()
        for line in self._block(page, "externals"):
            patterns, _, rooms = line.partition(":")
            self.externals.append((patterns.split(), rooms.split()))
        self.banned = {word for line in self._block(page, "banned") for word in line.split()}

    @staticmethod
    def _block(page, name):
        found = re.search(rf"^```{name}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        if not found:
            raise PlanError(f"docs/architecture.md has no ```{name} block")
        return [line.split("#")[0].rstrip() for line in found.group(1).splitlines() if line.split("#")[0].strip()]

    def room_of(self, path):
        """The listed room that holds `path` (relative to include/lpo), or None for an umbrella or an unlisted folder."""
        folders = path.split("/")[:-1]
        for depth in range(len(folders), 0, -1):
            name = "/".join(folders[:depth])
            if name in self.level:
                return name
        return None

    def may_include(self, user, used):
        if user == used:
            return True
        is_excluded = any(used == name or used.startswith(name + "/") for name in self.forbidden[user])
        return self.level[used] < self.level[user] and not is_excluded


def strip_comments(text):
    return re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.DOTALL)


def check(include_root, plan):
    """Returns (number of headers, list of violations) for the tree under include_root/lpo."""
    tree = include_root / "lpo"
    files = sorted(p for p in tree.rglob("*") if p.suffix in (".hpp", ".cuh"))
    names = {p.relative_to(tree).as_posix() for p in files}
    problems, edges = [], {}
    for file in files:
        name = file.relative_to(tree).as_posix()
        is_umbrella = "/" not in name
        room = plan.room_of(name)
        edges[name] = []
        if room is None and not is_umbrella:
            problems.append(f"{name}: its folder is not in the rooms list of docs/architecture.md")
            continue
        for quote, target in INCLUDE.findall(strip_comments(file.read_text())):
            if target in plan.banned:
                problems.append(f"{name}: <{target}> is banned from the library (see docs/architecture.md)")
            for patterns, rooms in plan.externals:
                is_match = any(fnmatch.fnmatchcase(target, p) for p in patterns)
                if is_match and not any(room == r or (room or "").startswith(r + "/") for r in rooms):
                    problems.append(f"{name}: <{target}> may be included only in {', '.join(rooms)}")
            if not target.startswith("lpo/"):
                if quote == '"':
                    problems.append(f'{name}: write "{target}" as <lpo/…>')
                continue
            used = target.removeprefix("lpo/")
            if quote == '"':
                problems.append(f'{name}: write "{target}" as <{target}>')
            if used not in names:
                problems.append(f"{name}: <{target}> does not exist")
                continue
            edges[name].append(used)
            used_room = plan.room_of(used)
            if "/" not in used and not is_umbrella:
                problems.append(f"{name}: a room may not include the umbrella <{target}>")
            elif not is_umbrella and used_room and not plan.may_include(room, used_room):
                problems.append(f"{name}: room {room} may not include room {used_room} (<{target}>)")
    cycle = find_cycle(edges)
    if cycle:
        problems.append("headers include each other in a circle: " + " -> ".join(cycle))
    return len(files), problems


def find_cycle(edges):
    """Returns one cycle of the graph as a list of names whose first and last are equal, or None."""
    done, path = set(), []

    def visit(node):
        if node in path:
            return path[path.index(node):] + [node]
        if node in done:
            return None
        path.append(node)
        for target in edges.get(node, []):
            cycle = visit(target)
            if cycle:
                return cycle
        path.pop()
        done.add(node)
        return None

    for node in edges:
        cycle = visit(node)
        if cycle:
            return cycle
    return None


def self_test():
    """Feeds small wrong trees to check() and expects each to be found."""
    page = ("```rooms\nbase\nkernel\nback/a, back/b\nnn  not back\ntesting\n```\n"
            "```externals\nEigen/* : back/a\n```\n```banned\niostream\n```\n")
    good = {"lpo.hpp": ["<lpo/nn/n.hpp>", "<lpo/back/a/x.hpp>"], "base/b.hpp": ["<vector>"], "kernel/k.hpp": ["<lpo/base/b.hpp>"],
            "back/a/x.hpp": ["<lpo/kernel/k.hpp>", "<Eigen/Core>"], "back/b/x.hpp": [], "nn/n.hpp": ["<lpo/kernel/k.hpp>"]}
    cases = [
        ("a correct tree", {}, None),
        ("an upward include", {"base/b.hpp": ["<lpo/kernel/k.hpp>"]}, "room base may not include room kernel"),
        ("a sibling include", {"back/b/x.hpp": ["<lpo/back/a/x.hpp>"]}, "room back/b may not include room back/a"),
        ("an excluded room", {"nn/n.hpp": ["<lpo/back/b/x.hpp>"]}, "room nn may not include room back/b"),
        ("a circle in one room", {"base/b.hpp": ["<lpo/base/c.hpp>"], "base/c.hpp": ["<lpo/base/b.hpp>"]}, "in a circle"),
        ("a room that uses the umbrella", {"nn/n.hpp": ["<lpo/lpo.hpp>"]}, "may not include the umbrella"),
        ("a folder that is not listed", {"extra/e.hpp": []}, "not in the rooms list"),
        ("a missing header", {"nn/n.hpp": ["<lpo/base/gone.hpp>"]}, "does not exist"),
        ("a quoted include", {"nn/n.hpp": ['"lpo/base/b.hpp"']}, "write"),
        ("another library in the wrong room", {"nn/n.hpp": ["<Eigen/Core>"]}, "only in back/a"),
        ("a banned header", {"nn/n.hpp": ["<iostream>"]}, "banned"),
    ]
    for title, change, expected in cases:
        with tempfile.TemporaryDirectory() as folder:
            for name, includes in (good | change).items():
                path = pathlib.Path(folder) / "lpo" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("".join(f"#include {i}\n" for i in includes))
            _, problems = check(pathlib.Path(folder), Plan(page))
        is_found = any(expected in p for p in problems) if expected else not problems
        if not is_found:
            print(f"self-test: {title}: expected {expected!r}, got {problems}")
            return 1
    print(f"self-test: {len(cases)} small trees judged rightly")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--self-test", action="store_true", help="check the checker on small wrong trees")
    if parser.parse_args().self_test:
        return self_test()
    try:
        plan = Plan((ROOT / "docs/architecture.md").read_text())
    except (OSError, PlanError) as error:
        print(f"check_layers: {error}")
        return 1
    count, problems = check(ROOT / "include", plan)
    for problem in problems:
        print(problem)
    print(f"check_layers: {count} headers, {len(plan.level)} rooms, {len(problems)} violations")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
