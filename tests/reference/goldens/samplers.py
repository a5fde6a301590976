# SPDX-License-Identifier: MIT
"""Final latents of diffusers' samplers in every setting they allow, with a formula in the place of the network."""

import contextlib
import itertools
import sys

import numpy as np
import torch
from diffusers import (DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler, EulerAncestralDiscreteScheduler,
                       EulerDiscreteScheduler, PNDMScheduler)

from .common import randn, relative_error, save

SHAPE = (2, 4, 1, 3)
STEPS = (1, 2, 5, 20)
SPACINGS = ("leading", "trailing", "linspace")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
BETAS = {"scaled_linear": {"beta_schedule": "scaled_linear"},
         "zero_snr": {"beta_schedule": "scaled_linear", "rescale_betas_zero_snr": True},
         "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"}}
SIGMAS = {"": {}, "/karras": {"use_karras_sigmas": True}, "/sigma_min": {"final_sigmas_type": "sigma_min"},
          "/karras/sigma_min": {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}}


class Float64:
    """A module whose float32 is float64."""

    def __init__(self, module):
        self.module, self.float32 = module, module.float64

    def __getattr__(self, name):
        return getattr(self.module, name)


@contextlib.contextmanager
def arithmetic(scheduler_class, dtype, noises):
    """Schedulers of the class compute in `dtype` inside this block and take their noise from the iterator `noises`."""
    module = sys.modules[scheduler_class.__module__]
    original = module.np, module.torch, getattr(module, "randn_tensor", None)
    if dtype == torch.float64:
        module.np, module.torch = Float64(np), Float64(torch)
    module.randn_tensor = lambda *_, **__: next(noises).to(dtype)
    try:
        yield
    finally:
        module.np, module.torch, module.randn_tensor = original


def formula(x, t):
    """The network: nonlinear in the latent, and different at every timestep."""
    t = float(t)
    return 0.6 * torch.tanh(0.8 * x + 0.3) + 0.2 * np.cos(0.003 * t) * x + 0.1 * np.sin(0.01 * t)


def loop(scheduler_class, config, steps, dtype, start, noises, **step_arguments):
    with arithmetic(scheduler_class, dtype, iter(noises)):
        scheduler = scheduler_class(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, **config)
        scheduler.set_timesteps(steps)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)  # else a timestep that occurs twice is looked up at its second place
        x = start.to(dtype) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            x = scheduler.step(formula(scheduler.scale_model_input(x, t), t), t, x, **step_arguments).prev_sample
    assert x.dtype == dtype
    return x


def cases():
    """(name, scheduler class, config, arguments of step) of every setting."""
    for spacing, prediction, (betas, beta_config) in itertools.product(SPACINGS, PREDICTIONS, BETAS.items()):
        config = {"timestep_spacing": spacing, "prediction_type": prediction, "steps_offset": 1, **beta_config}
        name = f"{spacing}/{prediction}/{betas}"
        if betas != "zero_snr" or prediction != "epsilon" or spacing == "leading":  # else they divide by zero
            latent = {**config, "clip_sample": False}
            yield f"ddim/{name}", DDIMScheduler, {**latent, "set_alpha_to_one": False}, {}
            yield f"ddim_eta/{name}", DDIMScheduler, {**latent, "set_alpha_to_one": True}, {"eta": 0.7}
            yield f"ddpm/{name}", DDPMScheduler, latent, {}
        for suffix, sigmas in SIGMAS.items():
            if betas != "squaredcos_cap_v2" or suffix == "/karras":
                yield f"euler/{name}{suffix}", EulerDiscreteScheduler, {**config, **sigmas}, {}
                yield f"dpm++_2m/{name}{suffix}", DPMSolverMultistepScheduler, {**config, **sigmas}, {}
        if prediction != "sample":
            yield f"euler_a/{name}", EulerAncestralDiscreteScheduler, config, {}
            if betas != "zero_snr":
                yield f"pndm/{name}", PNDMScheduler, {**config, "skip_prk_steps": True}, {}
    plain = {**BETAS["scaled_linear"], "timestep_spacing": "trailing", "steps_offset": 1}
    orders = {"euler_at_final": {"euler_at_final": True}, "higher_order": {"lower_order_final": False}}
    for name, order in orders.items():
        config = {**plain, **order, "final_sigmas_type": "sigma_min"}
        yield f"dpm++_2m/trailing/epsilon/scaled_linear/{name}", DPMSolverMultistepScheduler, config, {}
    yield ("pndm/trailing/epsilon/scaled_linear/alpha_to_one", PNDMScheduler,
           {**plain, "skip_prk_steps": True, "set_alpha_to_one": True}, {})


def make_samplers(directory):
    tensors = {"in/start": randn(700, *SHAPE), "in/noises": randn(701, max(STEPS), *SHAPE)}
    errors = {}
    for name, scheduler_class, config, step_arguments in cases():
        run = lambda dtype: torch.stack([loop(scheduler_class, config, steps, dtype, tensors["in/start"],
                                              tensors["in/noises"], **step_arguments) for steps in STEPS])
        tensors[name] = run(torch.float64)
        stock = run(torch.float32)
        errors[name] = max(relative_error(stock[i], tensors[name][i]) for i in range(len(STEPS)))
    worst = max(errors, key=errors.get)
    save(directory / "samplers.safetensors", tensors, fp32_error=(worst, errors[worst]),
         notes=f"final latents for {STEPS} steps, stacked, float64; network output 0.6 tanh(0.8 x + 0.3) + 0.2 cos(0.003 t) "
               "x + 0.1 sin(0.01 t); steps_offset 1; ddim: set_alpha_to_one false; ddim_eta: eta 0.7, set_alpha_to_one "
               "true; the i-th step with noise takes in/noises[i]")
