# SPDX-License-Identifier: MIT
"""What torch.rand and torch.randn draw on the CPU: several calls on one generator, all floating types."""

import torch

from .common import save

# Low 32 bits alike (42 and 2**32 + 42), more than 31 bits, the largest.
SEEDS = (0, 42, 2**32 + 42, 3_000_000_000, 2**64 - 1)
# Whole blocks of 16, blocks and a tail, fewer than 16 (an odd number leaves a spare value), one block, more than the
# 624 words of the generator's state.
SHAPES = ((1, 4, 4, 3), (5,), (2, 4, 3, 5), (2,), (16,), (17,), (15,), (1, 4, 13, 13))
TYPES = {"float32": torch.float32, "float64": torch.float64, "float16": torch.float16, "bfloat16": torch.bfloat16}


def make_torch_random(directory):
    tensors = {}
    for seed in SEEDS:
        generator = torch.Generator("cpu").manual_seed(seed)
        tensors[f"rand/{seed}"] = torch.rand(20, generator=generator)
        for name, dtype in TYPES.items():
            if dtype != torch.float32 and seed != 42:
                continue
            generator = torch.Generator("cpu").manual_seed(seed)
            drawn = [torch.randn(shape, generator=generator, dtype=dtype).flatten() for shape in SHAPES]
            drawn = torch.cat(drawn)
            tensors[f"randn/{name}/{seed}"] = drawn if dtype in (torch.float32, torch.float64) else drawn.float()
    save(directory / "torch_random.safetensors", tensors,
         notes=f"randn: calls with shapes {SHAPES} on one generator, flattened and joined; drawn with torch's "
               f"{torch.backends.cpu.get_cpu_capability()} code")
