#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
# Writes data/clip_tokenizer/golden.json: ids that transformers' CLIPTokenizer gives for made-up texts.
# Made with transformers 4.57.1, tokenizers 0.22.2, without ftfy, on Python 3.11 (Unicode 14).
# The tiny vocabulary beside it was written by lpo's ClipTokenizer::for_words. With --clip DIRECTORY (a tokenizer with
# OpenAI's vocabulary, not part of this repository) the ids under that vocabulary are written as well.
import argparse
import json
import random
from pathlib import Path

from transformers import CLIPTokenizer, CLIPTokenizerFast

DATA = Path(__file__).resolve().parent / "data/clip_tokenizer"

TEXTS = [
    "",
    "   ",
    "a red circle",
    "A RED CIRCLE on the left of a small blue square",
    "circles and squares, redder; bluest!",
    "don't stop, WE'VE seen it's theirs; I'LL go, you'd say I'm 'RE",
    "it'sn't rock'n'roll 's 't'",
    "12 3rd 1024x768 4K",
    "tab\there\nand\r\nthere\u00a0and\u3000everywhere",
    "na\u00efve caf\u00e9 CAFE\u0301 \u00c9COLE \u1e9e\u00df",
    "\u65e5\u672c\u8a9e \u30ab\u30bf\u30ab\u30ca \ud55c\uad6d\uc5b4 \u1112\u1161\u11ab",
    "smile \U0001f600 family \U0001f468\u200d\U0001f469\u200d\U0001f467 thumbs \U0001f44d\U0001f3fd "
    "heart \u2764\ufe0f",
    "nul\u0000bell\u0007zero\u200bwidth\ufeffbom\u00adsoft",
    "\u039f\u0394\u03a5\u03a3\u03a3\u0395\u03a5\u03a3 \u03a3\u0391\u03a3. \u03a3",
    "\u0130stanbul \u01c5 \u017fmall '\u017f",
    "\u00bd \u00b2 \u0663 \u2167 \u2177 \u2460",
    "wow!!! (really?) -- yes... __init__ #1 @you 50% $3.99",
    "<|endoftext|> mid <|startoftext|>word<|endoftext|>",
    "<|ENDOFTEXT|>",
    "<|endoftex",
    "\u2018quoted\u2019 \u201ctext\u201d \u2014 dash \u2026",
    "line\u2028para\u2029next\u0085gone",
    "private \ue000 use \U000f0000 unassigned \U0003fffd",
    "x" * 90,
    "circle" * 40,
    "the red circle " * 30,
    "!" * 100,
    "very " * 74 + "long",
    "very " * 75 + "long",
    "\u0410\u0411\u0412 \u0416\u0443\u043a \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 "
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\ufb01n \ufb00 \u2126 \u212a \u212b",
]


def random_texts(count):
    generator = random.Random(2501)
    pieces = ([chr(code) for code in range(0x20, 0x7f)]
              + list("\u00c0\u00c9\u00ee\u00f8\u00fc\u00df\u0130\u0131\u017f\u03a3\u03c3\u03c2"
                     "\u0416\u00f1\u2019\u2014\u2026\u00bd\u00b2\u0663\u2167")
              + ["\u0301", "\u0308", "\u0327", "\u200d", "\ufe0f", "\U0001f600", "\u65e5", "\uac00", "\u1100",
                 "\u1161", "\u11a8", "\t", "\n", "\u0001"]
              + ["'s", "'LL", " ", " ", " ", " ", " red", " Circle", " blue square", "<|endoftext|>"])
    return ["".join(generator.choice(pieces) for _ in range(generator.randint(1, 30))) for _ in range(count)]


def padded(tokenizer, text):
    return tokenizer(text, padding="max_length", truncation=True, max_length=77).input_ids


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clip", type=Path)
    arguments = parser.parse_args()
    texts = TEXTS + random_texts(100)
    golden = {"texts": texts, "tiny": {}, "clip": {}}
    for name, directory in (("tiny", DATA), ("clip", arguments.clip)):
        if directory is None:
            continue
        slow = CLIPTokenizer.from_pretrained(directory)
        fast = CLIPTokenizerFast.from_pretrained(directory)
        exclaiming = CLIPTokenizer.from_pretrained(directory, pad_token="!")
        # The texts' own tokens; where they do not fit, encode() is checked on the first 77.
        golden[name] = {"basic": [slow(text).input_ids[1:-1] for text in texts],
                        "fast": [fast(text).input_ids[1:-1] for text in texts],
                        "encoded": [padded(slow, text) for text in TEXTS],
                        "encoded_pad_exclamation": [padded(exclaiming, text) for text in TEXTS]}
    lines = json.dumps(golden, ensure_ascii=True, indent=None, separators=(",", ":"))
    (DATA / "golden.json").write_text(lines.replace('],"', '],\n"') + "\n", encoding="ascii")


if __name__ == "__main__":
    main()
