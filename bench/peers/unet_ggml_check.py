#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Whether bench/peers/unet_ggml.cpp computes Stable Diffusion 1.5's UNet: loads the weights and inputs that its --write left, runs
diffusers on them in float32 and prints the distance of the two outputs over the size of diffusers' own.

    ./unet_ggml --rows 2 --write unet.safetensors && python bench/peers/unet_ggml_check.py unet.safetensors
"""

import sys

import torch
from diffusers import UNet2DConditionModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import load_file


def main():
    tensors = load_file(sys.argv[1])
    latents, timesteps, text, output = (tensors.pop(name) for name in ("latents", "timesteps", "text", "output"))
    with torch.device("meta"):
        model = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    checkpoint = {f"model.diffusion_model.{name}": tensor.float() for name, tensor in tensors.items()}
    converted = convert_ldm_unet_checkpoint(checkpoint, model.config)
    assert len(converted) == len(checkpoint), "weights were left out"
    model.load_state_dict(converted, assign=True)  # strict: every weight of diffusers' model has to be there
    with torch.no_grad():
        expected = model(latents, timesteps, text).sample
    difference = (output - expected).norm() / expected.norm()
    print(f"{len(converted)} weights; relative distance {difference:.2e}, largest {(output - expected).abs().max():.2e}")


if __name__ == "__main__":
    main()
