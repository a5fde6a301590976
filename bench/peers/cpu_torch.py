#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""PyTorch beside bench_backend on one CPU: products, convolutions (channels last), attention and norms at the shapes of
Stable Diffusion 1.5, in float32; with --dtype bfloat16 products, convolutions and attention in that. Both sides run in
turns of a fraction of a second, so that a busy or throttled machine slows both; each time is the median over the turns.
With one thread, times are processor times of that thread.

    python bench/peers/cpu_torch.py --bench build/release/bench/bench_backend [--threads 2] [--rounds 3] [--filter conv]

Columns: milliseconds of lpo and of PyTorch, ratio (above 1: lpo is faster), and lpo's fraction of the peak of
multiply-adds in that type that it measured in the same process (products, convolutions and attention only).
"""

import argparse
import json
import math
import re
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F

LPO_TYPES = {torch.float32: "float", torch.bfloat16: "lpo::bfloat16"}


def products(dtype):
    for rows, out, inner in ((4096, 320, 320), (4096, 2560, 320), (1024, 640, 640), (1024, 5120, 640), (256, 1280, 1280),
                             (64, 1280, 1280), (77, 320, 768), (77, 1280, 768)):
        x, weight, bias, dy = (torch.randn(*shape).to(dtype) for shape in ((rows, inner), (out, inner), (out,), (rows, out)))
        work = (lambda: F.linear(x, weight, bias), lambda: dy @ weight, lambda: dy.t() @ x)
        for form in range(3):
            yield f"gemm<{LPO_TYPES[dtype]}>/rows:{rows}/out:{out}/in:{inner}/form:{form}/", work[form]


def convolutions(dtype):
    shapes = ((64, 320, 320, 3, 1), (32, 640, 640, 3, 1), (16, 1280, 1280, 3, 1), (8, 1280, 1280, 3, 1), (16, 2560, 1280, 3, 1),
              (64, 320, 320, 3, 2), (64, 960, 320, 1, 1))
    for side, c, o, kernel, stride in shapes:
        x = torch.randn(1, c, side, side).to(dtype, memory_format=torch.channels_last)
        weight = torch.randn(o, c, kernel, kernel).to(dtype, memory_format=torch.channels_last)
        bias, pad = torch.randn(o).to(dtype), kernel // 2
        dy = torch.randn_like(F.conv2d(x, weight, bias, stride, pad))

        def gradient(mask, x=x, weight=weight, dy=dy, o=o, stride=stride, pad=pad):
            return torch.ops.aten.convolution_backward(dy, x, weight, [o], [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1, mask)

        work = (lambda: F.conv2d(x, weight, bias, stride, pad), lambda: gradient([True, False, False]),
                lambda: gradient([False, True, True]))
        for which in range(3):
            yield f"conv2d<{LPO_TYPES[dtype]}>/n:1/side:{side}/c:{c}/o:{o}/kernel:{kernel}/stride:{stride}/pass:{which}/", work[which]


def attentions(dtype):
    for n, queries, keys, width in ((1, 4096, 4096, 40), (2, 1024, 1024, 80), (2, 256, 256, 160), (2, 4096, 77, 40), (2, 1024, 77, 80)):
        q, k, v = (torch.randn(n, length, 8, width).to(dtype).transpose(1, 2) for length in (queries, keys, keys))
        tag = f"batch:{n}/queries:{queries}/keys:{keys}/heads:8/width:{width}/"
        yield f"attention_forward<{LPO_TYPES[dtype]}>/" + tag, lambda: F.scaled_dot_product_attention(q, k, v)
        leaves = [t.detach().requires_grad_() for t in (q, k, v)]
        with torch.enable_grad():
            out = F.scaled_dot_product_attention(*leaves)
        dy = torch.randn_like(out)
        yield f"attention_backward<{LPO_TYPES[dtype]}>/" + tag, lambda: torch.autograd.grad(out, leaves, dy, retain_graph=True)


def norms():
    for n, side, c in ((2, 64, 320), (2, 16, 1280)):
        x = torch.randn(n, c, side, side).to(memory_format=torch.channels_last)
        norm = torch.nn.GroupNorm(32, c)
        tag = f"n:{n}/spatial:{side * side}/c:{c}/groups:32/"
        yield "group_norm_silu_forward/" + tag, lambda: F.silu(norm(x))
        leaf = x.detach().requires_grad_()
        with torch.enable_grad():
            out = F.silu(norm(leaf))
        dy = torch.randn_like(out)
        leaves = [leaf, *norm.parameters()]
        yield "group_norm_silu_backward/" + tag, lambda: torch.autograd.grad(out, leaves, dy, retain_graph=True)
        rows, layer = torch.randn(n * side * side, c), torch.nn.LayerNorm(c)
        yield "layer_norm_forward/" + tag, lambda: layer(rows)


def torch_ms(work, threads, seconds):
    clock = time.thread_time if threads == 1 else time.perf_counter
    work()
    times, begin = [], clock()
    while len(times) < 3 or clock() - begin < seconds:
        start = clock()
        work()
        times.append((clock() - start) * 1e3)
    return statistics.median(times)


def lpo_ms(bench, name, threads, seconds):
    pattern = "^" + re.escape(name) + f"threads:{threads}/"
    run = subprocess.run([bench, f"--benchmark_filter={pattern}", "--benchmark_format=json", f"--benchmark_min_time={seconds}"],
                         capture_output=True, text=True, check=True)
    entry = json.loads(run.stdout)["benchmarks"][0]
    scale = {"ns": 1e-6, "us": 1e-3, "ms": 1.0}[entry["time_unit"]]
    real, of_peak = entry["real_time"], entry.get("of_peak", math.nan)
    if threads == 1:
        return entry["cpu_time"] * scale, of_peak * real / entry["cpu_time"]
    return real * scale, of_peak


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True, help="the program bench_backend")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.15, help="of each side per round")
    parser.add_argument("--filter", default="", help="only names that contain this")
    parser.add_argument("--dtype", default="float32", choices=[str(dtype)[6:] for dtype in LPO_TYPES])
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    print(f"torch {torch.__version__}, {options.threads} threads; ms, lpo / torch")
    in_dtype = products, convolutions, attentions
    for group in in_dtype + (norms,) * (dtype == torch.float32):
        ratios = []
        for name, work in group(dtype) if group in in_dtype else group():
            if options.filter not in name:
                continue
            ours, theirs, peaks = [], [], []
            for _ in range(options.rounds):
                ms, of_peak = lpo_ms(options.bench, name, options.threads, options.seconds)
                ours.append(ms)
                peaks.append(of_peak)
                theirs.append(torch_ms(work, options.threads, options.seconds))
            mine, peer = statistics.median(ours), statistics.median(theirs)
            ratios.append(peer / mine)
            print(f"{name.rstrip('/'):78s} {mine:9.3f} {peer:9.3f}  {peer / mine:5.2f}  {statistics.median(peaks):5.2f}", flush=True)
        if ratios:
            print(f"{group.__name__}: geometric mean of {len(ratios)} ratios {statistics.geometric_mean(ratios):.2f}", flush=True)


if __name__ == "__main__":
    main()
