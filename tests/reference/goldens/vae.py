# SPDX-License-Identifier: MIT
"""Small AutoencoderKL (two downsamplings, mid attention): posterior, decoder output and gradients of both."""

import copy
import json

import torch
from diffusers import AutoencoderKL

from .common import grad_stats, randn, randomise, save, truth_of, weights_of

CONFIG = {"in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"] * 3,
          "up_block_types": ["UpDecoderBlock2D"] * 3, "block_out_channels": [8, 16, 16], "layers_per_block": 1,
          "act_fn": "silu", "latent_channels": 4, "norm_num_groups": 4, "sample_size": 16, "scaling_factor": 0.18215}
ROWS, HEIGHT, WIDTH = 2, 20, 12


def make_vae(directory):
    model = randomise(AutoencoderKL(**CONFIG), 700)
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    config["_class_name"] = "AutoencoderKL"
    latent = (ROWS, CONFIG["latent_channels"], HEIGHT // 4, WIDTH // 4)
    inputs = {"image": randn(710, ROWS, 3, HEIGHT, WIDTH, scale=0.5), "latent": randn(711, *latent),
              "cotangent/mean": randn(712, *latent), "cotangent/logvar": randn(713, *latent),
              "cotangent/decoded": randn(714, ROWS, 3, HEIGHT, WIDTH)}
    keys, stats = [], {}

    def compute(dtype):
        vae = copy.deepcopy(model).to(dtype)
        x = {key: value.clone().to(dtype) for key, value in inputs.items()}
        x["image"].requires_grad_()
        x["latent"].requires_grad_()
        posterior = vae.encode(x["image"]).latent_dist
        decoded = vae.decode(x["latent"]).sample
        ((posterior.mean * x["cotangent/mean"]).sum() + (posterior.logvar * x["cotangent/logvar"]).sum()
         + (decoded * x["cotangent/decoded"]).sum()).backward()
        # The gradient of a key bias is zero in exact arithmetic (softmax ignores it): nothing to compare.
        parameters = [(name, p) for name, p in sorted(vae.named_parameters()) if not name.endswith("to_k.bias")]
        keys[:] = [name for name, _ in parameters]
        stats[dtype] = grad_stats(parameters)
        return {"out/mean": posterior.mean, "out/logvar": posterior.logvar, "out/decoded": decoded,
                "grad/in/image": x["image"].grad, "grad/in/latent": x["latent"].grad,
                **{"grad/" + name: p.grad for name, p in parameters if p.ndim == 1 or p.numel() < 1024}}

    tensors, error = truth_of(compute)
    tensors.update(weights_of(model))
    tensors.update({"in/" + key: value for key, value in inputs.items()})
    tensors["grad_stats"] = stats[torch.float64]
    save(directory / "vae.safetensors", tensors, config=json.dumps(dict(sorted(config.items()))), fp32_error=error,
         grad_stats_keys=keys)


def make_tiled(directory):
    """diffusers' tiled_encode and tiled_decode of the same model: tiles of 16 pixels, edges that are smaller."""
    model = randomise(AutoencoderKL(**CONFIG), 700)
    latent = (ROWS, CONFIG["latent_channels"], 11, 7)
    inputs = {"image": randn(720, ROWS, 3, 44, 28, scale=0.5), "latent": randn(721, *latent)}

    def compute(dtype):
        vae = copy.deepcopy(model).to(dtype)
        vae.enable_tiling()
        results = {}
        for overlap in (0.25, 0.5):
            vae.tile_overlap_factor = overlap
            with torch.no_grad():
                posterior = vae.encode(inputs["image"].to(dtype)).latent_dist
                decoded = vae.decode(inputs["latent"].to(dtype)).sample
            results.update({f"out/{overlap}/mean": posterior.mean, f"out/{overlap}/logvar": posterior.logvar,
                            f"out/{overlap}/decoded": decoded})
        return results

    tensors, error = truth_of(compute)
    tensors.update({"in/" + key: value for key, value in inputs.items()})
    save(directory / "vae_tiled.safetensors", tensors, base="vae.safetensors: weights/", fp32_error=error,
         notes="tile_sample_min_size 16; tile_overlap_factor is in the keys")
