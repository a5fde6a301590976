# SPDX-License-Identifier: MIT
"""One LPO minibatch on the SD1.5-shaped UNet with a LoRA: guided means, log-ratios, clipped loss, LoRA gradients."""

import copy

import torch
import torch.nn.functional as functional

from . import unets
from .common import arithmetic, randn, save, truth_of
from .schedulers import betas_exact

GUIDANCE, BETA, CLIP, STRIDE = 5.0, 500.0, 0.1, 50
TIMESTEPS = [951, 501, 301, 101, 1]
# Wanted (Delta_win, Delta_lose) of each pair: both ratios inside the clip range (twice), only the win clipped, only
# the lose clipped, both clipped.
DELTAS = [(0.004, -0.002), (-0.001, 0.003), (-0.15, -0.06), (0.05, 0.2), (-0.2, 0.2)]


def coefficients():
    """Per pair, in float64: alpha_bar, alpha_bar of the arrival, sigma (eta 1), a_t and c_t of mu = a_t x + c_t eps."""
    alpha_bar = torch.cumprod(1.0 - torch.from_numpy(betas_exact("scaled_linear")), dim=0)
    t = torch.tensor(TIMESTEPS)
    now, then = alpha_bar[t], alpha_bar[(t - STRIDE).clamp(min=0)]
    variance = (1 - then) / (1 - now) * (1 - now / then)
    slope = (1 - then - variance).sqrt() - (then * (1 - now) / now).sqrt()
    return {"alpha_bar": now, "alpha_bar_prev": then, "sigma": variance.sqrt(), "a": (then / now).sqrt(), "c": slope}


def column(values, dtype):
    return values.to(dtype)[:, None, None, None]


def guided(model, x, dtype):
    """eps_u + w (eps_c - eps_u) from one pass over the rows [u ; c], and mu."""
    rows = len(TIMESTEPS)
    context = torch.cat([x["context_uncond"].expand(rows, -1, -1), x["context"]])
    out, _, _ = unets.forward(model, x["x_t"].repeat(2, 1, 1, 1), x["timestep"].repeat(2), context)
    eps_u, eps_c = out.chunk(2)
    eps = eps_u + GUIDANCE * (eps_c - eps_u)
    table = coefficients()
    return eps, column(table["a"], dtype) * x["x_t"] + column(table["c"], dtype) * eps


def delta(sample, mu, mu_ref, sigma):
    return ((mu - mu_ref) * (2 * sample - mu - mu_ref) / (2 * sigma ** 2)).mean(dim=(1, 2, 3))


def prescribe(inputs, model, base):
    """Adds x_win and x_lose, float32: noise around the midpoint of both means, moved along mu - mu_ref so far that the
    log-ratios are DELTAS."""
    with arithmetic(torch.float64), torch.no_grad():
        x = unets.convert(inputs, torch.float64)
        _, mu = guided(copy.deepcopy(model).double(), x, torch.float64)
        _, mu_ref = guided(copy.deepcopy(base).double(), x, torch.float64)
    sigma = column(coefficients()["sigma"], torch.float64)
    difference = mu - mu_ref
    square = (difference ** 2).sum(dim=(1, 2, 3), keepdim=True)
    for side, key in enumerate(("x_win", "x_lose")):
        wanted = column(torch.tensor([pair[side] for pair in DELTAS]), torch.float64)
        z = randn(1580 + side, *mu.shape).double()
        z -= (z * difference).sum(dim=(1, 2, 3), keepdim=True) / square * difference
        along = wanted * sigma ** 2 * mu[0].numel() / square * difference
        inputs[key] = ((mu + mu_ref) / 2 + sigma * z + along).float()


def make_lpo_loss(directory):
    base, _ = unets.make("sd15")
    model = unets.add_lora(base, rank=4, scale_b=0.12, seed=1541)
    height, width = unets.SIZES["sd15"]
    dim = unets.CONFIGS["sd15"]["cross_attention_dim"]
    inputs = {"x_t": randn(1570, len(TIMESTEPS), 4, height, width), "timestep": torch.tensor(TIMESTEPS),
              "context": randn(1571, len(TIMESTEPS), unets.TOKENS, dim),
              "context_uncond": randn(1572, 1, unets.TOKENS, dim)}
    prescribe(inputs, model, base)

    def compute(dtype):
        policy, reference = copy.deepcopy(model).to(dtype), copy.deepcopy(base).to(dtype)
        x = unets.convert(inputs, dtype)
        sigma = column(coefficients()["sigma"], dtype)
        eps, mu = guided(policy, x, dtype)
        eps.retain_grad()
        with torch.no_grad():
            eps_ref, mu_ref = guided(reference, x, dtype)
        deltas = [delta(x[key], mu, mu_ref, sigma) for key in ("x_win", "x_lose")]
        ratios = [value.exp().clamp(1 - CLIP, 1 + CLIP) for value in deltas]
        argument = BETA * (ratios[0].log() - ratios[1].log())
        each = functional.softplus(-argument)
        loss = each.mean()
        loss.backward()
        return {"out/eps": eps, "out/eps_ref": eps_ref, "out/mu": mu, "out/mu_ref": mu_ref,
                "out/delta_win": deltas[0], "out/delta_lose": deltas[1],
                "out/ratio_win": ratios[0], "out/ratio_lose": ratios[1],
                "out/argument": argument, "out/losses": each, "out/loss": loss.reshape(1),
                "out/implicit_accuracy": (ratios[0] > ratios[1]).to(dtype).mean().reshape(1),
                "out/margin": (ratios[0] - ratios[1]).mean().reshape(1),
                "grad/out/eps": eps.grad,
                **{"grad/" + unets.lora_key(name): p.grad for name, p in unets.lora_parameters(policy)}}

    tensors, error = truth_of(compute)
    tensors.update(unets.lora_weights(model))
    tensors.update({"in/" + key: value for key, value in inputs.items()})
    tensors.update({"in/coefficients/" + key: value for key, value in coefficients().items()})
    save(directory / "lpo_loss.safetensors", tensors, fp32_error=error, guidance=str(GUIDANCE), beta=str(BETA),
         clip=str(CLIP), rank="4", alpha="4", base="unet_sd15.safetensors: weights/")
