#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Token ids of lpo and of transformers for made-up texts of every kind: CLIPTokenizer without ftfy, CLIPTokenizerFast,
and, where ftfy is installed, how many texts CLIPTokenizer takes otherwise because of it.

    ~/lpo-reference/bin/python tests/reference/check_tokenizer.py --merges bpe_simple_vocab_16e6.txt.gz

Without --merges the tests' small vocabulary is used. Texts of --prompts (a JSON list) are compared as well.
"""

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path

from transformers import CLIPTokenizer, CLIPTokenizerFast
from transformers.models.clip.tokenization_clip import BasicTokenizer, bytes_to_unicode

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SMALL = ROOT / "tests" / "io" / "data" / "clip_tokenizer"
MERGES = 49152 - 256 - 2  # of OpenAI's file, all that CLIP uses

WORDS = """a an the red blue photo of portrait cat dog's isn't they're we've I'm you'll he'd masterpiece 8k 4K 1girl
           f/1.8 16:9 (best quality:1.2) [bad hands] <lora:style:0.8> artstation,trending --ar 3:2 Greg's don''t
           '' ' 's 'S 'LL 're'VE""".split()
SPECIAL = ["<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "<|StartOfText|>", "<|endoftext", "|endoftext|>",
           "<|", "|>", "</w>", "!"]
EMOJI = ["\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd", "\u2764\ufe0f",
         "\U0001f1e9\U0001f1ea", "1\ufe0f\u20e3", "\U0001f3f4\U000e0067\U000e0062\U000e007f", "\u263a", "\U0001fae8"]
SPACES = [" ", "  ", "\t", "\n", "\r\n", "\u00a0", "\u2003", "\u3000", "\u2028", "\u0085", "\x1c", "\x1f", "\v", "\f"]
CASES = list("\u0130\u0131\u017f\u03a3\u03c2\u1e9e\u00df\ufb01\u01c5\u2126\u212a"
             "\u212b\u13a0\uab70\u1f88\u10d0\u1c90\u0345\u0149")


def any_character(generator):
    while True:
        plane = generator.choice((0x500, 0x3000, 0x10000, 0x10000, 0x20000, 0x110000))
        code = generator.randrange(plane)
        if not 0xd800 <= code <= 0xdfff:
            return chr(code)


def text_of(kind, generator):
    some = lambda least, most: range(generator.randint(least, most))
    if kind == "characters":  # of all Unicode
        return "".join(any_character(generator) for _ in some(1, 24))
    if kind == "words":
        return "".join(generator.choice(WORDS) + generator.choice((" ", " ", ", ", "", "-")) for _ in some(1, 30))
    if kind == "ascii":
        return "".join(chr(generator.randint(0x20, 0x7e)) for _ in some(0, 60))
    if kind == "control":
        others = [0xad, 0x200b, 0x200e, 0xfeff, 0xfffd, 0xfff9, 0xe0001, ord("a"), 0x20]
        return "".join(chr(generator.choice([generator.randrange(0x20), generator.randrange(0x7f, 0xa0)] + others))
                       for _ in some(1, 20))
    if kind == "long":
        return (generator.choice(WORDS + CASES + EMOJI) + generator.choice(("", " "))) * generator.randint(50, 400)
    if kind == "marks":  # letters under stacks of combining marks, Hangul in parts
        marks = "\u0301\u0308\u0327\u0323\u1161\u11a8\u093c\u0345\u200d"
        return "".join(generator.choice("aeo\u0399\u1100\uac00\u0915") +
                       "".join(generator.choice(marks) for _ in some(0, 5)) for _ in some(1, 12))
    pieces = {"emoji": EMOJI + WORDS[:6], "special": SPECIAL + WORDS[:6], "spaces": SPACES + WORDS[:6],
              "case": CASES + ["'", "A", "b"], "mixed": WORDS + SPECIAL + EMOJI + SPACES + CASES}[kind]
    return "".join(generator.choice(pieces) + generator.choice(("", " ")) for _ in some(1, 25))


KINDS = ("characters", "words", "ascii", "control", "long", "marks", "emoji", "special", "spaces", "case", "mixed")


def write_vocabulary(merges_file, folder):
    """vocab.json and merges.txt as OpenAI's code derives them from its packed merges."""
    lines = gzip.open(merges_file, "rt", encoding="utf-8").read().split("\n")[1:MERGES + 1]
    letters = list(bytes_to_unicode().values())
    tokens = letters + [letter + "</w>" for letter in letters] + [line.replace(" ", "") for line in lines]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2"] + lines) + "\n", encoding="utf-8")
    return folder


def compare(name, texts, kinds, mine, theirs):
    """Counts and shows texts whose ids differ. Code points that this Python's Unicode does not know yet are letters to
    some and nothing to others: such texts are counted apart, and do not count as failures."""
    different, newer = {}, 0
    for text, kind, a, b in zip(texts, kinds, mine, theirs):
        if a == b:
            continue
        if any(unicodedata.category(c) == "Cn" for c in text):
            newer += 1
        else:
            different.setdefault(kind, []).append(text)
    count = sum(map(len, different.values()))
    print(f"{name}: {count} of {len(texts)} texts differ; {newer} more have characters of a later Unicode", flush=True)
    for kind, some in different.items():
        print(f"  {kind}: {len(some)}, shortest {min(some, key=len)!a}")
    return count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--merges", type=Path)
    parser.add_argument("--prompts", type=Path)
    parser.add_argument("--count", type=int, default=22000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    generator = random.Random(arguments.seed)
    kinds = [KINDS[i % len(KINDS)] for i in range(arguments.count)]
    texts = [text_of(kind, generator) for kind in kinds]
    if arguments.prompts:
        for entry in json.loads(arguments.prompts.read_text(encoding="utf-8")):
            texts.append(entry if isinstance(entry, str) else entry["caption"])
            kinds.append("prompts")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        words = write_vocabulary(arguments.merges, folder) if arguments.merges else SMALL
        program = folder / "tokenize"
        subprocess.run([os.environ.get("CXX", "c++"), "-std=c++20", "-O1", f"-I{ROOT / 'include'}",
                        str(HERE / "tokenize.cpp"), "-o", str(program)], check=True)
        (folder / "texts.json").write_text(json.dumps(texts), encoding="ascii")
        mine = {cleanup: [json.loads(line) for line in subprocess.run(
            [program, words, cleanup, folder / "texts.json"], check=True, capture_output=True).stdout.splitlines()]
            for cleanup in ("basic", "fast")}
        slow, fast = CLIPTokenizer.from_pretrained(words), CLIPTokenizerFast.from_pretrained(words)
        fix_text = slow.fix_text
        slow.fix_text, slow.nlp = None, BasicTokenizer(strip_accents=False, do_split_on_punc=False)
        without = [slow(text).input_ids[1:-1] for text in texts]
        failures = compare("CLIPTokenizer", texts, kinds, mine["basic"], without)
        failures += compare("CLIPTokenizerFast", texts, kinds, mine["fast"],
                            [ids[1:-1] for ids in fast(texts).input_ids])
        if fix_text:
            slow.fix_text = fix_text
            slow.cache = dict(list(slow.cache.items())[:2])
            compare("what ftfy changes", texts, kinds, mine["basic"], [slow(text).input_ids[1:-1] for text in texts])
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
