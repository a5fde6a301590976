# SPDX-License-Identifier: MIT
"""Single-file checkpoints: small pipelines of three families in ldm layout, and the names of the real ones.

The names are diffusers' own: its converters must turn what is written here back into the pipelines' state dicts.
"""

import gzip
import re
import zlib

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders import single_file_utils as ldm
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from .common import save

CROSS4 = {"down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
          "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3}
CROSS_XL = {"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "addition_embed_type": "text_time", "use_linear_projection": True}


def text(layers, width, hidden, heads, projected=False, **more):
    config = {"num_hidden_layers": layers, "hidden_size": width, "intermediate_size": hidden,
              "num_attention_heads": heads, "projection_dim": width, **more}
    return (CLIPTextModelWithProjection if projected else CLIPTextModel), config


def vae(levels, channels, layers, **more):
    return {"down_block_types": ["DownEncoderBlock2D"] * levels, "up_block_types": ["UpDecoderBlock2D"] * levels,
            "block_out_channels": channels, "layers_per_block": layers, "latent_channels": 4, **more}


SMALL_TEXT = {"vocab_size": 12, "max_position_embeddings": 5}
# Widths as in tests/io/single_file_test.cpp.
SMALL = {
    "sd15": {"unet": {**CROSS4, "block_out_channels": [4, 8, 8, 8], "layers_per_block": 2, "attention_head_dim": 2,
                      "cross_attention_dim": 6, "norm_num_groups": 2},
             "vae": vae(3, [4, 8, 8], 2, norm_num_groups=2),
             "text_encoders": [text(2, 6, 10, 2, hidden_act="quick_gelu", **SMALL_TEXT)]},
    "sd21": {"unet": {**CROSS4, "block_out_channels": [4, 8, 8, 12], "layers_per_block": 1, "norm_num_groups": 2,
                      "attention_head_dim": [1, 2, 2, 3], "cross_attention_dim": 4, "use_linear_projection": True},
             "vae": vae(2, [4, 8], 1, norm_num_groups=2),
             "text_encoders": [text(23, 4, 6, 1, hidden_act="gelu", **SMALL_TEXT)]},
    "sdxl": {"unet": {**CROSS_XL, "block_out_channels": [4, 8, 8], "layers_per_block": 2, "norm_num_groups": 2,
                      "attention_head_dim": [1, 2, 2], "cross_attention_dim": 14, "addition_time_embed_dim": 3,
                      "transformer_layers_per_block": [1, 1, 2], "projection_class_embeddings_input_dim": 6 * 3 + 8},
             "vae": vae(2, [4, 4], 1, norm_num_groups=2),
             "text_encoders": [text(2, 6, 10, 2, hidden_act="quick_gelu", **SMALL_TEXT),
                               text(3, 8, 10, 2, projected=True, hidden_act="gelu", **SMALL_TEXT)]},
}
REAL_VAE = vae(4, [128, 256, 512, 512], 2)
REAL = {
    "sd15": {"unet": {"cross_attention_dim": 768}, "vae": REAL_VAE, "text_encoders": [text(12, 768, 3072, 12)]},
    "sd21": {"unet": {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
                      "use_linear_projection": True},
             "vae": REAL_VAE, "text_encoders": [text(23, 1024, 4096, 16)]},
    "sdxl": {"unet": {**CROSS_XL, "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20],
                      "transformer_layers_per_block": [1, 2, 10], "cross_attention_dim": 2048,
                      "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816},
             "vae": REAL_VAE, "text_encoders": [text(12, 768, 3072, 12), text(32, 1280, 5120, 20, projected=True)]},
}
TEXT_PREFIXES = {"sd15": ["cond_stage_model.transformer."], "sd21": ["cond_stage_model.model."],
                 "sdxl": ["conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."]}


def value(name, shape):
    """What every weight is filled with: integers that half holds exactly and that differ between weights."""
    count = torch.Size(shape).numel()
    start = zlib.crc32(name.encode())
    return ((torch.arange(count, dtype=torch.int64) + start) % 509 - 254).reshape(shape).to(torch.float16)


def models_of(family, configs, device="cpu"):
    """{component: (module, config)}"""
    with torch.device(device):
        parts = {"unet": UNet2DConditionModel(**configs[family]["unet"]),
                 "vae": AutoencoderKL(**configs[family]["vae"])}
        for index, (kind, config) in enumerate(configs[family]["text_encoders"]):
            parts["text_encoder" + ("_2" if index else "")] = kind(CLIPTextConfig(**config))
    return parts


def state_of(component, module):
    """The module's state dict, on the CPU filled with `value`."""
    return {name: tensor.half() if tensor.is_meta else value(f"{component}.{name}", tensor.shape)
            for name, tensor in module.state_dict().items() if tensor.is_floating_point()}


def replaced(name, pairs):
    for new, old in pairs:
        name = name.replace(new, old)
    return name


RESNET = [("norm1", "in_layers.0"), ("conv1", "in_layers.2"), ("time_emb_proj", "emb_layers.1"),
          ("norm2", "out_layers.0"), ("conv2", "out_layers.3"), ("conv_shortcut", "skip_connection")]


def ldm_unet_name(name, config, names):
    layers = config["layers_per_block"]
    for group in ("layers", "addition_embed_type"):
        if name in (known := ldm.DIFFUSERS_TO_LDM_MAPPING["unet"][group]):
            return known[name]
    if found := re.match(r"down_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        level, kind, layer, rest = int(found[1]), found[2], int(found[3]), found[4]
        row = 1 + level * (layers + 1) + layer
        return f"input_blocks.{row}." + ("0." + replaced(rest, RESNET) if kind == "resnets" else "1." + rest)
    if found := re.match(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{(int(found[1]) + 1) * (layers + 1)}.0.op.{found[2]}"
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", name):
        return (f"middle_block.{2 * int(found[2])}." + replaced(found[3], RESNET) if found[1] == "resnets"
                else f"middle_block.1.{found[3]}")
    if found := re.match(r"up_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.(.*)", name):
        row = int(found[1]) * (layers + 1) + int(found[3])
        rest = "0." + replaced(found[4], RESNET) if found[2] == "resnets" else "1." + found[4]
        return f"output_blocks.{row}.{rest}"
    found = re.match(r"up_blocks\.(\d+)\.upsamplers\.0\.(.*)", name)
    attention = any(other.startswith(f"up_blocks.{found[1]}.attentions.") for other in names)
    return f"output_blocks.{int(found[1]) * (layers + 1) + layers}.{2 if attention else 1}.{found[2]}"


def ldm_vae_name(name, levels):
    if name in ldm.DIFFUSERS_TO_LDM_MAPPING["vae"]:
        return ldm.DIFFUSERS_TO_LDM_MAPPING["vae"][name]
    name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
    return replaced(name, [("down_blocks.", "down."), (".resnets.", ".block."), ("conv_shortcut", "nin_shortcut"),
                           ("downsamplers.0.", "downsample."), ("upsamplers.0.", "upsample."),
                           ("mid_block.block.0", "mid.block_1"), ("mid_block.block.1", "mid.block_2"),
                           ("mid_block.attentions.0", "mid.attn_1"), ("group_norm", "norm"), ("to_q", "q"),
                           ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out")])


def open_clip_name(name):
    known = ldm.DIFFUSERS_TO_LDM_MAPPING["openclip"]["layers"]
    if name in known:
        return known[name]
    return replaced(name, [("text_model.encoder.layers.", "transformer.resblocks."), ("layer_norm", "ln_"),
                           (".fc1.", ".c_fc."), (".fc2.", ".c_proj."), ("self_attn", "attn")])


def single_file_of(family, parts):
    """(checkpoint in ldm layout, [(component, diffusers name, ldm name)])"""
    checkpoint, names = {}, []
    for component, module in parts.items():
        state = state_of(component, module)
        for name, tensor in state.items():
            if component == "unet":
                stored = "model.diffusion_model." + ldm_unet_name(name, module.config, state)
            elif component == "vae":
                stored = "first_stage_model." + ldm_vae_name(name, len(module.config.block_out_channels))
                if "attn_1" in stored and tensor.ndim == 2:
                    tensor = tensor[:, :, None, None]
            else:
                prefix = TEXT_PREFIXES[family][component == "text_encoder_2"]
                open_clip = prefix.endswith("model.")
                stored = prefix + (open_clip_name(name) if open_clip else name)
                if stored.endswith("text_projection"):
                    tensor = tensor.T
                elif open_clip and (found := re.search(r"attn\.([qkv])_proj\.(weight|bias)$", stored)):
                    stored = stored[:found.start()] + f"attn.in_proj_{found[2]}"
                    parts_of_it = [state[name.replace(f"{found[1]}_proj", f"{part}_proj")] for part in "qkv"]
                    tensor = torch.cat(parts_of_it)
            names.append((component, name, stored))
            checkpoint[stored] = tensor
    return checkpoint, names


def check_component(family, checkpoint, component, module, expected):
    """diffusers' converter must give back exactly this state dict."""
    if component == "unet":
        converted = ldm.convert_ldm_unet_checkpoint(dict(checkpoint), config=dict(module.config))
    elif component == "vae":
        converted = ldm.convert_ldm_vae_checkpoint(dict(checkpoint), config=dict(module.config))
    elif component == "text_encoder" and family != "sd21":
        converted = ldm.convert_ldm_clip_checkpoint(dict(checkpoint))
    else:
        prefix = TEXT_PREFIXES[family][component == "text_encoder_2"]
        converted = ldm.convert_open_clip_checkpoint(module, dict(checkpoint), prefix=prefix)
    for weights in (converted, expected):
        weights.pop("text_model.embeddings.position_ids", None)  # no weight; transformers passes over it
    assert set(converted) == set(expected), (component, set(converted) ^ set(expected))
    for name, tensor in expected.items():
        assert converted[name].shape == tensor.shape, (component, name)
        assert tensor.is_meta or torch.equal(converted[name], tensor), (component, name)


def check_with_diffusers(family, checkpoint, parts):
    for component, module in parts.items():
        check_component(family, checkpoint, component, module, state_of(component, module))


def make_single_file(directory, family):
    """A small pipeline, weights filled by `value`, and what real files have besides: averaged weights, tables, the
    last text layer of SD2."""
    parts = models_of(family, SMALL)
    checkpoint, _ = single_file_of(family, parts)
    check_with_diffusers(family, checkpoint, parts)
    extra = {"betas": torch.linspace(0.1, 0.2, 4), "model_ema.decay": torch.tensor(0.5),
             "model_ema.diffusion_modelout2bias": torch.ones(4)}
    if family == "sd15":
        extra["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(5)[None]
    if family == "sd21":
        last = "cond_stage_model.model.transformer.resblocks.22."
        extra.update({key.replace(".22.", ".23."): checkpoint[key] for key in checkpoint if key.startswith(last)})
        extra["cond_stage_model.model.text_projection"] = torch.ones(4, 4)
        extra["cond_stage_model.model.logit_scale"] = torch.tensor(4.6)
    if family == "sdxl":
        extra["conditioner.embedders.1.model.logit_scale"] = torch.tensor(4.6)
    checkpoint.update(extra)
    check_with_diffusers(family, checkpoint, parts)
    save(directory / f"single_file_{family}.safetensors", checkpoint)


def make_single_file_names(directory):
    """Lines `family component diffusers-name ldm-name` of the published architectures, from modules without memory."""
    lines = []
    for family in REAL:
        parts = models_of(family, REAL, "meta")
        checkpoint, names = single_file_of(family, parts)
        check_with_diffusers(family, checkpoint, parts)
        lines += [f"{family} {component} {name} {stored}\n" for component, name, stored in names]
    packed = gzip.compress("".join(sorted(lines)).encode(), mtime=0)
    (directory / "single_file_names.txt.gz").write_bytes(packed)
    print(f"single_file_names.txt.gz: {len(lines)} weights, {len(packed) / 1e3:.1f} kB")
