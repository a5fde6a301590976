# SPDX-License-Identifier: MIT
"""Compares txt2img's pictures of the tiny world with those of diffusers' StableDiffusionPipeline for the same seeds.

  python tests/reference/check_txt2img.py --txt2img build/release/examples/txt2img/txt2img

Both compute in float32 on the CPU. Fails where a pixel differs by more than 1 of 255. With --family sd15, sd21 or sdxl,
--model FOLDER and --merges FILE, it does so with models at full size with random weights, which it writes to the folder
first (see full_size.py for the room that they need), on small pictures and two steps.
"""

import argparse
import gc
import pathlib
import subprocess
import sys
import tempfile

import diffusers
import numpy as np
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image

import full_size

TINY = pathlib.Path(__file__).resolve().parents[2] / "examples" / "tinyworld" / "model"
PROMPT = "a red circle to the left of a blue square"
CASES = {  # name of the sampler: diffusers' class and what its config adds
    "ddim": ("DDIMScheduler", {}),
    "ddim eta 1": ("DDIMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_a": ("EulerAncestralDiscreteScheduler", {}),
    "dpm++_2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++_2m_karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True}),
    "ddim negative": ("DDIMScheduler", {}),
    "ddim wide": ("DDIMScheduler", {}),
    "ddim unguided": ("DDIMScheduler", {}),
    "ddim rescaled": ("DDIMScheduler", {}),
    "ddim lora": ("DDIMScheduler", {}),
}
FULL_SIZE_CASES = ["ddim", "ddim negative"]


def write_lora(folder):
    """A LoRA of rank 4 with random weights; returns its path."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(TINY / "unet")
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    generator = torch.Generator().manual_seed(9)
    layers = {key: 0.1 * torch.randn(value.shape, generator=generator)
              for key, value in get_peft_model_state_dict(unet).items()}
    diffusers.StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    return folder / "pytorch_lora_weights.safetensors"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--txt2img", type=pathlib.Path, required=True, help="the compiled program")
    parser.add_argument("--family", choices=["tiny", *full_size.PARTS], default="tiny")
    parser.add_argument("--model", type=pathlib.Path, help="folder for models at full size")
    parser.add_argument("--merges", type=pathlib.Path, help="gzipped merges of CLIP's tokenizer, for full size")
    parser.add_argument("--steps", type=int, help="20 for the tiny world, 2 at full size")
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--keep", type=pathlib.Path, help="folder for both programs' pictures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    tiny = arguments.family == "tiny"
    if not tiny and (arguments.model is None or arguments.merges is None):
        parser.error("full size needs --model and --merges")
    model = TINY if tiny else full_size.write_pipeline(arguments.model.resolve(), arguments.family, arguments.merges)
    steps, side = arguments.steps or (20 if tiny else 2), 32 if tiny else 128
    seeds = [arguments.seed, arguments.seed + 1]
    commands = {}
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.keep or pathlib.Path(temporary)
        pipeline = diffusers.DiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        lora = write_lora(root / "lora") if tiny else None
        for case in CASES if tiny else FULL_SIZE_CASES:
            scheduler, extra = CASES[case]
            sampler, _, variation = case.partition(" ")
            pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **extra)
            width, guidance = side * 3 // 2 if variation == "wide" else side, 1.0 if variation == "unguided" else 4.0
            rescale = 0.7 if variation == "rescaled" else 0.0
            if variation == "lora":
                pipeline.load_lora_weights(lora)
                pipeline.fuse_lora(lora_scale=0.5)
            negative = "a green triangle" if variation == "negative" else None
            eta = 1.0 if variation == "eta 1" else 0.0
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            images = pipeline(PROMPT, negative_prompt=negative, num_images_per_prompt=2, generator=generators,
                              num_inference_steps=steps, guidance_scale=guidance, eta=eta, height=side, width=width,
                              guidance_rescale=rescale).images
            folder = root / case.replace(" ", "_")
            folder.mkdir(parents=True, exist_ok=True)
            for i, image in enumerate(images):
                image.convert("RGB").save(folder / f"diffusers_{i}.png")
            command = [arguments.txt2img, "--pretrained_model_name_or_path", model, "--prompt", PROMPT,
                       "--rng", "torch", "--scheduler", sampler, "--seed", arguments.seed, "--num_images_per_prompt", 2, "--eta", eta,
                       "--num_inference_steps", steps, "--guidance_scale", guidance, "--width", width,
                       "--height", side, "--guidance_rescale", rescale, "--threads", arguments.threads,
                       "--output_dir", folder]
            command += ["--lora", f"{lora}:0.5"] if variation == "lora" else []
            command += ["--negative_prompt", negative] if negative else []
            commands[case] = folder, [str(part) for part in command]
        del pipeline  # at full size there is no room for both programs' weights
        gc.collect()
        failed = False
        for case, (folder, command) in commands.items():
            subprocess.run(command, check=True, capture_output=True)
            worst, unequal, spread, size = 0, 0, 0, 0
            for i in range(len(seeds)):
                theirs = np.asarray(Image.open(folder / f"diffusers_{i}.png")).astype(int)
                ours = np.asarray(Image.open(folder / f"{i:05d}.png").convert("RGB")).astype(int)
                if ours.shape != theirs.shape:
                    sys.exit(f"{case}: size {ours.shape}, diffusers {theirs.shape}")
                worst, spread = max(worst, np.abs(ours - theirs).max()), max(spread, np.ptp(theirs))
                unequal, size = unequal + (ours != theirs).sum(), size + theirs.size
            failed |= worst > 1
            print(f"{case:18} largest difference {worst} of 255, {unequal} of {size} values differ, "
                  f"picture spans {spread}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
