#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The PyTorch twin of bench/model/unet_bench.cpp: Stable Diffusion 1.5's UNet from diffusers on the CPU, random weights,
channels last; a forward, and forward + backward with LoRA of rank 16 (peft). Prints the median by the clock,
the least processor time of all threads and the largest memory of the process.

    python bench/peers/unet_cpu_torch.py [--threads 2] [--rows 1 2] [--dtype float32] [--repeats 3] [--no-lora]
"""

import argparse
import resource

import torch

from timing import host_times_ms


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-lora", action="store_true", help="only the forward")
    options = parser.parse_args()
    from diffusers import UNet2DConditionModel

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dtype = getattr(torch, options.dtype)
    model = UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)
    model = model.to(dtype, memory_format=torch.channels_last).requires_grad_(False)
    with open("/proc/self/clear_refs", "w") as peaks:  # the largest memory so far was the model's construction in float32
        peaks.write("5")

    def report(name, rows, times):
        ms, processor = times
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1048576
        print(f"{name}<{options.dtype}>/rows:{rows}/threads:{options.threads:<3d} {ms:10.1f} ms   "
              f"processor {processor:.1f}   peak {peak:.2f} GiB", flush=True)

    def inputs(rows):
        latents = torch.randn(rows, 4, 64, 64, dtype=dtype).to(memory_format=torch.channels_last)
        return latents, torch.full((rows,), 501), torch.randn(rows, 77, 768, dtype=dtype)

    print(f"torch {torch.__version__}, {options.threads} threads")
    for rows in options.rows:
        arguments = inputs(rows)
        with torch.no_grad():
            report("unet_forward", rows, host_times_ms(lambda: model(*arguments).sample, options.repeats))
    if options.no_lora:
        return
    from peft import LoraConfig

    model.add_adapter(LoraConfig(r=16, lora_alpha=16, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    weights = [p for p in model.parameters() if p.requires_grad]
    for rows in options.rows:
        arguments = inputs(rows)
        cotangent = torch.randn(rows, 4, 64, 64, dtype=dtype)
        report("lora_forward_backward", rows,
               host_times_ms(lambda: torch.autograd.grad(model(*arguments).sample, weights, cotangent), options.repeats))


if __name__ == "__main__":
    main()
