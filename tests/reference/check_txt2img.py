# SPDX-License-Identifier: MIT
"""Compares txt2img's pictures of the tiny world with those of diffusers' StableDiffusionPipeline for the same seeds.

  python tests/reference/check_txt2img.py --txt2img build/examples/txt2img/txt2img

Both compute in float32 on the CPU. Fails where a pixel differs by more than 1 of 255.
"""

import argparse
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

MODEL = pathlib.Path(__file__).resolve().parents[2] / "examples" / "tinyworld" / "model"
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


def write_lora(folder):
    """A LoRA of rank 4 with random weights; returns its path."""
    unet = diffusers.UNet2DConditionModel.from_pretrained(MODEL / "unet")
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    generator = torch.Generator().manual_seed(9)
    layers = {key: 0.1 * torch.randn(value.shape, generator=generator)
              for key, value in get_peft_model_state_dict(unet).items()}
    diffusers.StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
    return folder / "pytorch_lora_weights.safetensors"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--txt2img", type=pathlib.Path, required=True, help="the compiled program")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1234)
    parser.add_argument("--keep", type=pathlib.Path, help="folder for both programs' pictures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(MODEL)
    pipeline.set_progress_bar_config(disable=True)
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.keep or pathlib.Path(temporary)
        lora = write_lora(root / "lora")
        for case, (scheduler, extra) in CASES.items():
            sampler, _, variation = case.partition(" ")
            pipeline.scheduler = getattr(diffusers, scheduler).from_config(pipeline.scheduler.config, **extra)
            width, guidance = 48 if variation == "wide" else 32, 1.0 if variation == "unguided" else 4.0
            rescale = 0.7 if variation == "rescaled" else 0.0
            if variation == "lora":
                pipeline.load_lora_weights(lora)
                pipeline.fuse_lora(lora_scale=0.5)
            negative = "a green triangle" if variation == "negative" else None
            eta = 1.0 if variation == "eta 1" else 0.0
            seeds = [arguments.seed, arguments.seed + 1]
            generators = [torch.Generator().manual_seed(seed) for seed in seeds]
            images = pipeline(PROMPT, negative_prompt=negative, num_images_per_prompt=2, generator=generators,
                              num_inference_steps=arguments.steps, guidance_scale=guidance, eta=eta, height=32,
                              width=width, guidance_rescale=rescale).images
            folder = root / case.replace(" ", "_")
            command = [arguments.txt2img, "--pretrained_model_name_or_path", MODEL, "--prompt", PROMPT,
                       "--rng", "torch", "--scheduler", sampler, "--seed", arguments.seed, "--num_images_per_prompt", 2, "--eta", eta,
                       "--num_inference_steps", arguments.steps, "--guidance_scale", guidance, "--width", width,
                       "--height", 32, "--guidance_rescale", rescale, "--output_dir", folder]
            command += ["--lora", f"{lora}:0.5"] if variation == "lora" else []
            command += ["--negative_prompt", negative] if negative else []
            subprocess.run([str(part) for part in command], check=True, capture_output=True)
            worst, unequal, spread = 0, 0, 0
            for i, image in enumerate(images):
                theirs = np.asarray(image.convert("RGB")).astype(int)
                ours = np.asarray(Image.open(folder / f"{i:05d}.png").convert("RGB")).astype(int)
                image.save(folder / f"diffusers_{i}.png")
                if ours.shape != theirs.shape:
                    sys.exit(f"{case}: size {ours.shape}, diffusers {theirs.shape}")
                worst, spread = max(worst, np.abs(ours - theirs).max()), max(spread, np.ptp(theirs))
                unequal += (ours != theirs).sum()
            failed |= worst > 1
            print(f"{case:18} largest difference {worst} of 255, {unequal} of {2 * theirs.size} values differ, "
                  f"picture spans {spread}", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
