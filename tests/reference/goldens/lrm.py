# SPDX-License-Identifier: MIT
"""The latent reward model on the small UNets: multi-scale features, guided mid feature, scores, losses, gradients."""

import copy

import torch
import torch.nn.functional as functional

from . import unets
from .common import grad_stats, randn, save, truth_of

GUIDANCE = 7.5
PROJECTION = {"sd15": 10, "sdxl": 16}
TEXT = {"sd15": 14, "sdxl": 16}
PAIRS = 3


def inputs_of(family):
    """Rows of `latents`: image 0 of every pair, then image 1 of every pair; one timestep per pair."""
    height, width = unets.SIZES[family]
    config = unets.CONFIGS[family]
    seed = unets.SEEDS[family] + 60
    stages = config["block_out_channels"] + config["block_out_channels"][-1:]
    inputs = {"latents": randn(seed, 2 * PAIRS, 4, height, width),
              "timestep": torch.tensor([1, 451, 901]),
              "context": randn(seed + 1, PAIRS, unets.TOKENS, config["cross_attention_dim"]),
              "context_uncond": randn(seed + 2, 1, unets.TOKENS, config["cross_attention_dim"]),
              "text": randn(seed + 3, PAIRS, TEXT[family]),
              "visual_projection": randn(seed + 4, PROJECTION[family], sum(stages), scale=0.05),
              "logit_scale": torch.tensor([2.6592]),
              "labels": torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]),
              "num_examples": torch.tensor([1.0, 4.0, 2.0])}
    if family == "sdxl":
        inputs["text_uncond"] = randn(seed + 5, 1, TEXT[family])
        inputs["time_ids"] = torch.tensor([1024.0, 1024, 0, 0, 1024, 1024])
    else:
        inputs["text_projection"] = randn(seed + 6, PROJECTION[family], TEXT[family], scale=0.2)
    return inputs


def features(model, x, stage_indices):
    """Rows [image 0 c, image 1 c, image 0 u, image 1 u], pooled: (stages of the c rows, mid c, mid u)."""
    rows = 2 * PAIRS
    context = torch.cat([x["context"].repeat(2, 1, 1), x["context_uncond"].expand(rows, -1, -1)])
    added = {}
    if "time_ids" in x:
        added["text_embeds"] = torch.cat([x["text"].repeat(2, 1), x["text_uncond"].expand(rows, -1)])
        added["time_ids"] = x["time_ids"].expand(2 * rows, -1)
    _, down, mid = unets.forward(model, x["latents"].repeat(2, 1, 1, 1), x["timestep"].repeat(4), context, **added)
    stages = [down[index][:rows].mean(dim=(2, 3)) for index in stage_indices]
    pooled_mid = mid.mean(dim=(2, 3))
    return stages, pooled_mid[:rows], pooled_mid[rows:]


def losses(x, visual, text):
    """(scores, pair loss of each pair, batch loss of each pair); the caller weights by 1/num_examples."""
    visual = visual / visual.norm(dim=-1, keepdim=True)
    text = text / text.norm(dim=-1, keepdim=True)
    scale = x["logit_scale"].exp()
    label0, label1 = x["labels"].unbind(dim=1)
    tie = (label0 == label1).to(visual.dtype) * torch.tensor(0.5, dtype=visual.dtype).log()
    scores = scale * (visual * text.repeat(2, 1)).sum(dim=-1)
    z0, z1 = scores[:PAIRS], scores[PAIRS:]
    total = torch.logsumexp(torch.stack([z0, z1]), dim=0)
    pair = label0 * (total - z0) + label1 * (total - z1) + tie

    logits = scale * visual @ text.T  # [2 pairs, pairs]: images by texts
    index = torch.arange(PAIRS)
    image = (label0 * functional.cross_entropy(logits[:PAIRS], index, reduction="none")
             + label1 * functional.cross_entropy(logits[PAIRS:], index, reduction="none"))
    word = (label0 * functional.cross_entropy(logits.T, index, reduction="none")
            + label1 * functional.cross_entropy(logits.T, index + PAIRS, reduction="none") + tie)
    return scores, pair, (image + word) / 2


def make_lrm(directory, family):
    model, _ = unets.make(family)
    inputs = inputs_of(family)
    stage_indices = [2, 5, 8, 11] if family == "sd15" else [2, 5, 8]
    head = [key for key in ("visual_projection", "text_projection", "logit_scale") if key in inputs]
    wanted = head + ["latents", "context", "context_uncond", "text"] + (["text_uncond"] if family == "sdxl" else [])
    keys, stats = [], {}

    def compute(dtype):
        unet = copy.deepcopy(model).to(dtype)
        x = unets.convert(inputs, dtype, wanted)
        stages, mid_c, mid_u = features(unet, x, stage_indices)
        mid = mid_u + GUIDANCE * (mid_c - mid_u)
        joined = torch.cat([*stages, mid], dim=-1)
        visual = joined @ x["visual_projection"].T
        text = x["text"] @ x["text_projection"].T if "text_projection" in x else x["text"]
        scores, pair, batch = losses(x, visual, text)
        weight = (1 / x["num_examples"]) / (1 / x["num_examples"]).sum()
        loss_pair, loss_batch = (weight * pair).sum(), (weight * batch).sum()
        batch_grads = torch.autograd.grad(loss_batch, [x[key] for key in head], retain_graph=True)
        loss_pair.backward()
        parameters = [(name, p) for name, p in sorted(unet.named_parameters()) if p.grad is not None]
        keys[:] = [name for name, _ in parameters]
        stats[dtype] = grad_stats(parameters)
        return {**{f"out/pooled/stage{i + 1}": value for i, value in enumerate(stages)},
                "out/pooled/mid_cond": mid_c, "out/pooled/mid_uncond": mid_u, "out/features": joined,
                "out/visual": visual, "out/text": text, "out/scores": scores,
                "out/pair_losses": pair, "out/batch_losses": batch,
                "out/loss_pair": loss_pair.reshape(1), "out/loss_batch": loss_batch.reshape(1),
                **{"grad/in/" + key: x[key].grad for key in wanted},
                **{"grad_batch/in/" + key: value for key, value in zip(head, batch_grads)},
                **{"grad/" + name: p.grad for name, p in parameters if unets.GRAD_SUBSET.search(name)}}

    tensors, error = truth_of(compute)
    tensors.update({"in/" + key: value for key, value in inputs.items()})
    tensors["grad_stats"] = stats[torch.float64]
    save(directory / f"lrm_{family}.safetensors", tensors, fp32_error=error, guidance=str(GUIDANCE),
         grad_stats_keys=keys, base=f"unet_{family}.safetensors: weights/",
         notes="rows of latents: image 0 of all pairs, then image 1; grad/ is of out/loss_pair, grad_batch/ of "
               "out/loss_batch, each weighted by 1/num_examples normalised to sum 1")
