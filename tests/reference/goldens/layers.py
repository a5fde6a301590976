# SPDX-License-Identifier: MIT
"""Single layers, forward and backward, at small odd sizes: `<layer>/{x, w, b, ..., y}`, `<layer>/grad/{x, ...}`."""

import torch
import torch.nn.functional as functional
from diffusers.models.embeddings import Timesteps
from diffusers.models.resnet import Upsample2D

from .common import randn, save, truth_of


def gelu_quick(x):
    return x * torch.sigmoid(1.702 * x)


def geglu(x):
    """diffusers' GEGLU after its projection: first half times gelu (erf form) of the second half."""
    value, gate = x.chunk(2, dim=-1)
    return value * functional.gelu(gate)


def attention(q, k, v):
    """[batch, heads, tokens, dim], scale 1/sqrt(dim), no mask."""
    return functional.scaled_dot_product_attention(q, k, v)


def attention_causal(q, k, v):
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def upsample_nearest(x):
    return Upsample2D(x.shape[1], use_conv=False)(x)


def conv_down_asymmetric(x, w, b):
    """The VAE encoder's downsampling: zero padding of one row and column at the bottom and right only."""
    return functional.conv2d(functional.pad(x, (0, 1, 0, 1)), w, b, stride=2)


def cases():
    """name -> (function, {argument: float32 tensor}); the seeds are fixed by position."""
    def conv(seed, rows, inner, outer, height, width, kernel):
        return {"x": randn(seed, rows, inner, height, width),
                "w": randn(seed + 1, outer, inner, kernel, kernel, scale=(inner * kernel * kernel) ** -0.5),
                "b": randn(seed + 2, outer)}

    def affine(seed, channels):
        return {"w": 1 + randn(seed, channels, scale=0.2), "b": randn(seed + 1, channels, scale=0.2)}

    def qkv(seed, rows, heads, queries, keys, dim):
        return {"q": randn(seed, rows, heads, queries, dim), "k": randn(seed + 1, rows, heads, keys, dim),
                "v": randn(seed + 2, rows, heads, keys, dim)}

    return {
        "conv2d_3x3": (lambda x, w, b: functional.conv2d(x, w, b, padding=1), conv(10, 2, 5, 7, 9, 6, 3)),
        "conv2d_1x1": (lambda x, w, b: functional.conv2d(x, w, b), conv(20, 2, 5, 7, 4, 3, 1)),
        "conv2d_5x5": (lambda x, w, b: functional.conv2d(x, w, b, padding=2), conv(30, 1, 3, 2, 6, 7, 5)),
        "conv2d_3x3_stride2": (lambda x, w, b: functional.conv2d(x, w, b, stride=2, padding=1),
                               conv(40, 2, 5, 3, 9, 6, 3)),
        "conv2d_3x3_stride2_asymmetric": (conv_down_asymmetric, conv(50, 2, 5, 3, 8, 6, 3)),
        "linear": (lambda x, w, b: functional.linear(x, w, b),
                   {"x": randn(60, 3, 5, 7), "w": randn(61, 11, 7), "b": randn(62, 11)}),
        "group_norm": (lambda x, w, b: functional.group_norm(x, 3, w, b, 1e-5),
                       {"x": 0.5 + 2 * randn(70, 2, 9, 5, 7), **affine(71, 9)}),
        "group_norm_eps6": (lambda x, w, b: functional.group_norm(x, 2, w, b, 1e-6),
                            {"x": 3 + randn(80, 3, 14, 3, 2), **affine(81, 14)}),
        "layer_norm": (lambda x, w, b: functional.layer_norm(x, x.shape[-1:], w, b, 1e-5),
                       {"x": 0.3 + randn(90, 2, 5, 13), **affine(91, 13)}),
        "softmax": (lambda x: functional.softmax(x, dim=-1), {"x": randn(100, 4, 3, 11, scale=3.0)}),
        "attention_self": (attention, qkv(110, 2, 3, 15, 15, 5)),
        "attention_cross": (attention, qkv(120, 2, 2, 21, 7, 8)),
        "attention_causal": (attention_causal, qkv(130, 2, 2, 9, 9, 6)),
        "silu": (lambda x: functional.silu(x), {"x": randn(140, 3, 37, scale=3.0)}),
        "gelu": (lambda x: functional.gelu(x), {"x": randn(150, 3, 37, scale=3.0)}),
        "gelu_quick": (gelu_quick, {"x": randn(160, 3, 37, scale=3.0)}),
        "geglu": (geglu, {"x": randn(170, 2, 5, 14, scale=2.0)}),
        "upsample_nearest": (upsample_nearest, {"x": randn(180, 2, 5, 3, 4)}),
    }


def make_layers(directory):
    all_cases = cases()
    cotangents = {name: randn(1000 + index, *function(**arguments).shape)
                  for index, (name, (function, arguments)) in enumerate(all_cases.items())}
    timesteps = torch.tensor([951, 51, 1, 0, 999])

    def compute(dtype):
        result = {}
        for name, (function, arguments) in all_cases.items():
            inputs = {key: value.clone().to(dtype).requires_grad_() for key, value in arguments.items()}
            y = function(**inputs)
            y.backward(cotangents[name].to(dtype))
            result[f"{name}/y"] = y
            result.update({f"{name}/grad/{key}": value.grad for key, value in inputs.items()})
        for width in (320, 14):
            result[f"timestep_embedding_{width}/y"] = Timesteps(width, True, 0)(timesteps)
        return result

    tensors, error = truth_of(compute)
    for name, (_, arguments) in all_cases.items():
        tensors.update({f"{name}/{key}": value for key, value in arguments.items()})
        tensors[f"{name}/cotangent"] = cotangents[name]
    for width in (320, 14):
        tensors[f"timestep_embedding_{width}/t"] = timesteps
    save(directory / "layers.safetensors", tensors, fp32_error=error,
         notes="group_norm: 3 groups, eps 1e-5; group_norm_eps6: 2 groups, eps 1e-6; layer_norm: last axis, eps 1e-5; "
               "attention: [batch, heads, tokens, dim]; geglu: value half first, erf gelu; "
               "timestep_embedding: flip_sin_to_cos, freq_shift 0")
