# SPDX-License-Identifier: MIT
"""Small UNet2DConditionModels of the three families: outputs, down-path residuals, gradients, and a LoRA on one."""

import copy
import json
import re
import tempfile
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file

from .common import grad_stats, randn, randomise, save, truth_of, weights_of

COMMON = {"in_channels": 4, "out_channels": 4, "norm_num_groups": 4, "act_fn": "silu", "center_input_sample": False,
          "flip_sin_to_cos": True, "freq_shift": 0, "downsample_padding": 1, "mid_block_scale_factor": 1,
          "norm_eps": 1e-5}
CROSS4 = {"down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
          "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3}

CONFIGS = {
    # Heads 2 everywhere: `attention_head_dim` as an int is, by diffusers' misnomer, the number of heads.
    "sd15": {**COMMON, **CROSS4, "sample_size": 16, "block_out_channels": [8, 16, 16, 16], "layers_per_block": 2,
             "attention_head_dim": 2, "cross_attention_dim": 12},
    "sd21": {**COMMON, **CROSS4, "sample_size": 16, "block_out_channels": [8, 16, 16, 24], "layers_per_block": 1,
             "attention_head_dim": [2, 4, 4, 6], "cross_attention_dim": 16, "use_linear_projection": True},
    "sdxl": {**COMMON, "sample_size": 16, "block_out_channels": [8, 16, 16], "layers_per_block": 2,
             "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
             "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
             "attention_head_dim": [2, 4, 4], "cross_attention_dim": 20, "use_linear_projection": True,
             "transformer_layers_per_block": [1, 1, 2], "addition_embed_type": "text_time",
             "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 6 * 8 + 16},
}
SIZES = {"sd15": (8, 24), "sd21": (24, 16), "sdxl": (12, 8)}  # latent height and width
SEEDS = {"sd15": 1500, "sd21": 2100, "sdxl": 1000}
TOKENS = 7
LORA_TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]

# One of every kind of layer, from every level of the network; the other gradients are covered by `grad_stats`.
GRAD_SUBSET = re.compile(
    r"^(conv_in|time_embedding|add_embedding|conv_norm_out|conv_out)\."
    r"|^down_blocks\.1\.(resnets\.0|attentions\.0|downsamplers)\."
    r"|^mid_block\.resnets\.1\.|^mid_block\.attentions\.0\.(norm|proj|transformer_blocks\.0\.(attn|norm))"
    r"|^up_blocks\.1\.resnets\.1\.(conv_shortcut|norm1|time_emb_proj)|^up_blocks\.1\.upsamplers\."
    r"|(down|up)_blocks\..*to_q\.weight$")


def make(family):
    """The family's small UNet with random float32 weights, and its config as JSON text."""
    model = randomise(UNet2DConditionModel(**CONFIGS[family]), SEEDS[family])
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    config["_class_name"] = "UNet2DConditionModel"
    return model, json.dumps(dict(sorted(config.items())))


def inputs_of(family, rows=2, seed=0):
    """Named inputs of a forward pass, keys without their `in/` prefix."""
    height, width = SIZES[family]
    seed += SEEDS[family] + 10
    config = CONFIGS[family]
    inputs = {"sample": randn(seed, rows, 4, height, width),
              "timestep": torch.tensor([951, 51, 501, 1][:rows]),
              "context": randn(seed + 1, rows, TOKENS, config["cross_attention_dim"]),
              "cotangent": randn(seed + 2, rows, 4, height, width)}
    if family == "sdxl":
        inputs["text_embeds"] = randn(seed + 3, rows, 16)
        inputs["time_ids"] = torch.tensor([[1024., 1024, 0, 0, 1024, 1024], [768., 1280, 16, 32, 768, 1280]])[:rows]
    return inputs


def forward(model, sample, timestep, context, text_embeds=None, time_ids=None):
    """Runs the model; returns (output, down-path residuals including conv_in's, mid feature map), all in the graph."""
    residuals, mid = [], []
    hooks = [model.conv_in.register_forward_hook(lambda _, __, out: residuals.append(out)),
             model.mid_block.register_forward_hook(lambda _, __, out: mid.append(out))]
    hooks += [block.register_forward_hook(lambda _, __, out: residuals.extend(out[1])) for block in model.down_blocks]
    added = None if text_embeds is None else {"text_embeds": text_embeds, "time_ids": time_ids}
    try:
        out = model(sample, timestep, encoder_hidden_states=context, added_cond_kwargs=added, return_dict=False)[0]
    finally:
        for hook in hooks:
            hook.remove()
    return out, residuals, mid[0]


def convert(inputs, dtype, with_grad=()):
    result = {key: value.clone().to(dtype) if value.is_floating_point() else value for key, value in inputs.items()}
    for key in with_grad:
        result[key].requires_grad_()
    return result


def run(model, inputs, dtype, named_parameters, key_of=lambda name: name, subset=None, residuals=True):
    """Forward, L = sum(out * cotangent), backward. `named_parameters(model)` lists what wants gradients."""
    model = copy.deepcopy(model).to(dtype)
    grad_inputs = [key for key in ("sample", "context", "text_embeds") if key in inputs]
    x = convert(inputs, dtype, grad_inputs)
    cotangent = x.pop("cotangent")
    out, down, mid = forward(model, **x)
    (out * cotangent).sum().backward()
    result = {"out/sample": out, "out/mid": mid}
    if residuals:
        result.update({f"out/down/{index}": value for index, value in enumerate(down)})
    result.update({"grad/in/" + key: x[key].grad for key in grad_inputs})
    parameters = named_parameters(model)
    result.update({"grad/" + key_of(name): p.grad for name, p in parameters if subset is None or subset.search(name)})
    return result, grad_stats(parameters)


def make_unet(directory, family):
    model, config = make(family)
    inputs = inputs_of(family)
    stats = {}

    def compute(dtype):
        result, stats[dtype] = run(model, inputs, dtype, lambda m: sorted(m.named_parameters()), subset=GRAD_SUBSET)
        return result

    tensors, error = truth_of(compute)
    tensors.update(weights_of(model))
    tensors.update({"in/" + key: value for key, value in inputs.items()})
    tensors["grad_stats"] = stats[torch.float64]
    save(directory / f"unet_{family}.safetensors", tensors, config=config, fp32_error=error,
         grad_stats_keys=sorted(name for name, _ in model.named_parameters()))


def add_lora(model, rank, scale_b, seed):
    """Adds a peft LoRA to the attention projections, A ~ N(0, 1/rank^2), B ~ N(0, scale_b^2) instead of zero."""
    model = copy.deepcopy(model)
    model.requires_grad_(False)
    model.add_adapter(LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=LORA_TARGETS))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                scale = 1.0 / rank if "lora_A" in name else scale_b
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def lora_parameters(model):
    return [(name, p) for name, p in sorted(model.named_parameters()) if "lora_" in name]


def lora_key(name):
    """peft parameter name -> key in a diffusers LoRA file."""
    return "unet." + name.replace(".default.weight", ".weight")


def lora_weights(model):
    """The adapter under the keys of the file that diffusers itself writes."""
    layers = get_peft_model_state_dict(model)
    with tempfile.TemporaryDirectory() as folder:
        StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=layers)
        written = load_file(str(Path(folder) / "pytorch_lora_weights.safetensors"))
    assert sorted(written) == sorted(lora_key(name) for name, _ in lora_parameters(model))
    return {"weights/" + key: value.float() for key, value in written.items()}


def make_lora(directory):
    base, _ = make("sd15")
    model = add_lora(base, rank=4, scale_b=0.2, seed=1540)
    inputs = inputs_of("sd15")

    def compute(dtype):
        return run(model, inputs, dtype, lora_parameters, lora_key, residuals=False)[0]

    tensors, error = truth_of(compute)
    tensors.update(lora_weights(model))
    save(directory / "unet_sd15_lora.safetensors", tensors, fp32_error=error, rank="4", alpha="4",
         base="unet_sd15.safetensors: weights/ and in/")
