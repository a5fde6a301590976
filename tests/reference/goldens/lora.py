# SPDX-License-Identifier: MIT
"""LoRA files in kohya's spelling, how diffusers' own converter reads them, and what its models then compute;
singular values for the extraction of a LoRA."""

import copy
import tempfile
import zlib

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.utils.state_dict_utils import (convert_state_dict_to_diffusers, convert_state_dict_to_peft,
                                              convert_unet_state_dict_to_peft)
from safetensors.torch import save_file

from . import clip_text, unets
from .common import randn, randomise, save, truth_of

# One of every kind of module that trainers adapt, from every level of the network. Rank and alpha differ between
# attention and convolutions. (diffusers loses per-module alphas of kohya's attention layers and text encoders, so they
# have one alpha there.)
ATTENTION = ["attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q", "attn2.to_k", "attn2.to_v",
             "attn2.to_out.0"]
TRANSFORMERS = ["down_blocks.1.attentions.0", "mid_block.attentions.0", "up_blocks.2.attentions.2"]
UNET_MODULES = {(4, 1.0): [f"{t}.transformer_blocks.0.{name}" for t in TRANSFORMERS for name in ATTENTION],
                (3, 1.0): [f"{TRANSFORMERS[1]}.transformer_blocks.0.{name}" for name in ("ff.net.0.proj", "ff.net.2")]
                + [f"{TRANSFORMERS[0]}.{name}" for name in ("proj_in", "proj_out")],
                (2, 4.0): ["down_blocks.1.resnets.0.conv1", "down_blocks.1.resnets.0.conv_shortcut",
                           "down_blocks.1.resnets.0.time_emb_proj", "down_blocks.0.downsamplers.0.conv",
                           "mid_block.resnets.1.conv2", "up_blocks.0.upsamplers.0.conv"]}
TEXT_MODULES = [f"text_model.encoder.layers.{layer}.{name}" for layer in (0, 2) for name in
                ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "mlp.fc1",
                 "mlp.fc2")]

# ldm's name of a module and diffusers' name, for the small SDXL UNet.
SDXL_MODULES = {
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_2_0_out_layers_3": "down_blocks.0.resnets.1.conv2",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_4_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks_4_0_emb_layers_1": "down_blocks.1.resnets.0.time_emb_proj",
    "input_blocks_4_1_proj_in": "down_blocks.1.attentions.0.proj_in",
    "input_blocks_8_1_transformer_blocks_1_attn2_to_k": "down_blocks.2.attentions.1.transformer_blocks.1.attn2.to_k",
    "middle_block_0_in_layers_2": "mid_block.resnets.0.conv1",
    "middle_block_1_transformer_blocks_0_ff_net_0_proj": "mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "middle_block_2_out_layers_3": "mid_block.resnets.1.conv2",
    "output_blocks_0_1_transformer_blocks_1_attn1_to_out_0":
        "up_blocks.0.attentions.0.transformer_blocks.1.attn1.to_out.0",
    "output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_5_1_proj_out": "up_blocks.1.attentions.2.proj_out",
    "output_blocks_8_0_skip_connection": "up_blocks.2.resnets.2.conv_shortcut",
}


def text_encoder():
    kind, config = clip_text.MODELS["quick"]
    return randomise(kind(clip_text.CLIPTextConfig(**config, attn_implementation="sdpa")), 4800)


def adapter(module, rank, key):
    """down and up of a Linear or Conv2d, as kohya's tools shape them."""
    weight = module.weight
    seed = zlib.crc32(key.encode()) % 100000
    kernel = weight.shape[2:]
    down = randn(seed, rank, weight.shape[1], *kernel, scale=(weight.numel() / weight.shape[0]) ** -0.5)
    return down, randn(seed + 1, weight.shape[0], rank, *[1 for _ in kernel], scale=0.3)


def kohya(model, prefix, modules, rank, alpha, spelled=None):
    tensors, named = {}, dict(model.named_modules())
    for path in modules:
        key = prefix + (spelled or {}).get(path, path.replace(".", "_"))
        down, up = adapter(named[path], rank, key)
        tensors.update({f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up,
                        f"{key}.alpha": torch.tensor(float(alpha))})
    return tensors


def to_peft(state_dict):
    """diffusers' intermediate names -> the ones of the files that it writes itself."""
    parts = {part: {k.removeprefix(part + "."): v for k, v in state_dict.items() if k.startswith(part + ".")}
             for part in ("unet", "text_encoder", "text_encoder_2")}
    result = {"unet." + k: v for k, v in convert_unet_state_dict_to_peft(parts["unet"]).items()}
    for part in ("text_encoder", "text_encoder_2"):
        if parts[part]:
            plain = convert_state_dict_to_peft(convert_state_dict_to_diffusers(parts[part]))
            result.update({f"{part}.{k}": v for k, v in plain.items()})
    assert sum(map(len, parts.values())) == len(state_dict) == len(result)
    return result


def pipeline_of(unet, encoder):
    return StableDiffusionPipeline(
        unet=copy.deepcopy(unet), text_encoder=copy.deepcopy(encoder), vae=None, tokenizer=None, safety_checker=None,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1), feature_extractor=None,
        requires_safety_checker=False)


def make_lora_kohya(directory):
    unet, _ = unets.make("sd15")
    encoder = text_encoder()
    file = kohya(encoder, "lora_te_", TEXT_MODULES, 2, 1.0)
    for (rank, alpha), modules in UNET_MODULES.items():
        file.update(kohya(unet, "lora_unet_", modules, rank, alpha))
    inputs = unets.inputs_of("sd15")
    ids = torch.tensor(clip_text.TOKENS["quick"])
    scales = {}
    fused_weights = ["mid_block.attentions.0.transformer_blocks.0.attn2.to_k", "down_blocks.1.resnets.0.conv1",
                     "down_blocks.1.attentions.0.proj_in"]

    with tempfile.TemporaryDirectory() as folder:
        save_file(file, f"{folder}/lora.safetensors")

        def load():
            pipeline = pipeline_of(unet, encoder)
            pipeline.load_lora_weights(folder, weight_name="lora.safetensors")
            return pipeline

        converted, _ = StableDiffusionPipeline.lora_state_dict(folder, weight_name="lora.safetensors")
        loaded = load()
        for part, model in (("unet", loaded.unet), ("text_encoder", loaded.text_encoder)):
            scales.update({f"{part}.{name}": module.scaling["default_0"] for name, module in model.named_modules()
                           if hasattr(module, "scaling")})

        def compute(dtype):
            x = unets.convert(inputs, dtype)
            x.pop("cotangent")
            with torch.no_grad():
                pipeline = copy.deepcopy(loaded)
                pipeline.unet.to(dtype), pipeline.text_encoder.to(dtype)
                result = {"out/sample": unets.forward(pipeline.unet, **x)[0],
                          "out/last_hidden_state": pipeline.text_encoder(ids).last_hidden_state}
                pipeline.fuse_lora()
                pipeline.unload_lora_weights()
                fused = unets.forward(pipeline.unet, **x)[0]
                assert (fused - result["out/sample"]).abs().max() < (1e-12 if dtype == torch.float64 else 1e-4)
                for part, model in (("unet", pipeline.unet), ("text_encoder", pipeline.text_encoder)):
                    weights = model.state_dict()
                    result.update({f"fused/{part}.{name}.weight": weights[name + ".weight"]
                                   for name in (fused_weights if part == "unet" else TEXT_MODULES[:1])})
            return result

        tensors, error = truth_of(compute)
    tensors.update({"kohya/" + key: value for key, value in file.items()})
    tensors.update({"peft/" + key: value for key, value in to_peft(converted).items()})
    save(directory / "lora_kohya.safetensors", tensors, fp32_error=error, scales=dict(sorted(scales.items())),
         base="unet_sd15.safetensors: weights/ and in/; clip_text.safetensors: quick/")


def make_lora_kohya_sdxl(directory):
    unet, _ = unets.make("sdxl")
    spelled = {path: name for name, path in SDXL_MODULES.items()}
    file = kohya(unet, "lora_unet_", SDXL_MODULES.values(), 1, 0.5, spelled)
    encoder = text_encoder()
    for prefix in ("lora_te1_", "lora_te2_"):
        file.update(kohya(encoder, prefix, TEXT_MODULES[:4], 1, 0.5))
    with tempfile.TemporaryDirectory() as folder:
        save_file(file, f"{folder}/lora.safetensors")
        converted, _ = StableDiffusionXLPipeline.lora_state_dict(folder, weight_name="lora.safetensors",
                                                                 unet_config=unet.config)
    peft = to_peft(converted)
    assert {key.split(".lora_")[0] for key in peft if key.startswith("unet.")} == {f"unet.{path}" for path in
                                                                                   SDXL_MODULES.values()}
    tensors = {"kohya/" + key: value for key, value in file.items()}
    tensors.update({"peft/" + key: value for key, value in peft.items()})
    save(directory / "lora_kohya_sdxl.safetensors", tensors, modules=SDXL_MODULES)


def make_svd(directory):
    tensors = {}
    decay = torch.diag(torch.logspace(0, -4, 96, dtype=torch.float64))
    matrices = {"wide": randn(1, 24, 90), "flat": randn(2, 120, 100),
                "falling": (torch.linalg.qr(randn(3, 130, 96).double())[0] @ decay
                            @ torch.linalg.qr(randn(4, 96, 96).double())[0]).float()}
    for name, matrix in matrices.items():
        tensors["matrix/" + name] = matrix
        tensors["values/" + name] = torch.from_numpy(np.linalg.svd(matrix.double().numpy(), compute_uv=False))
    save(directory / "svd.safetensors", tensors)
