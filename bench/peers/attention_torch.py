#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The PyTorch twin of bench/cuda/attention_bench.cu: scaled_dot_product_attention, eager, on tensors [n, length, heads,
width], bfloat16 and float16; forward, and the gradients of q, k and v. Prints medians of event times with a cold cache,
operations counted as there.

    python bench/peers/attention_torch.py [--backward]
"""

import argparse

import torch
import torch.nn.functional as F

from timing import device_median_ms

SHAPES = [(n, 8, queries, keys, width)
          for n in (2, 20)
          for queries, width in ((4096, 40), (1024, 80), (256, 160), (64, 160))
          for keys in (queries, 77)]
SHAPES += [(n, heads, queries, keys, 64)
           for n in (2, 8)
           for heads, queries in ((10, 4096), (20, 1024))
           for keys in (queries, 77)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backward", action="store_true", help="also time the gradients")
    options = parser.parse_args()
    print(torch.__version__, torch.cuda.get_device_name())
    flush = torch.empty(64 << 20, dtype=torch.float32, device="cuda")
    for dtype in (torch.bfloat16, torch.float16):
        for n, heads, queries, keys, width in SHAPES:
            q, k, v = (torch.randn(n, length, heads, width, device="cuda", dtype=dtype).transpose(1, 2)
                       for length in (queries, keys, keys))
            operations = 2.0 * n * heads * queries * keys * width
            name = f"{str(dtype)[6:]}/n:{n}/heads:{heads}/queries:{queries}/keys:{keys}/width:{width}"

            def report(which, products, us):
                print(f"attention_{which}/{name:58s} {us:9.1f} us  {products * operations / us * 1e-6:6.1f} TFLOP/s", flush=True)

            with torch.no_grad():
                report("forward", 2, 1e3 * device_median_ms(lambda: F.scaled_dot_product_attention(q, k, v), flush=flush))
            if not options.backward:
                continue
            for x in (q, k, v):
                x.requires_grad_()
            out = F.scaled_dot_product_attention(q, k, v)
            dout = torch.randn_like(out)
            report("backward", 5, 1e3 * device_median_ms(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True), flush=flush))


if __name__ == "__main__":
    main()
