# SPDX-License-Identifier: MIT
"""One Diffusion-DPO minibatch: the loss of three pairs of predictions and the gradient of the prediction."""

import torch
import torch.nn.functional as functional

from .common import randn, save, truth_of

BETA, PAIRS, SHAPE = 20.0, 3, (4, 3, 5)


def make_dpo_loss(directory):
    target = randn(1700, PAIRS, *SHAPE).repeat(2, 1, 1, 1)  # a pair shares its noise
    inputs = {"target": target, "reference": target + 0.5 * randn(1701, 2 * PAIRS, *SHAPE)}
    inputs["prediction"] = inputs["reference"] + 0.2 * randn(1702, 2 * PAIRS, *SHAPE)

    def compute(dtype):
        x = {key: value.to(dtype) for key, value in inputs.items()}
        y = x["prediction"].requires_grad_()
        policy, reference = (functional.mse_loss(value, x["target"], reduction="none").mean((1, 2, 3)).chunk(2)
                             for value in (y, x["reference"]))
        inside = -BETA / 2 * ((policy[0] - policy[1]) - (reference[0] - reference[1]))
        loss = -functional.logsigmoid(inside).mean()
        loss.backward()
        return {"out/inside": inside, "out/loss": loss.reshape(1), "grad/prediction": y.grad}

    tensors, error = truth_of(compute)
    tensors.update({"in/" + key: value for key, value in inputs.items()})
    save(directory / "dpo_loss.safetensors", tensors, fp32_error=error, beta=str(BETA))
