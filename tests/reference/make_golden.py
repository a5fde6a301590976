# SPDX-License-Identifier: MIT
"""Writes the golden files of tests/golden: `python tests/reference/make_golden.py [stem ...]`, all files by default."""

import argparse
from pathlib import Path

import torch

from goldens import (clip_text, clip_vision, dpo, grpo, images, layers, lora, lpo, lrm, reward_folders, samplers, schedulers, sdxl,
                     single_file, storage, tensorboard_events, torch_files, torch_random, unets, vae)

MAKERS = {
    "layers": layers.make_layers,
    "images": images.make_images,
    "clip_text": clip_text.make_clip_text,
    "clip_vision": clip_vision.make_clip_vision,
    "pickscore": clip_vision.make_pickscore,
    "unet_sd15": lambda directory: unets.make_unet(directory, "sd15"),
    "unet_sd21": lambda directory: unets.make_unet(directory, "sd21"),
    "unet_sdxl": lambda directory: unets.make_unet(directory, "sdxl"),
    "unet_sd15_lora": unets.make_lora,
    "lora_kohya": lora.make_lora_kohya,
    "lora_kohya_sdxl": lora.make_lora_kohya_sdxl,
    "svd": lora.make_svd,
    "sdxl_prompts": sdxl.make_sdxl_prompts,
    "vae": vae.make_vae,
    "vae_tiled": vae.make_tiled,
    "storage": storage.make_storage,
    "schedulers": schedulers.make_schedulers,
    "samplers": samplers.make_samplers,
    "torch_random": torch_random.make_torch_random,
    "lrm_sd15": lambda directory: lrm.make_lrm(directory, "sd15"),
    "lrm_sdxl": lambda directory: lrm.make_lrm(directory, "sdxl"),
    "lpo_loss": lpo.make_lpo_loss,
    "dpo_loss": dpo.make_dpo_loss,
    "grpo_loss": grpo.make_grpo_loss,
    "lrm_folder_sd15": lambda directory: reward_folders.make_reward_folder(directory, "sd15"),
    "lrm_folder_sdxl": lambda directory: reward_folders.make_reward_folder(directory, "sdxl"),
    "torch_files": lambda directory: torch_files.make_torch_files(directory / "torch_files"),
    "single_file_sd15": lambda directory: single_file.make_single_file(directory, "sd15"),
    "single_file_sd21": lambda directory: single_file.make_single_file(directory, "sd21"),
    "single_file_sdxl": lambda directory: single_file.make_single_file(directory, "sdxl"),
    "tensorboard": tensorboard_events.make_events,
    "single_file_names": single_file.make_single_file_names,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stems", nargs="*", metavar="stem", help=", ".join(MAKERS))
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "golden")
    arguments = parser.parse_args()
    unknown = set(arguments.stems) - set(MAKERS)
    if unknown:
        parser.error(f"unknown stem {sorted(unknown)[0]!r}; there are {', '.join(MAKERS)}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for stem in arguments.stems or MAKERS:
        MAKERS[stem](arguments.out)


if __name__ == "__main__":
    main()
