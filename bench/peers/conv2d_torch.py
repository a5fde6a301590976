#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The PyTorch twin of bench/cuda/conv2d_bench.cu: 3x3 convolutions with padding 1 through cuDNN, channels last, bfloat16,
algorithms chosen by measurement (cudnn.benchmark); forward with bias, and the gradients of x and of the weights. Prints medians
of event times with a cold cache, operations counted as there.

    python bench/peers/conv2d_torch.py [--bench OUTPUT [--use never]]

OUTPUT: what bench_cuda --benchmark_filter=conv2d --benchmark_format=json printed; then each line ends with lpo's time, with
that CudnnUse, and the ratio of PyTorch's time to it.
"""

import argparse
import json
import math
import statistics

import torch

from timing import device_median_ms

SD15 = ((64, 320, 320, 1), (64, 960, 320, 1), (64, 320, 320, 2), (32, 320, 640, 1), (32, 640, 640, 1), (32, 1920, 640, 1),
        (32, 640, 640, 2), (16, 640, 1280, 1), (16, 1280, 1280, 1), (16, 2560, 1280, 1), (16, 1280, 1280, 2), (8, 1280, 1280, 1),
        (8, 2560, 1280, 1))
SDXL = ((128, 320, 320, 1), (128, 960, 320, 1), (128, 320, 320, 2), (64, 640, 640, 1), (64, 1920, 640, 1), (64, 640, 640, 2),
        (32, 1280, 1280, 1), (32, 2560, 1280, 1))
SHAPES = [(n, *shape) for n in (2, 20) for shape in SD15] + [(n, *shape) for n in (2, 8) for shape in SDXL]


def times_of(path, use):
    """Microseconds by pass and shape, from Google Benchmark's JSON, of the rows with that CudnnUse."""
    with open(path) as file:
        runs = json.load(file)["benchmarks"]
    types = f"<lpo::bfloat16, CudnnUse::{use}>"
    return {run["name"].replace(types, "").replace("/manual_time", ""): run["real_time"] for run in runs
            if types in run["name"] and "real_time" in run}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", help="JSON output of bench_cuda")
    parser.add_argument("--use", default="never", help="never, same_bits, fastest or wherever_possible")
    options = parser.parse_args()
    ours = times_of(options.bench, options.use) if options.bench else {}
    torch.backends.cudnn.benchmark = True
    print(torch.__version__, torch.cuda.get_device_name(), "cuDNN", torch.backends.cudnn.version())
    flush = torch.empty(64 << 20, dtype=torch.float32, device="cuda")
    logs = {}

    def tensor(*shape):
        return torch.randn(*shape, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)

    for n, side, c, o, stride in SHAPES:
        out = (side - 1) // stride + 1
        x, weight, dy = tensor(n, c, side, side), tensor(o, c, 3, 3) * 0.02, tensor(n, o, out, out)
        bias = torch.randn(o, device="cuda", dtype=torch.bfloat16)

        def backward(mask):
            return torch.ops.aten.convolution_backward(dy, x, weight, None, [stride] * 2, [1, 1], [1, 1], False, [0, 0], 1, mask)

        passes = {"forward": lambda: torch.nn.functional.conv2d(x, weight, bias, stride, 1),
                  "backward_data": lambda: backward([True, False, False]),
                  "backward_weights": lambda: backward([False, True, False])}
        operations = 2.0 * 9 * n * out * out * o * c
        for name, work in passes.items():
            us = 1e3 * device_median_ms(work, flush=flush)
            key = f"conv2d_{name}/n:{n}/hw:{side}/c:{c}/o:{o}/stride:{stride}"
            line = f"{key:58s} {us:9.1f} us  {operations / us * 1e-6:6.1f} TFLOP/s"
            if key in ours:
                logs.setdefault(name, []).append(math.log(us / ours[key]))
                line += f"   lpo {ours[key]:9.1f} us  ratio {us / ours[key]:5.2f}"
            print(line, flush=True)
    for name, ratios in logs.items():
        print(f"{name}: geometric mean of the ratio {math.exp(statistics.mean(ratios)):.3f} over {len(ratios)}")


if __name__ == "__main__":
    main()
