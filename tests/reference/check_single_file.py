#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Small pipelines through examples/convert and back, read by diffusers on both sides. Not part of the tests: it needs
the packages of requirements.txt and the built program.

    ~/lpo-reference/bin/python tests/reference/check_single_file.py build/release/examples/convert/convert [sd15 …]
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.modeling_utils import load_state_dict
from safetensors.torch import load_file
from transformers import CLIPTokenizer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))
from goldens import single_file  # noqa: E402
from goldens.common import randomise  # noqa: E402

TOKENIZER = ROOT / "examples" / "tinyworld" / "model" / "tokenizer"


def save_pipeline(family, folder):
    """As diffusers writes it: random weights, every component's config, a tokenizer of 690 words."""
    configs = {family: {**single_file.SMALL[family]}}
    configs[family]["text_encoders"] = [
        (kind, {**config, "vocab_size": 690, "max_position_embeddings": 24, "eos_token_id": 689, "bos_token_id": 688,
                "pad_token_id": 689})
        for kind, config in single_file.SMALL[family]["text_encoders"]]
    parts = single_file.models_of(family, configs)
    # open_clip pads with id 0, which is "!".
    tokenizer = CLIPTokenizer.from_pretrained(TOKENIZER, **({"pad_token": "!"} if family == "sd21" else {}))
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=False, steps_offset=1)
    more = {"scheduler": scheduler, "tokenizer": tokenizer}
    if family == "sdxl":
        more["tokenizer_2"] = CLIPTokenizer.from_pretrained(TOKENIZER, pad_token="!")
        pipeline = StableDiffusionXLPipeline(**{name: randomise(part, 10) for name, part in parts.items()}, **more,
                                             add_watermarker=False)
    else:
        pipeline = StableDiffusionPipeline(**{name: randomise(part, 10) for name, part in parts.items()}, **more,
                                           safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    pipeline.save_pretrained(folder)
    return parts


def weights_of(folder):
    return {path.parent.name: load_file(str(path)) for path in sorted(Path(folder).glob("*/*.safetensors"))}


def image_of(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return torch.from_numpy(pipeline("a red circle", num_inference_steps=2, height=16, width=16, output_type="np",
                                     generator=torch.Generator().manual_seed(3)).images)


def main():
    convert = sys.argv[1]

    def run(*arguments):
        subprocess.run([convert, *map(str, arguments)], check=True, capture_output=True)

    for family in sys.argv[2:] or single_file.SMALL:
        kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            parts = save_pipeline(family, folder / "a")
            run(folder / "a", folder / "one.safetensors")
            run(folder / "one.safetensors", folder / "b", "--config", folder / "a", "--tokenizer", TOKENIZER)

            checkpoint = load_state_dict(folder / "one.safetensors")
            for name in parts:
                single_file.check_component(family, checkpoint, name, parts[name], parts[name].state_dict())
            before, after = weights_of(folder / "a"), weights_of(folder / "b")
            assert before.keys() == after.keys() == parts.keys()
            for name in before:
                assert before[name].keys() == after[name].keys(), name
                assert all(torch.equal(tensor, after[name][key]) for key, tensor in before[name].items()), name
            count = sum(map(len, before.values()))
            print(f"{family}: diffusers' converters and the way back give the same {count} weights")

            image = image_of(kind.from_pretrained(folder / "a"))
            assert torch.equal(image, image_of(kind.from_pretrained(folder / "b"))), "folder"
            single = kind.from_single_file(str(folder / "one.safetensors"), config=str(folder / "a"),
                                           local_files_only=True)
            # The same weights at other addresses: kernels may sum in another order.
            assert (image - image_of(single)).abs().max() < 1e-5, "single file"
            print(f"{family}: from_pretrained(folder) and from_single_file draw the same picture")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
