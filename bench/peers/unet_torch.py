#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The PyTorch twins of bench/cuda/unet_bench.cu and of the small kernels: Stable Diffusion 1.5's UNet from diffusers with
random weights, bfloat16 (or float16), channels last; forward, and forward + backward with LoRA of rank 16. Prints medians of
event times.

    python bench/peers/unet_torch.py [--compile] [--dtype float16]
"""

import argparse
import time

import torch
import torch.nn.functional as F

from timing import device_median_ms


def report(name, ms, note=""):
    print(f"{name:50s} {ms:9.4f} ms  {note}", flush=True)


def small_kernels():
    flush = torch.empty(64 << 20, dtype=torch.float32, device="cuda")
    for n, hw, c in ((2, 64, 320), (20, 64, 320), (20, 16, 1280), (8, 128, 320)):
        x = torch.randn(n, hw, hw, c, device="cuda", dtype=torch.bfloat16)
        scale, shift = (torch.randn(n, 1, 1, c, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        report(f"silu(x * (1 + scale) + shift) {n}x{hw}x{hw}x{c}", device_median_ms(lambda: F.silu(x * (1 + scale) + shift), flush=flush))
        images = torch.randn(n, c, hw, hw, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        norm = torch.nn.GroupNorm(32, c, device="cuda", dtype=torch.bfloat16)
        report(f"group norm + silu forward {n}x{hw}x{hw}x{c}", device_median_ms(lambda: F.silu(norm(images)), flush=flush))
        images.requires_grad_()
        out = F.silu(norm(images))
        cotangent = torch.randn_like(out)
        report(f"group norm + silu backward {n}x{hw}x{hw}x{c}",
               device_median_ms(lambda: torch.autograd.grad(out, [images, *norm.parameters()], cotangent, retain_graph=True), flush=flush))


def unet(compiled, dtype, ready=lambda: None):
    """`ready` is called after compiling, before anything is timed."""
    from diffusers import UNet2DConditionModel
    from peft import LoraConfig

    torch.manual_seed(0)
    with torch.device("cuda"):
        model = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    model = model.to("cuda", dtype, memory_format=torch.channels_last).requires_grad_(False)
    inputs = {}
    for rows in (2, 8, 20):
        latents = torch.randn(rows, 4, 64, 64, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
        text = torch.randn(rows, 77, 768, device="cuda", dtype=dtype)
        inputs[rows] = (latents, torch.full((rows,), 501, device="cuda"), text)
    with torch.no_grad():
        variants = {"eager": model}
        if compiled:
            variants["torch.compile"] = torch.compile(model, dynamic=False)
            for rows in (2, 20):
                begin = time.perf_counter()
                variants["torch.compile"](*inputs[rows])
                print(f"compiled for rows {rows} in {time.perf_counter() - begin:.0f} s", flush=True)
        ready()
        for name, forward in variants.items():
            for rows in (2, 20):
                report(f"unet forward, {name}, rows {rows}", device_median_ms(lambda: forward(*inputs[rows]).sample))
    model.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    weights = [p for p in model.parameters() if p.requires_grad]
    for rows in (2, 8):
        cotangent = torch.randn(rows, 4, 64, 64, device="cuda", dtype=dtype)

        def step():
            out = model(*inputs[rows]).sample
            torch.autograd.grad(out, weights, cotangent)

        report(f"lora forward + backward, eager, rows {rows}", device_median_ms(step))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="also torch.compile the UNet (minutes)")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16"])
    options = parser.parse_args()
    print(torch.__version__, torch.cuda.get_device_name())
    torch.backends.cudnn.benchmark = True
    small_kernels()
    unet(options.compile, getattr(torch, options.dtype))


if __name__ == "__main__":
    main()
