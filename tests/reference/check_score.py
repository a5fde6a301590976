# SPDX-License-Identifier: MIT
"""Compares score's numbers with a latent reward model written with diffusers and transformers.

  python tests/reference/check_score.py --score build/examples/score/score

Writes a reward model's folder (the tiny world's UNet and text encoder with random projections, state_dict.pt) and
scores PNG pictures and latents with both. Fails where a score differs by more than 2e-3; they reach about 14.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

MODEL = pathlib.Path(__file__).resolve().parents[2] / "examples" / "tinyworld" / "model"
PROMPTS = ["a red circle to the left of a blue square", "a green triangle"]
TIMESTEPS = [1, 201, 801]
SEED, GUIDANCE, WIDTH = 7, 7.5, 128


def make_reward_model(folder):
    """The folder as the authors release theirs; returns its parts."""
    unet = UNet2DConditionModel.from_pretrained(MODEL / "unet")
    text = CLIPTextModel.from_pretrained(MODEL / "text_encoder")
    unet.save_pretrained(folder / "unet")
    text.save_pretrained(folder / "text_encoder")
    generator = torch.Generator().manual_seed(1)
    state = {"visual_projection": {"weight": torch.randn(WIDTH, 32 + 64 + 96 + 96, generator=generator)},
             "text_projection": {"weight": torch.randn(WIDTH, 64, generator=generator)}, "logit_scale": 2.6592}
    torch.save(state, folder / "state_dict.pt")
    return unet, text, state


@torch.no_grad()
def scores_of(unet, text, state, latents):
    """[latents, prompts, timesteps]."""
    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer")
    scheduler = DDIMScheduler.from_pretrained(MODEL / "scheduler")
    tokens = tokenizer(PROMPTS + [""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    encoded = text(tokens)
    noise = torch.randn(1, *latents.shape[1:], generator=torch.Generator().manual_seed(SEED))
    outputs, mid = [], []
    hooks = [unet.mid_block.register_forward_hook(lambda _, __, out: mid.append(out))]
    hooks += [block.register_forward_hook(lambda _, __, out: outputs.append(out[1])) for block in unet.down_blocks]
    result = np.zeros((len(latents), len(PROMPTS), len(TIMESTEPS)))
    for p in range(len(PROMPTS)):
        query = encoded.pooler_output[p] @ state["text_projection"]["weight"].T
        for t, timestep in enumerate(TIMESTEPS):
            outputs.clear(), mid.clear()
            noisy = scheduler.add_noise(latents, noise.expand_as(latents), torch.tensor(timestep))
            n = len(latents)
            states = encoded.last_hidden_state
            context = torch.cat([states[[p]].expand(n, -1, -1), states[[-1]].expand(n, -1, -1)])
            unet(noisy.repeat(2, 1, 1, 1), timestep, context)
            # The last layer of every level, before it is made smaller; then the middle, guided.
            levels = [out[unet.config.layers_per_block - 1][:n].mean((2, 3)) for out in outputs]
            middle = mid[0].mean((2, 3))
            features = torch.cat([*levels, middle[n:] + GUIDANCE * (middle[:n] - middle[n:])], dim=1)
            visual = features @ state["visual_projection"]["weight"].T
            cosine = torch.nn.functional.cosine_similarity(visual, query[None], dim=1)
            result[:, p, t] = (cosine * np.exp(state["logit_scale"])).numpy()
    for hook in hooks:
        hook.remove()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--score", type=pathlib.Path, required=True, help="the compiled program")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        unet, text, state = make_reward_model(root / "lrm")
        vae = AutoencoderKL.from_pretrained(MODEL / "vae")
        random = np.random.default_rng(3)
        pictures = []
        for i, (height, width) in enumerate([(32, 32), (48, 40)]):
            small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
            image = small.resize((width, height), Image.Resampling.BICUBIC)
            image.save(root / f"{i}.png")
            for size in ((32, image.height), (32, 32)):  # the width first
                image = image.resize(size, Image.Resampling.BILINEAR)
            pictures.append(torch.tensor(np.asarray(image)).permute(2, 0, 1) / 127.5 - 1)
        with torch.no_grad():
            encoded = vae.encode(torch.stack(pictures)).latent_dist.mean * vae.config.scaling_factor
        latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(5))
        np.save(root / "latents.npy", latents.numpy())
        truth = scores_of(unet, text, state, torch.cat([encoded, latents]))
        command = [arguments.score, "--lrm", root / "lrm", "--pretrained_model_name_or_path", MODEL, "--format", "json",
                   "--timesteps", ",".join(map(str, TIMESTEPS)), "--seed", SEED, root / "0.png", root / "1.png",
                   root / "latents.npy"]
        for prompt in PROMPTS:
            command += ["--prompt", prompt]
        printed = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True).stdout
    ours = np.array([entry["scores"] for entry in json.loads(printed)]).reshape(truth.shape)
    worst = np.abs(ours - truth).max()
    print(f"{truth.size} scores from {truth.min():.3f} to {truth.max():.3f}, largest difference {worst:.2e}")
    sys.exit(0 if worst <= 2e-3 else 1)


if __name__ == "__main__":
    main()
