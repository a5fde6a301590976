# SPDX-License-Identifier: MIT
"""Files of torch.save for tests/io/torch_file_test.cpp: what the reader must take, and what it must refuse."""

import collections
import os
import pickle

import torch


class Malicious:
    def __reduce__(self):
        return os.system, ("echo executed",)


class Unknown:
    """A class of the program that saved."""


def counting(dtype, *shape):
    """0, 1, 2 … so that an element's value tells its place."""
    count = 1
    for extent in shape:
        count *= extent
    return torch.arange(count).to(dtype).reshape(shape)


def tensors():
    """Every element type that lpo has, and every way a tensor can lie in its storage."""
    values = {}
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16,
                  torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64):
        values["type." + str(dtype).removeprefix("torch.")] = counting(dtype, 2, 3)
    for dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        values["type." + str(dtype).removeprefix("torch.")] = counting(torch.float32, 2, 3).to(dtype)
    values["type.bool"] = torch.tensor([True, False, True])
    base = counting(torch.float32, 4, 6)
    values["layout.base"] = base
    values["layout.row"] = base[2]  # shares base's storage at an offset
    values["layout.transposed"] = base.t()
    values["layout.column"] = base[:, 1]
    values["layout.block"] = base[1:3, 2:5]
    values["layout.steps"] = base[::2, ::3]
    values["layout.expanded"] = counting(torch.float32, 3, 1).expand(3, 4)
    values["layout.channels_last"] = counting(torch.float16, 2, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    values["layout.unit"] = counting(torch.float32, 1, 5).t()  # [5, 1]: contiguous although its strides look otherwise
    values["layout.zero_d"] = torch.tensor(2.5)
    values["layout.empty"] = torch.zeros(0, 7)
    values["layout.empty_transposed"] = torch.zeros(7, 0).t()
    return values


def state_dict():
    """An OrderedDict with _metadata, as Module.state_dict() returns it."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    with torch.no_grad():
        for index, value in enumerate(module.state_dict().values()):
            value.copy_(counting(value.dtype, *value.shape) + index)
    return module.state_dict()


def nested():
    return {"head": state_dict(), "parameter": torch.nn.Parameter(counting(torch.float32, 2, 2)), "scale": 2.6592,
            "steps": 4000, "wide": -(2**40), "flag": True, "nothing": None, "name": "caf\u00e9",
            "size": torch.Size([1]), "device": torch.device("cpu"), "type": torch.float16,
            "pair": (torch.tensor([1.0]), [torch.tensor(2)]), "groups": {0: {"lr": 1e-5}}}


def make_torch_files(directory):
    directory.mkdir(parents=True, exist_ok=True)
    torch.save(tensors(), directory / "tensors.pt")
    torch.save(nested(), directory / "nested.pt")
    torch.save(nested(), directory / "nested_protocol5.pt", pickle_protocol=5)
    torch.save({"state_dict": state_dict(), "epoch": 3, "optimizer": {"lr": 0.1}}, directory / "training.ckpt")
    torch.save(collections.OrderedDict(), directory / "empty.pt")
    torch.save({"visual_projection": {"weight": counting(torch.bfloat16, 2, 4)}, "logit_scale": torch.tensor(2.5)},
               directory / "zero_d_scale.pt")
    # What is refused:
    torch.save({"weight": torch.zeros(1), "payload": Malicious()}, directory / "malicious.pt")
    Unknown.__module__, Unknown.__qualname__ = "goldens.torch_files", "Unknown"
    torch.save({"model": Unknown()}, directory / "unknown_class.pt")
    torch.save({"c": torch.zeros(2, dtype=torch.complex64)}, directory / "complex.pt")
    torch.save(torch.zeros(2), directory / "bare_tensor.pt")
    torch.save({"a.b": torch.zeros(1), "a": {"b": torch.zeros(1)}}, directory / "same_key.pt")
    torch.save({"s": torch.zeros(2, 2).to_sparse()}, directory / "sparse.pt")
    torch.save({"weight": torch.zeros(2)}, directory / "old_format.pt", _use_new_zipfile_serialization=False)
    (directory / "plain.pkl").write_bytes(pickle.dumps({"weight": [1.0]}, protocol=4))
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), str(directory / "script.pt"))
