# SPDX-License-Identifier: MIT
"""Pillow's JPEG decoding and bilinear resizing, as integers."""

import io

import numpy as np
import torch
from PIL import Image

from .common import save

SIZES = [(5, 7), (40, 31), (17, 13), (1, 1), (16, 6)]  # width, height


def make_images(directory):
    random = np.random.default_rng(8100)
    picture = random.integers(0, 256, (13, 17, 3), dtype=np.uint8)
    tensors = {"resize/in": picture}
    for width, height in SIZES:
        # In two calls: Pillow before 13 always begins with the width, later ones with the axis that is cheaper.
        narrow = Image.fromarray(picture).resize((width, picture.shape[0]), Image.Resampling.BILINEAR)
        tensors[f"resize/{width}x{height}"] = np.asarray(narrow.resize((width, height), Image.Resampling.BILINEAR))
    smooth = Image.fromarray(picture).resize((24, 16), Image.Resampling.BICUBIC)
    for name, image in {"colour": smooth, "grey": smooth.convert("L"), "cmyk": smooth.convert("CMYK")}.items():
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=90)
        tensors[f"jpeg/{name}/bytes"] = np.frombuffer(buffer.getvalue(), np.uint8)
        if name != "cmyk":
            tensors[f"jpeg/{name}/pixels"] = np.asarray(Image.open(buffer).convert("RGB"))
    save(directory / "images.safetensors",
         {key: torch.tensor(value.astype(np.int64)) for key, value in tensors.items()})
