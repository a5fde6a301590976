#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""onnxruntime and oneDNN beside bench_backend on one CPU, float32, at the shapes of cpu_torch.py. onnxruntime gets weights as
initializers (packed once) and forward passes only; oneDNN (bench/peers/onednn.cpp, compiled before) three passes with
reordered weights. Each case is timed in turn on every side; times are medians.

    python bench/peers/cpu_others.py --bench build/release/bench/bench_backend [--onednn ./onednn] [--threads 16] [--filter conv]

Columns: milliseconds of lpo, onnxruntime, oneDNN; then their time over lpo's (above 1: lpo is faster) and lpo's fraction of peak.
"""

import argparse
import math
import os
import statistics
import subprocess

import cpu_torch
import numpy as np
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from timing import host_median_ms


class Model:
    """One node or a few, built with onnx's helper."""

    def __init__(self, nodes, inputs, constants, threads, contrib=False):
        describe = [helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape) for name, value in inputs.items()]
        out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph(nodes, "case", describe, [out], [numpy_helper.from_array(v, k) for k, v in constants.items()])
        opsets = [helper.make_opsetid("", 21)] + ([helper.make_opsetid("com.microsoft", 1)] if contrib else [])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        self.inputs = inputs

    def run(self):
        self.session.run(None, self.inputs)


def random(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def number(name, key):
    return int(name.split(key + ":")[1].split("/")[0])


def onnx_case(name, threads):
    """The model of a case of cpu_torch.py, or None where onnxruntime has no such pass."""
    n = lambda key: number(name, key)
    if name.startswith("gemm") and n("form") == 0:
        nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)]
        return Model(nodes, {"x": random(n("rows"), n("in"))}, {"w": random(n("out"), n("in")), "b": random(n("out"))}, threads)
    if name.startswith("conv2d") and n("pass") == 0:
        kernel, stride, side = n("kernel"), n("stride"), n("side")
        nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], strides=[stride] * 2, pads=[kernel // 2] * 4)]
        return Model(nodes, {"x": random(1, n("c"), side, side)}, {"w": random(n("o"), n("c"), kernel, kernel), "b": random(n("o"))},
                     threads)
    if name.startswith("attention_forward"):
        width = n("heads") * n("width")
        nodes = [helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], domain="com.microsoft", num_heads=n("heads"))]
        shapes = {"q": n("queries"), "k": n("keys"), "v": n("keys")}
        return Model(nodes, {key: random(n("batch"), length, width) for key, length in shapes.items()}, {}, threads, contrib=True)
    if name.startswith("group_norm_silu_forward"):
        side, c = math.isqrt(n("spatial")), n("c")
        nodes = [helper.make_node("GroupNormalization", ["x", "w", "b"], ["z"], num_groups=n("groups"), epsilon=1e-5),
                 helper.make_node("Sigmoid", ["z"], ["s"]), helper.make_node("Mul", ["z", "s"], ["y"])]
        return Model(nodes, {"x": random(n("n"), c, side, side)}, {"w": random(c), "b": random(c)}, threads)
    if name.startswith("layer_norm_forward"):
        nodes = [helper.make_node("LayerNormalization", ["x", "w", "b"], ["y"], epsilon=1e-5)]
        return Model(nodes, {"x": random(n("n") * n("spatial"), n("c"))}, {"w": random(n("c")), "b": random(n("c"))}, threads)
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True, help="the program bench_backend")
    parser.add_argument("--onednn", help="the program made of bench/peers/onednn.cpp")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.15, help="of each side per case")
    parser.add_argument("--filter", default="", help="only names that contain this")
    options = parser.parse_args()
    peer = {}
    if options.onednn:
        environment = dict(os.environ, OMP_NUM_THREADS=str(options.threads))
        run = subprocess.run([options.onednn, str(options.seconds)], capture_output=True, text=True, check=True, env=environment)
        peer = {name: float(ms) for name, ms in (line.split() for line in run.stdout.splitlines())}
    print(f"onnxruntime {onnxruntime.__version__}, {options.threads} threads; ms of lpo, onnxruntime, oneDNN; ratios; of peak")
    for group in (cpu_torch.products, cpu_torch.convolutions, cpu_torch.attentions, cpu_torch.norms):
        ratios = {"onnxruntime": [], "oneDNN": []}
        of_dtype = group in (cpu_torch.products, cpu_torch.convolutions, cpu_torch.attentions)
        for name, _ in group(torch.float32) if of_dtype else group():
            if options.filter not in name:
                continue
            case = onnx_case(name, options.threads)
            theirs = {"onnxruntime": host_median_ms(case.run, seconds=options.seconds) if case else math.nan,
                      "oneDNN": peer.get(name.rstrip("/"), math.nan)}
            if all(math.isnan(ms) for ms in theirs.values()):
                continue
            ours, of_peak = cpu_torch.lpo_ms(options.bench, name, options.threads, options.seconds)
            for key, ms in theirs.items():
                if not math.isnan(ms):
                    ratios[key].append(ms / ours)
            milliseconds = "  ".join(f"{ms:9.3f}" for ms in theirs.values())
            over_ours = "  ".join(f"{ms / ours:5.2f}" for ms in theirs.values())
            print(f"{name.rstrip('/'):78s} {ours:9.3f}  {milliseconds}  {over_ours}  {of_peak:5.2f}", flush=True)
        for key, values in ratios.items():
            if values:
                mean = statistics.geometric_mean(values)
                print(f"{group.__name__}: geometric mean of {len(values)} ratios to {key} {mean:.2f}", flush=True)


if __name__ == "__main__":
    main()
