# SPDX-License-Identifier: MIT
"""One GRPO minibatch: groups of candidates, advantages from scores, ratios to the policy that drew them, loss and the
gradient of the prediction; ratios inside and outside the limits."""

import torch

from . import lpo
from .common import randn, save, truth_of

BETA, CLIP, CANDIDATES, SHAPE = 0.1, 0.1, 3, (4, 3, 5)


def make_grpo_loss(directory):
    table = lpo.coefficients()
    rows = len(lpo.TIMESTEPS)
    inputs = {"x_t": randn(1600, rows, *SHAPE), "old": randn(1601, rows, *SHAPE)}
    inputs["prediction"] = inputs["old"] + 0.3 * randn(1602, rows, *SHAPE)
    inputs["reference"] = inputs["old"] + 0.2 * randn(1603, rows, *SHAPE)
    inputs["scores"] = randn(1604, CANDIDATES, rows)
    noise = randn(1605, CANDIDATES, rows, *SHAPE).double()
    column = {key: lpo.column(table[key], torch.float64) for key in ("a", "c", "sigma")}
    inputs["candidates"] = (column["a"] * inputs["x_t"] + column["c"] * inputs["old"] + column["sigma"] * noise).float()

    def compute(dtype):
        x = {key: value.to(dtype) for key, value in inputs.items()}
        a, c, sigma = (lpo.column(table[key], dtype) for key in ("a", "c", "sigma"))
        y = x["prediction"].requires_grad_()
        def density(prediction):
            return -((x["candidates"] - a * x["x_t"] - c * prediction) ** 2 / (2 * sigma ** 2)).mean(dim=(2, 3, 4))
        ratio = (density(y) - density(x["old"])).exp()
        scores = x["scores"]
        advantage = (scores - scores.mean(0)) / scores.std(0, unbiased=False)
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
        divergence = ((c * (y - x["reference"])) ** 2 / (2 * sigma ** 2)).mean(dim=(1, 2, 3))
        loss = BETA * divergence.mean() - gain.mean()
        loss.backward()
        return {"out/ratio": ratio, "out/advantage": advantage, "out/divergence": divergence,
                "out/loss": loss.reshape(1), "grad/prediction": y.grad}

    tensors, error = truth_of(compute)
    tensors.update({"in/" + key: value for key, value in inputs.items()})
    tensors["in/timestep"] = torch.tensor(lpo.TIMESTEPS)
    save(directory / "grpo_loss.safetensors", tensors, fp32_error=error, beta=str(BETA), clip=str(CLIP))
