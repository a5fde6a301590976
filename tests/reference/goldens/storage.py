# SPDX-License-Identifier: MIT
"""What 16-bit storage defines: the small models with weights and inputs rounded to bfloat16 or half, run in float64."""

import copy

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig

from . import clip_text, unets, vae
from .common import arithmetic, randn, randomise, relative_error, save


def unet(family):
    model, _ = unets.make(family)
    inputs = {key: value for key, value in unets.inputs_of(family).items() if key != "cotangent"}
    return model, inputs, lambda model, x: {"sample": unets.forward(model, **x)[0]}


def autoencoder():
    model = randomise(AutoencoderKL(**vae.CONFIG), 700)
    inputs = {"image": randn(710, vae.ROWS, 3, vae.HEIGHT, vae.WIDTH, scale=0.5),
              "latent": randn(711, vae.ROWS, vae.CONFIG["latent_channels"], vae.HEIGHT // 4, vae.WIDTH // 4)}

    def run(model, x):
        posterior = model.encode(x["image"]).latent_dist
        return {"mean": posterior.mean, "logvar": posterior.logvar, "decoded": model.decode(x["latent"]).sample}

    return model, inputs, run


def text_encoder():
    kind, config = clip_text.MODELS["gelu"]
    model = randomise(kind(CLIPTextConfig(**config, attn_implementation="sdpa")), 4900)

    def run(model, x):
        out = model(x["ids"], output_hidden_states=True)
        return {"last_hidden_state": out.last_hidden_state, "penultimate": out.hidden_states[-2],
                "text_embeds": out.text_embeds}

    return model, {"ids": torch.tensor(clip_text.TOKENS["gelu"])}, run


MODELS = {**{f"unet_{family}": lambda family=family: unet(family) for family in unets.CONFIGS},
          "vae": autoencoder, "clip_text": text_encoder}


def cast(inputs, dtype):
    # Time ids are sizes in pixels: diffusers embeds them in float32.
    return {key: value.to(dtype) if value.is_floating_point() and key != "time_ids" else value
            for key, value in inputs.items()}


def make_storage(directory):
    tensors, torch_error, weight_error = {}, {}, {}
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        for which, make in MODELS.items():
            model, inputs, run = make()
            rounded = copy.deepcopy(model).to(dtype)
            with torch.no_grad():
                with arithmetic(torch.float64):
                    exact = run(copy.deepcopy(model).double(), cast(inputs, torch.float64))
                    truth = run(copy.deepcopy(rounded).double(), cast(cast(inputs, dtype), torch.float64))
                with arithmetic(torch.float32):
                    torch_has = run(rounded, cast(inputs, dtype))
            for key, value in truth.items():
                tensors[f"{name}/{which}/{key}"] = value.float()
                torch_error[f"{name}/{which}/{key}"] = float(f"{relative_error(torch_has[key], value):.2e}")
                weight_error[f"{name}/{which}/{key}"] = float(f"{relative_error(value, exact[key]):.2e}")
    save(directory / "storage.safetensors", tensors, torch_error=torch_error, weight_error=weight_error,
         notes="torch_error: of PyTorch with weights and activations in this type; weight_error: what rounding the "
               "weights and inputs alone changes; base: unet_sd15, unet_sd21, unet_sdxl, vae, clip_text (gelu/)")
