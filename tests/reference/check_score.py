# SPDX-License-Identifier: MIT
"""Compares score's numbers with a latent reward model written with diffusers and transformers.

  python tests/reference/check_score.py --score build/release/examples/score/score

Writes a reward model's folder (the tiny world's UNet and text encoder with random projections, state_dict.pt) and
scores PNG pictures and latents with both. Fails where a score differs by more than 2e-3; they reach about 14. With
--family sd15 or sdxl, --model FOLDER and --merges FILE, it does so with models at full size with random weights, which
it writes to the folder first (see full_size.py for the room that they need).
"""

import argparse
import gc
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
from diffusers import DDIMScheduler
from PIL import Image
from transformers import CLIPTokenizer

import full_size

TINY = pathlib.Path(__file__).resolve().parents[2] / "examples" / "tinyworld" / "model"
PROMPTS = ["a red circle to the left of a blue square", "a green triangle"]
TIMESTEPS = [1, 201, 801]
SEED, GUIDANCE = 7, 7.5
WIDTHS = {"tiny": 128, "sd15": 768, "sdxl": 1280}


def make_reward_model(folder, model, family):
    """The folder as the authors release theirs, components as links to the base model's; returns the head's state."""
    folder.mkdir()
    for part in full_size.PARTS["sd15" if family == "tiny" else family]:
        if part != "vae":
            (folder / part).symlink_to(model / part)
    unet = json.loads((model / "unet" / "config.json").read_text())
    channels = sum(unet["block_out_channels"]) + unet["block_out_channels"][-1]
    generator = torch.Generator().manual_seed(1)
    state = {"visual_projection": {"weight": torch.randn(WIDTHS[family], channels, generator=generator)}}
    if family != "sdxl":
        text = json.loads((model / "text_encoder" / "config.json").read_text())
        state["text_projection"] = {"weight": torch.randn(WIDTHS[family], text["hidden_size"], generator=generator)}
    state["logit_scale"] = 2.6592
    torch.save(state, folder / "state_dict.pt")
    return state


def encode_prompts(model, family):
    """States of PROMPTS and of the empty prompt, and their pooled vectors."""
    states, pooled = [], None
    for part in full_size.PARTS["sd15" if family == "tiny" else family]:
        if not part.startswith("text_encoder"):
            continue
        tokenizer = CLIPTokenizer.from_pretrained(model / part.replace("text_encoder", "tokenizer"))
        text = full_size.load(model, part)
        tokens = tokenizer(PROMPTS + [""], padding="max_length", truncation=True, return_tensors="pt").input_ids
        out = text(tokens, output_hidden_states=True)
        states.append(out.hidden_states[-2] if family == "sdxl" else out.last_hidden_state)
        pooled = out.text_embeds if part == "text_encoder_2" else out.pooler_output
    return torch.cat(states, dim=-1), pooled


@torch.no_grad()
def scores_of(model, family, state, latents, resolution):
    """[latents, prompts, timesteps]."""
    scheduler = DDIMScheduler.from_pretrained(model / "scheduler")
    states, pooled = encode_prompts(model, family)
    unet = full_size.load(model, "unet")
    time_ids = torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]], dtype=torch.float32)
    noise = torch.randn(1, *latents.shape[1:], generator=torch.Generator().manual_seed(SEED))
    outputs, mid = [], []
    hooks = [unet.mid_block.register_forward_hook(lambda _, __, out: mid.append(out))]
    hooks += [block.register_forward_hook(lambda _, __, out: outputs.append(out[1])) for block in unet.down_blocks]
    result = np.zeros((len(latents), len(PROMPTS), len(TIMESTEPS)))
    for p in range(len(PROMPTS)):
        query = pooled[p] if family == "sdxl" else pooled[p] @ state["text_projection"]["weight"].T
        for t, timestep in enumerate(TIMESTEPS):
            outputs.clear(), mid.clear()
            noisy = scheduler.add_noise(latents, noise.expand_as(latents), torch.tensor(timestep))
            n = len(latents)
            rows = [p] * n + [-1] * n
            added = {"text_embeds": pooled[rows], "time_ids": time_ids.expand(2 * n, -1)} if family == "sdxl" else None
            unet(noisy.repeat(2, 1, 1, 1), timestep, states[rows], added_cond_kwargs=added)
            # The last layer of every level, before it is made smaller; then the middle, guided.
            levels = [out[unet.config.layers_per_block - 1][:n].mean((2, 3)) for out in outputs]
            middle = mid[0].mean((2, 3))
            features = torch.cat([*levels, middle[n:] + GUIDANCE * (middle[:n] - middle[n:])], dim=1)
            visual = features @ state["visual_projection"]["weight"].T
            cosine = torch.nn.functional.cosine_similarity(visual, query[None], dim=1)
            result[:, p, t] = (cosine * np.exp(state["logit_scale"])).numpy()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--score", type=pathlib.Path, required=True, help="the compiled program")
    parser.add_argument("--family", choices=list(WIDTHS), default="tiny")
    parser.add_argument("--model", type=pathlib.Path, help="folder for models at full size")
    parser.add_argument("--merges", type=pathlib.Path, help="gzipped merges of CLIP's tokenizer, for full size")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    family = arguments.family
    if family != "tiny" and (arguments.model is None or arguments.merges is None):
        parser.error("full size needs --model and --merges")
    model = TINY if family == "tiny" else full_size.write_pipeline(arguments.model.resolve(), family, arguments.merges)
    side = 32 if family == "tiny" else 128
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        state = make_reward_model(root / "lrm", model, family)
        vae = full_size.load(model, "vae")
        random = np.random.default_rng(3)
        pictures = []
        for i, (height, width) in enumerate([(side, side), (side * 3 // 2, side * 5 // 4)]):
            small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            image = small.resize((width, height), Image.Resampling.BICUBIC)
            image.save(root / f"{i}.png")
            for size in ((side, image.height), (side, side)):  # the width first
                image = image.resize(size, Image.Resampling.BILINEAR)
            pictures.append(torch.tensor(np.asarray(image)).permute(2, 0, 1) / 127.5 - 1)
        with torch.no_grad():
            encoded = vae.encode(torch.stack(pictures)).latent_dist.mean * vae.config.scaling_factor
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        del vae
        latents = torch.randn(3, 4, side // factor, side // factor, generator=torch.Generator().manual_seed(5))
        np.save(root / "latents.npy", latents.numpy())
        truth = scores_of(model, family, state, torch.cat([encoded, latents]), side)
        gc.collect()
        command = [arguments.score, "--lrm", root / "lrm", "--pretrained_model_name_or_path", model, "--format", "json",
                   "--timesteps", ",".join(map(str, TIMESTEPS)), "--seed", SEED, "--resolution", side, "--threads",
                   arguments.threads, root / "0.png", root / "1.png", root / "latents.npy"]
        for prompt in PROMPTS:
            command += ["--prompt", prompt]
        printed = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    ours = np.array([entry["scores"] for entry in json.loads(printed)]).reshape(truth.shape)
    worst = np.abs(ours - truth).max()
    print(f"{truth.size} scores from {truth.min():.3f} to {truth.max():.3f}, largest difference {worst:.2e}")
    sys.exit(0 if worst <= 2e-3 else 1)


if __name__ == "__main__":
    main()
