# SPDX-License-Identifier: MIT
"""A small CLIP vision tower (transformers), the same with SPO's time modulation, bicubic preparation, and the scores and
pair loss of a step-aware preference model; and files of such models as PickScore and SPO are released."""

import copy
import math

import torch
import torch.nn.functional as functional
from transformers import (CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig,
                          CLIPVisionModelWithProjection)

from .common import randn, randomise, save, truth_of, weights_of

VISION = {"hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 12,
          "patch_size": 4, "projection_dim": 12, "hidden_act": "gelu", "layer_norm_eps": 1e-5, "attention_dropout": 0.0}
TEXT = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 40, "max_position_embeddings": 11, "bos_token_id": 46,
        "layer_norm_eps": 1e-5, "attention_dropout": 0.0, "projection_dim": 12, "num_hidden_layers": 2,
        "num_attention_heads": 4, "hidden_act": "gelu", "eos_token_id": 2, "pad_token_id": 47}
WIDTH, FEATURES = VISION["hidden_size"], 256
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TOKENS = [[46, 5, 9, 31, 9, 47, 47, 47, 47, 47, 47], [46, 1, 2, 3, 45, 44, 43, 42, 20, 21, 47]]
TIMESTEPS, LABELS, EXAMPLES = [7, 601, 7, 601], [(1.0, 0.0), (0.5, 0.5)], [1.0, 3.0]


def make_modulation(tower, seed):
    """The modulations' weights by name: six parts per layer, two for the pooled token; and the time MLP's."""
    table = {}
    for index in range(VISION["num_hidden_layers"]):
        table[f"vision_model.encoder.layers.{index}.adaLN_modulation.1"] = (WIDTH, 6 * WIDTH)
    table["vision_model.adaLN_modulation.1"] = (WIDTH, 2 * WIDTH)
    table["t_embedder.mlp.0"], table["t_embedder.mlp.2"] = (FEATURES, WIDTH), (WIDTH, WIDTH)
    weights = {}
    for index, (name, (into, out)) in enumerate(table.items()):
        weights[name + ".weight"] = randn(seed + 2 * index, out, into, scale=0.7 / math.sqrt(into))
        weights[name + ".bias"] = randn(seed + 2 * index + 1, out, scale=0.3)
    weights["logit_scale"] = torch.tensor([1.3])
    return {name: torch.nn.Parameter(value) for name, value in weights.items()}


def time_features(timesteps, dtype):
    half = FEATURES // 2
    angle = timesteps[:, None].double() * torch.exp(-math.log(10000.0) * torch.arange(half).double() / half)[None, :]
    return torch.cat([angle.cos(), angle.sin()], dim=-1).to(dtype)


def affine(x, weights, name):
    return functional.linear(x, weights[name + ".weight"], weights[name + ".bias"])


def step_aware_features(tower, extra, pixels, timesteps):
    """Image embeddings of a tower whose layers are modulated by time."""
    hidden = functional.silu(affine(time_features(timesteps, pixels.dtype), extra, "t_embedder.mlp.0"))
    time = functional.silu(affine(hidden, extra, "t_embedder.mlp.2"))
    vision = tower.vision_model
    x = vision.pre_layrnorm(vision.embeddings(pixels))
    for index, layer in enumerate(vision.encoder.layers):
        parts = affine(time, extra, f"vision_model.encoder.layers.{index}.adaLN_modulation.1")[:, None, :].chunk(6, -1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = parts
        attended, _ = layer.self_attn(layer.layer_norm1(x) * (1 + scale_a) + shift_a, None, None)
        x = x + attended * gate_a
        x = x + layer.mlp(layer.layer_norm2(x) * (1 + scale_m) + shift_m) * gate_m
    shift, scale = affine(time, extra, "vision_model.adaLN_modulation.1").chunk(2, -1)
    pooled = vision.post_layernorm(x[:, 0]) * (1 + scale) + shift
    return tower.visual_projection(pooled)


def prepared(images, size):
    small = functional.interpolate(images, size=(size, size), mode="bicubic", align_corners=False)
    column = [torch.tensor(values, dtype=images.dtype)[None, :, None, None] for values in (MEAN, STD)]
    return ((small / 2 + 0.5).clamp(0, 1) - column[0]) / column[1]


def make_clip_vision(directory):
    sdpa = {"attn_implementation": "sdpa"}
    tower = randomise(CLIPVisionModelWithProjection(CLIPVisionConfig(**VISION, **sdpa)), 7800)
    text = randomise(CLIPTextModelWithProjection(CLIPTextConfig(**TEXT, **sdpa)), 7801)
    extra = make_modulation(tower, 7810)
    pixels = randn(7840, 4, 3, VISION["image_size"], VISION["image_size"])
    pictures = randn(7841, 2, 3, 20, 20).clamp(-1.2, 1.2)
    cotangents = {"last_hidden_state": randn(7842, 4, 10, WIDTH), "image_embeds": randn(7843, 4, 12)}
    tokens, timesteps = torch.tensor(TOKENS), torch.tensor(TIMESTEPS)
    labels, examples = torch.tensor(LABELS), torch.tensor(EXAMPLES)

    def compute(dtype):
        double = copy.deepcopy(tower).to(dtype)
        out = double(pixels.to(dtype))
        values = {"last_hidden_state": out.last_hidden_state, "image_embeds": out.image_embeds}
        sum((value * cotangents[key].to(dtype)).sum() for key, value in values.items()).backward()
        result = {"plain/out/" + key: value for key, value in values.items()}
        # post_layernorm and the projection see the class token only; a key bias has no gradient.
        result.update({"plain/grad/" + key: p.grad for key, p in sorted(double.named_parameters())
                       if not key.endswith("k_proj.bias")})

        model, words = copy.deepcopy(tower).to(dtype), copy.deepcopy(text).to(dtype)
        weights = {key: value.detach().to(dtype).requires_grad_() for key, value in extra.items()}
        embeds = step_aware_features(model, weights, pixels.to(dtype), timesteps)
        words_out = words(tokens).text_embeds
        unit = [x / x.norm(dim=-1, keepdim=True) for x in (embeds, words_out)]
        # Rows: the first image of each pair, then the second.
        scores = weights["logit_scale"].exp() * (unit[0].reshape(2, 2, -1) * unit[1][None]).sum(-1)
        logits = scores.T - torch.logsumexp(scores.T, dim=1, keepdim=True)
        each = -(labels.to(dtype) * logits).sum(1) + torch.where(labels[:, 0] == labels[:, 1], math.log(0.5), 0.0)
        share = (1 / examples.to(dtype)) / (1 / examples.to(dtype)).sum()
        loss = (share * each).sum()
        loss.backward()
        result.update({"step/out/embeds": embeds, "step/out/scores": scores, "step/out/loss": loss.reshape(1)})
        for parameters in (model.named_parameters(), words.named_parameters()):
            result.update({"step/grad/" + key: p.grad for key, p in parameters if not key.endswith("k_proj.bias")})
        result.update({"step/grad/" + key: p.grad for key, p in weights.items()})
        result["prepared/out/pixels"] = prepared(pictures.to(dtype), VISION["image_size"])
        return result

    tensors, error = truth_of(compute)
    tensors.update(weights_of(tower))
    tensors.update(weights_of(text))
    tensors.update({"weights/" + key: value.detach() for key, value in extra.items()})
    tensors.update({"in/pixel_values": pixels, "in/pictures": pictures, "in/input_ids": tokens,
                    **{"in/cotangent/" + key: value for key, value in cotangents.items()}})
    save(directory / "clip_vision.safetensors", tensors, fp32_error=error, timesteps=TIMESTEPS)


class StepAware(torch.nn.Module):
    """A CLIPModel with modules for time, as the authors nest them."""

    def __init__(self, clip, extra):
        super().__init__()
        self.model = clip
        vision = clip.vision_model
        for part in (*vision.encoder.layers, vision):
            width = 2 * WIDTH if part is vision else 6 * WIDTH
            part.adaLN_modulation = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Linear(WIDTH, width))
        clip.t_embedder = torch.nn.Module()
        clip.t_embedder.mlp = torch.nn.Sequential(torch.nn.Linear(FEATURES, WIDTH), torch.nn.SiLU(),
                                                  torch.nn.Linear(WIDTH, WIDTH))
        with torch.no_grad():
            for name, parameter in clip.named_parameters():
                if "adaLN_modulation" in name or "t_embedder" in name:
                    parameter.copy_(extra[name])


def make_pickscore(directory):
    """A CLIPModel with random weights as transformers saved PickScore, positions among its weights, and what the authors
    of SPO save of one with time modulation: a torch file of names that begin with "model."."""
    directory = directory / "pickscore"
    directory.mkdir(parents=True, exist_ok=True)
    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12, attn_implementation="sdpa")
    clip = randomise(CLIPModel(config), 7900)
    with torch.no_grad():
        clip.logit_scale.fill_(1.3)
    for embeddings in (clip.text_model.embeddings, clip.vision_model.embeddings):
        embeddings.register_buffer("position_ids", embeddings.position_ids, persistent=True)  # as transformers 4.27
    clip.save_pretrained(directory, safe_serialization=True)
    extra = make_modulation(None, 7910)
    pixels, tokens, timesteps = randn(7940, 2, 3, VISION["image_size"], VISION["image_size"]), torch.tensor(TOKENS), [7, 601]

    def compute(dtype):
        model = copy.deepcopy(clip).to(dtype)
        out = model(input_ids=tokens, pixel_values=pixels.to(dtype))
        weights = {key: value.detach().to(dtype) for key, value in extra.items()}
        embeds = step_aware_features(model, weights, pixels.to(dtype), torch.tensor(timesteps))
        unit = embeds / embeds.norm(dim=-1, keepdim=True)
        return {"clip/scores": out.logits_per_image.diagonal(),
                "step/scores": model.logit_scale.exp() * (unit * out.text_embeds).sum(-1)}

    with torch.no_grad():
        tensors, error = truth_of(compute)
    tensors.update({"in/pixel_values": pixels, "in/input_ids": tokens})
    save(directory / "expected.safetensors", tensors, fp32_error=error, timesteps=timesteps)
    torch.save(StepAware(copy.deepcopy(clip), extra).state_dict(), directory / "step_aware.bin")
