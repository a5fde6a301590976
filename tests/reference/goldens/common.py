# SPDX-License-Identifier: MIT
"""Seeds, float64 truth, error statistics and a deterministic safetensors writer, shared by all golden makers."""

import contextlib
import json
import math
import struct
import sys
from importlib.metadata import version

import diffusers.models.embeddings as diffusers_embeddings
import numpy as np
import torch

PACKAGES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy")
DTYPE_NAMES = {torch.float16: "F16", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


# The last matrix of most residual branches is small, as in a trained network: with unit gains the gradients of these
# narrow networks amplify rounding tenfold, and float32 PyTorch itself misses a tolerance of 1e-5. Cross-attention
# keeps its full strength, so that the guided difference between two prompts is not all cancellation.
GAINS = {"attn2.to_out": 1.0, "conv2": 0.25, "to_out": 0.25, "ff.net.2": 0.25, "out_proj": 0.25, "fc2": 0.25}


def randn(seed, *shape, scale=1.0):
    """float32 standard normals times `scale`; the same numbers for the same seed and shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def randomise(module, seed):
    """Gives every parameter a value that a wrong implementation would notice: no zero bias, no unit norm weight."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                value = 0.1 * noise
            elif parameter.ndim <= 1:
                value = 1.0 + 0.2 * noise
            elif "embedding.weight" in name:
                value = 0.5 * noise
            else:
                gain = next((gain for part, gain in GAINS.items() if part in name), 1.0)
                value = noise * gain / math.sqrt(parameter.numel() / parameter.shape[0])
            parameter.copy_(value)
    return module.eval()


def exact_timestep_embedding(timesteps, embedding_dim, flip_sin_to_cos=False, downscale_freq_shift=1, scale=1,
                             max_period=10000):
    """diffusers' get_timestep_embedding in float64; the original rounds the angle to float32 even in a double model."""
    half = embedding_dim // 2
    exponent = -math.log(max_period) * torch.arange(half, dtype=torch.float64) / (half - downscale_freq_shift)
    angle = scale * timesteps[:, None].to(torch.float64) * torch.exp(exponent)[None, :]
    first, second = (angle.cos(), angle.sin()) if flip_sin_to_cos else (angle.sin(), angle.cos())
    return torch.cat([first, second], dim=-1)


@contextlib.contextmanager
def arithmetic(dtype):
    """Runs a block with exact timestep embeddings when `dtype` is float64, and with stock diffusers otherwise."""
    original = diffusers_embeddings.get_timestep_embedding
    torch.set_default_dtype(dtype)
    if dtype == torch.float64:
        diffusers_embeddings.get_timestep_embedding = exact_timestep_embedding
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        diffusers_embeddings.get_timestep_embedding = original


def relative_error(value, truth):
    """||value - truth|| / ||truth||, with a floor for tensors whose truth is almost zero."""
    truth = truth.double()
    floor = 1e-3 * math.sqrt(max(truth.numel(), 1))
    return float((value.detach().double() - truth.detach()).norm() / max(float(truth.detach().norm()), floor))


def truth_of(compute):
    """Runs compute(float64) and compute(float32); returns the float64 results rounded to float32 and the worst
    relative error of plain float32 PyTorch against them (tensor name, error)."""
    with arithmetic(torch.float64):
        truth = compute(torch.float64)
    with arithmetic(torch.float32):
        single = compute(torch.float32)
    errors = {name: relative_error(single[name], value) for name, value in truth.items()}
    worst = max(errors, key=errors.get)
    return {name: value.detach().float() for name, value in truth.items()}, (worst, errors[worst])


def weights_of(module, prefix="weights/"):
    return {prefix + name: tensor.detach().float() for name, tensor in module.state_dict().items()
            if tensor.is_floating_point()}


def grad_stats(named_parameters):
    """Per parameter: (L2 norm, sum, dot with the weight) of its gradient; none of them depends on the layout."""
    rows = [[p.grad.double().norm(), p.grad.double().sum(), (p.grad.double() * p.detach().double()).sum()]
            for _, p in named_parameters]
    return torch.tensor([[float(v) for v in row] for row in rows], dtype=torch.float64)


def save(path, tensors, **metadata):
    """Writes safetensors with sorted keys (the safetensors package writes its metadata in random order)."""
    metadata = {"command": "python tests/reference/make_golden.py " + path.stem,
                "versions": " ".join(f"{name}=={version(name)}" for name in PACKAGES)
                + f" python=={sys.version_info.major}.{sys.version_info.minor}",
                **{key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}}
    header, blobs, offset = {"__metadata__": dict(sorted(metadata.items()))}, [], 0
    # Wide types first, so that every tensor is aligned to its own element size.
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    for name in order:
        tensor = tensors[name].detach().contiguous()
        assert torch.isfinite(tensor).all(), f"{path.name}: {name} is not finite"
        blob = np.ascontiguousarray(tensor.numpy()).tobytes()
        header[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    print(f"{path.name}: {len(tensors)} tensors, {(8 + len(text) + offset) / 1e6:.3f} MB"
          + (f", fp32 error {metadata['fp32_error']}" if "fp32_error" in metadata else ""))
