# SPDX-License-Identifier: MIT
"""Draws the last validation pictures of a train_lpo run on the tiny world with diffusers, which loads the LoRA itself.

  python tests/reference/check_train_lpo.py FOLDER_OF_THE_RUN

Fails where a pixel differs by more than 1 of 255.
"""

import argparse
import pathlib
import sys
import tomllib

import diffusers
import numpy as np
import torch
from PIL import Image

TINY = pathlib.Path(__file__).resolve().parents[2] / "examples" / "tinyworld" / "model"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    folder = parser.parse_args().folder
    settings = tomllib.loads((folder / "config.toml").read_text())
    torch.set_num_threads(1)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(TINY, torch_dtype=torch.float32)
    pipeline.scheduler = diffusers.DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(folder / "pytorch_lora_weights.safetensors")
    prompts = settings["validation_prompt"]
    prompts = [prompts] if isinstance(prompts, str) else prompts
    last = sorted((folder / "validation").iterdir())[-1]
    worst = 0
    for p, prompt in enumerate(prompts):
        for i in range(settings["num_validation_images"]):
            generator = torch.Generator().manual_seed(settings["seed"] + i)
            theirs = pipeline(prompt, num_inference_steps=settings["num_inference_steps"], generator=generator,
                              height=32, width=32, guidance_scale=float(settings["guidance_scale"])).images[0].convert("RGB")
            ours = np.asarray(Image.open(last / f"{p}-{i}.png").convert("RGB")).astype(int)
            worst = max(worst, np.abs(ours - np.asarray(theirs).astype(int)).max())
    print(f"{last.name}: largest difference {worst} of 255")
    sys.exit(worst > 1)


if __name__ == "__main__":
    main()
