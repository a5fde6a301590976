# SPDX-License-Identifier: MIT
"""Folders of tiny latent reward models as the released ones are laid out, and the scores that they give."""

import copy
from collections import OrderedDict

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from . import unets
from .common import randn, randomise, save, truth_of

GUIDANCE = 7.5
WIDTH = 6
TEXT = {"vocab_size": 48, "hidden_size": 8, "intermediate_size": 16, "max_position_embeddings": 7, "bos_token_id": 46,
        "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "quick_gelu", "eos_token_id": 47,
        "projection_dim": WIDTH, "pad_token_id": 47, "attn_implementation": "sdpa"}
UNETS = {
    "sd15": {**unets.COMMON, "norm_num_groups": 2, "sample_size": 4, "block_out_channels": [4, 8],
             "layers_per_block": 1, "attention_head_dim": 2, "cross_attention_dim": 8,
             "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
             "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"]},
    "sdxl": {**unets.COMMON, "norm_num_groups": 2, "sample_size": 4, "block_out_channels": [4, 8],
             "layers_per_block": 1, "attention_head_dim": [2, 4], "cross_attention_dim": 16,
             "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
             "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "use_linear_projection": True,
             "transformer_layers_per_block": [1, 1], "addition_embed_type": "text_time",
             "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 6 * 4 + WIDTH},
}
STAGES = {"sd15": [1, 3], "sdxl": [1, 3]}  # residuals after the last unit of every level; 0 is conv_in, 2 downsamples


def make_reward_folder(directory, family):
    """SD1.5: safetensors, logit_scale a Python float. SDXL: torch's .bin throughout, logit_scale a tensor."""
    directory = directory / f"lrm_folder_{family}"
    directory.mkdir(parents=True, exist_ok=True)
    seed = 7000 if family == "sd15" else 7500
    sdxl = family == "sdxl"
    parts = {"unet": randomise(UNet2DConditionModel(**UNETS[family]), seed),
             "text_encoder": randomise(CLIPTextModel(CLIPTextConfig(**TEXT)), seed + 1)}
    if sdxl:
        parts["text_encoder_2"] = randomise(
            CLIPTextModelWithProjection(CLIPTextConfig(**{**TEXT, "hidden_act": "gelu"})), seed + 2)
    heads = {"visual_projection": torch.nn.Linear(4 + 8 + 8, WIDTH, bias=False)}
    if not sdxl:
        heads["text_projection"] = torch.nn.Linear(8, WIDTH, bias=False)
    for index, head in enumerate(heads.values()):
        randomise(head, seed + 3 + index)
    # As training leaves them: every weight is a bfloat16.
    for part in [*parts.values(), *heads.values()]:
        part.to(torch.bfloat16)
    for name, part in parts.items():
        part.save_pretrained(directory / name, safe_serialization=not sdxl)
    scale = torch.tensor(2.6592, dtype=torch.bfloat16)
    state = {name: OrderedDict(head.state_dict()) for name, head in heads.items()}
    torch.save({**state, "logit_scale": scale if sdxl else scale.item()}, directory / "state_dict.pt")

    inputs = {"latents": randn(seed + 9, 2, 4, 4, 4), "timestep": torch.tensor([501, 51]),
              "ids": torch.tensor([[46, 5, 9, 31, 47, 47, 47], [46, 1, 2, 3, 4, 5, 47]]),
              "ids_empty": torch.tensor([[46, 47, 47, 47, 47, 47, 47]])}
    if sdxl:
        inputs["time_ids"] = torch.tensor([1024.0, 1024, 0, 0, 1024, 1024])

    def compute(dtype):
        unet, *texts = [copy.deepcopy(part).to(dtype) for part in parts.values()]
        ids = torch.cat([inputs["ids"], inputs["ids_empty"].expand(2, -1)])  # conditional rows first
        outs = [text(ids, output_hidden_states=True) for text in texts]
        added = {}
        if sdxl:
            context = torch.cat([out.hidden_states[-2] for out in outs], dim=-1)
            q = outs[1].text_embeds
            added = {"text_embeds": q, "time_ids": inputs["time_ids"].to(dtype).expand(4, -1)}
        else:
            context = outs[0].last_hidden_state
            q = outs[0].pooler_output @ heads["text_projection"].weight.to(dtype).T
        _, down, mid = unets.forward(unet, inputs["latents"].to(dtype).repeat(2, 1, 1, 1), inputs["timestep"].repeat(2),
                                     context, **added)
        pooled_mid = mid.mean(dim=(2, 3))
        guided = pooled_mid[2:] + GUIDANCE * (pooled_mid[:2] - pooled_mid[2:])
        pooled = torch.cat([*[down[index][:2].mean(dim=(2, 3)) for index in STAGES[family]], guided], dim=-1)
        visual = pooled @ heads["visual_projection"].weight.to(dtype).T
        score = scale.to(dtype).exp() * torch.nn.functional.cosine_similarity(visual, q[:2], eps=0)
        return {"out/visual": visual, "out/scores": score}

    tensors, error = truth_of(compute)
    tensors.update({"in/" + key: value for key, value in inputs.items()})
    save(directory / "expected.safetensors", tensors, fp32_error=error, guidance=str(GUIDANCE),
         notes="scores of the reward model in this folder")
