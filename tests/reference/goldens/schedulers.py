# SPDX-License-Identifier: MIT
"""Beta schedules, timestep spacings, and DDIM/DDPM loops of diffusers with prescribed predictions and noises."""

import contextlib
import math

import diffusers.schedulers.scheduling_ddpm as ddpm_module
import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from .common import randn, relative_error, save

STABLE_DIFFUSION = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
                    "beta_schedule": "scaled_linear", "clip_sample": False, "timestep_spacing": "leading",
                    "steps_offset": 1, "prediction_type": "epsilon"}
SHAPE = (2, 4, 3, 5)


def betas_exact(name):
    """diffusers' formulas in float64 (the library rounds every step of them to float32)."""
    if name == "linear":
        return np.linspace(0.0001, 0.02, 1000)
    if name == "scaled_linear":
        return np.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000) ** 2
    angle = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
    return np.array([min(1 - angle[i + 1] / angle[i], 0.999) for i in range(1000)])


def exact(scheduler):
    """Replaces the float32 tables of a scaled_linear scheduler by float64 ones; step() then computes in float64."""
    scheduler.betas = torch.from_numpy(betas_exact("scaled_linear"))
    scheduler.alphas = 1.0 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, dim=0)
    if hasattr(scheduler, "final_alpha_cumprod"):
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    return scheduler


@contextlib.contextmanager
def prescribed_noise(noise):
    """DDPMScheduler.step draws its own noise; inside this block it gets `noise` instead."""
    original = ddpm_module.randn_tensor
    ddpm_module.randn_tensor = lambda *_, **__: noise
    try:
        yield
    finally:
        ddpm_module.randn_tensor = original


def ddim_loop(steps, eta, predictions, noises, start, dtype, prediction_type="epsilon"):
    scheduler = DDIMScheduler(**{**STABLE_DIFFUSION, "prediction_type": prediction_type}, set_alpha_to_one=False)
    if dtype == torch.float64:
        exact(scheduler)
    scheduler.set_timesteps(steps)
    x, latents, means, clean, sigmas, logps = start.to(dtype), [], [], [], [], []
    for index, t in enumerate(scheduler.timesteps):
        prediction, noise = predictions[index].to(dtype), noises[index].to(dtype)
        out = scheduler.step(prediction, t, x, eta=eta, variance_noise=noise if eta > 0 else None)
        mean = scheduler.step(prediction, t, x, eta=eta, variance_noise=torch.zeros_like(noise)).prev_sample
        sigma = eta * scheduler._get_variance(t, t - 1000 // steps) ** 0.5
        x = out.prev_sample
        latents.append(x)
        means.append(mean)
        clean.append(out.pred_original_sample)
        sigmas.append(sigma)
        if eta > 0:
            logp = -((x - mean) ** 2) / (2 * sigma ** 2) - torch.log(sigma) - 0.5 * math.log(2 * math.pi)
            logps.append(logp.mean(dim=(1, 2, 3)))
    result = {"latents": torch.stack(latents), "means": torch.stack(means), "clean": torch.stack(clean),
              "sigma": torch.stack([torch.as_tensor(value) for value in sigmas])}
    if eta > 0:
        result["logp"] = torch.stack(logps)
    return result, scheduler.timesteps


def ddpm_loop(steps, variance_type, predictions, noises, start, dtype):
    scheduler = DDPMScheduler(**STABLE_DIFFUSION, variance_type=variance_type)
    if dtype == torch.float64:
        exact(scheduler)
    scheduler.set_timesteps(steps)
    x, latents = start.to(dtype), []
    for index, t in enumerate(scheduler.timesteps):
        with prescribed_noise(noises[index].to(dtype)):
            x = scheduler.step(predictions[index].to(dtype), t, x).prev_sample
        latents.append(x)
    return {"latents": torch.stack(latents)}, scheduler.timesteps


def make_schedulers(directory):
    tensors, worst = {}, ("", 0.0)
    for name in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        betas = torch.from_numpy(betas_exact(name))
        ends = {"linear": (0.0001, 0.02), "scaled_linear": (0.00085, 0.012), "squaredcos_cap_v2": (0.0001, 0.02)}[name]
        stock = DDIMScheduler(num_train_timesteps=1000, beta_start=ends[0], beta_end=ends[1], beta_schedule=name)
        tensors[f"betas/{name}"] = betas
        tensors[f"alphas_cumprod/{name}"] = torch.cumprod(1.0 - betas, dim=0)
        tensors[f"alphas_cumprod_fp32/{name}"] = stock.alphas_cumprod
        assert relative_error(stock.betas, betas) < 1e-6
    for spacing in ("leading", "trailing", "linspace"):
        for steps in (10, 20, 50, 7):
            scheduler = DDIMScheduler(**{**STABLE_DIFFUSION, "timestep_spacing": spacing}, set_alpha_to_one=False)
            scheduler.set_timesteps(steps)
            tensors[f"timesteps/{spacing}/{steps}"] = scheduler.timesteps.to(torch.int64)

    loops = {}
    for steps in (20, 10):
        for eta in (0, 1):
            loops[f"ddim_eta{eta}_{steps}"] = lambda *a, s=steps, e=eta: ddim_loop(s, float(e), *a)
        loops[f"ddpm_{steps}"] = lambda *a, s=steps: ddpm_loop(s, "fixed_small", *a)
    loops["ddim_v_prediction_10"] = lambda *a: ddim_loop(10, 1.0, *a, "v_prediction")
    loops["ddim_sample_10"] = lambda *a: ddim_loop(10, 1.0, *a, "sample")
    for steps in (20, 10):
        tensors[f"in/{steps}/start"] = randn(300 + steps, *SHAPE)
        tensors[f"in/{steps}/predictions"] = randn(400 + steps, steps, *SHAPE)
        tensors[f"in/{steps}/noises"] = randn(500 + steps, steps, *SHAPE)
    for name, loop in loops.items():
        steps = name.rsplit("_", 1)[1]
        arguments = [tensors[f"in/{steps}/{key}"] for key in ("predictions", "noises", "start")]
        truth, timesteps = loop(*arguments, torch.float64)
        stock, _ = loop(*arguments, torch.float32)
        for key, value in truth.items():
            error = relative_error(stock[key], value)
            worst = max(worst, (f"{name}/{key}", error), key=lambda pair: pair[1])
            tensors[f"{name}/{key}"] = value if key == "sigma" else value.float()
        tensors[f"{name}/timesteps"] = timesteps.to(torch.int64)
    save(directory / "schedulers.safetensors", tensors, fp32_error=worst,
         notes="latents[i] is the sample after step i; means[i] the DDIM mean of that step, clean[i] its x0 "
               "prediction, logp[i] the mean over elements of the log-density of latents[i]; ddpm: variance_type "
               "fixed_small")
