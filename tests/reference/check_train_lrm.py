# SPDX-License-Identifier: MIT
"""Compares a short run of train_lrm with the same training written with diffusers, transformers and torch.optim.

  python tests/reference/check_train_lrm.py --train-lrm build/release/examples/train_lrm/train_lrm

One pair of pictures; starting weights are those that the program exports after a step at rate 0, noise is Philox drawn
here anew. Fails where the cached posterior, a loss, a gradient norm or a trained weight differs by more than it does by
rounding. With --family sd15 or sd21, --model FOLDER and --merges FILE it does so at full size with random weights (see
full_size.py), fewer steps, and prints the program's largest memory.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.utils import logging
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

import full_size
import philox

TINY = pathlib.Path(__file__).resolve().parents[2] / "examples" / "tinyworld" / "model"
CAPTION = "a red circle to the left of a blue square"
SEED, GUIDANCE, RATE, DECAY, CLIP = 5, 7.5, 1e-5, 0.3, 1.0
OPERATION_NOISE, OPERATION_POSTERIOR = 0x2003, 0x2003 ^ 0x2004


def draw_pictures(folder, side):
    """A winner and a loser."""
    for name, colours in (("winner", ("red", "blue")), ("loser", ("green", "gray"))):
        picture = Image.new("RGB", (32, 32), "black")
        draw = ImageDraw.Draw(picture)
        draw.ellipse((3, 9, 14, 20), fill=colours[0])
        draw.rectangle((18, 10, 28, 20), fill=colours[1])
        picture.resize((side, side)).save(folder / f"{name}.png")
    (folder / "pairs.jsonl").write_text(json.dumps({"caption": CAPTION, "winner": "winner.png", "loser": "loser.png"}))


def run(program, model, data, out, rate, steps, threads):
    subprocess.run([program, "--pretrained_model_name_or_path", model, "--train_data_dir", data, "--output_dir", out,
                    "--max_train_steps", str(steps), "--train_batch_size", "1", "--largest_timestep", "1",
                    "--learning_rate", str(rate), "--lr_scheduler", "constant", "--adam_weight_decay", str(DECAY),
                    "--max_grad_norm", str(CLIP), "--lrm_guidance", str(GUIDANCE), "--seed", str(SEED), "--threads", str(threads)],
                   check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


class RewardModel(torch.nn.Module):
    """The folder that train_lrm leaves, read by the authors' libraries."""

    def __init__(self, folder):
        super().__init__()
        self.unet = UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)
        self.text = CLIPTextModel.from_pretrained(folder / "text_encoder")
        state = torch.load(folder / "state_dict.pt", weights_only=True)
        self.visual_projection = torch.nn.Parameter(state["visual_projection"]["weight"].clone())
        self.text_projection = torch.nn.Parameter(state["text_projection"]["weight"].clone())
        self.logit_scale = torch.nn.Parameter(torch.tensor(float(state["logit_scale"])))
        self.levels, self.middle = [], []
        for block in self.unet.down_blocks:
            block.register_forward_hook(lambda _, __, out: self.levels.append(out[1]))
        self.unet.mid_block.register_forward_hook(lambda _, __, out: self.middle.append(out))

    def trained(self):
        """Name and parameter of what takes part in a score."""
        dead = ("unet.up_blocks", "unet.conv_norm_out", "unet.conv_out")
        return [(name, p) for name, p in self.named_parameters() if not name.startswith(dead)]

    def scores(self, tokens, latents, timestep):
        """Of n latents under the first prompt; the second is the empty one."""
        self.levels.clear(), self.middle.clear()
        text, n = self.text(tokens), len(latents)
        states = torch.cat([text.last_hidden_state[:1].expand(n, -1, -1), text.last_hidden_state[1:].expand(n, -1, -1)])
        self.unet(latents.repeat(2, 1, 1, 1), timestep, states)
        last = self.unet.config.layers_per_block - 1
        middle = self.middle[0].mean((2, 3))
        features = torch.cat([*(out[last][:n].mean((2, 3)) for out in self.levels),
                              middle[n:] + GUIDANCE * (middle[:n] - middle[n:])], dim=1)
        visual, query = features @ self.visual_projection.T, text.pooler_output[0] @ self.text_projection.T
        cosine = torch.nn.functional.cosine_similarity(visual, query[None], dim=1)
        return self.logit_scale.exp() * cosine


def check(what, found, expected, tolerance):
    found, expected = np.asarray(found), np.asarray(expected)
    size = np.maximum(np.abs(expected), np.sqrt(np.mean(np.square(expected))))  # a mean near 0 has no relative error
    difference = float(np.max(np.abs(found - expected) / size))
    print(f"{what}: relative difference {difference:.2e}, allowed {tolerance:.0e}")
    return difference <= tolerance


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-lrm", type=pathlib.Path, required=True, help="the compiled program")
    parser.add_argument("--family", choices=["tiny", "sd15", "sd21"], default="tiny")
    parser.add_argument("--model", type=pathlib.Path, help="folder for models at full size")
    parser.add_argument("--merges", type=pathlib.Path, help="gzipped merges of CLIP's tokenizer, for full size")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    tiny = options.family == "tiny"
    if not tiny and (options.model is None or options.merges is None):
        parser.error("full size needs --model and --merges")
    program, threads, steps = options.train_lrm.resolve(), options.threads, 8 if tiny else 2
    source = TINY if tiny else full_size.write_pipeline(options.model.resolve(), options.family, options.merges)
    torch.set_num_threads(threads)
    logging.set_verbosity_error()  # up blocks are not in the folder, and not missed
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        draw_pictures(folder, 32 if tiny else 512)
        run(program, source, folder, folder / "start", 0, 1, threads)
        begin = time.monotonic()
        log = run(program, source, folder, folder / "trained", RATE, steps, threads)
        print(f"train_lrm: {time.monotonic() - begin:.1f} s for {steps} steps with reading and writing, largest memory "
              f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2 ** 20:.2f} GiB, {threads} threads")

        cached = load_file(folder / "trained/cache/train/posteriors-000000.safetensors")
        mean, deviation = (cached[key].float().permute(0, 3, 1, 2) for key in ("mean", "deviation"))
        vae = AutoencoderKL.from_pretrained(source / "vae", torch_dtype=torch.float32)
        pixels = np.stack([np.asarray(Image.open(folder / f"{one}.png")) for one in ("winner", "loser")])
        with torch.no_grad():
            posterior = vae.encode(torch.tensor(pixels / 127.5 - 1, dtype=torch.float32).permute(0, 3, 1, 2)).latent_dist
        good = check("posterior mean", mean, posterior.mean * vae.config.scaling_factor, 2e-3)
        good &= check("posterior deviation", deviation, posterior.std * vae.config.scaling_factor, 2e-3)

        model = RewardModel(folder / "start/lrm-last")
        tokenizer = CLIPTokenizer.from_pretrained(source / "tokenizer")
        tokens = tokenizer([CAPTION, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
        alpha_bar = DDIMScheduler.from_pretrained(source / "scheduler").alphas_cumprod[1]
        parameters = [p for _, p in model.trained()]
        optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=DECAY)
        losses, norms = [], []
        for step in range(steps):
            def drawn(operation):
                values = philox.normals(SEED, operation, step, *mean.permute(0, 2, 3, 1).shape)
                return torch.tensor(values, dtype=torch.float32).permute(0, 3, 1, 2)
            clean = mean + deviation * drawn(OPERATION_POSTERIOR)
            noisy = alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * drawn(OPERATION_NOISE)
            scores = model.scores(tokens, noisy, 1)
            loss = torch.nn.functional.softplus(scores[1] - scores[0])
            optimizer.zero_grad()
            loss.backward()
            norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, CLIP)))
            optimizer.step()
            losses.append(loss.item())
        good &= check("losses", [line["train_loss"] for line in log], losses, 5e-4)
        good &= check("gradient norms", [line["grad_norm"] for line in log], norms, 2e-3)
        trained = RewardModel(folder / "trained/lrm-last")
        ours = dict(trained.trained())
        start = dict(RewardModel(folder / "start/lrm-last").trained())
        with torch.no_grad():
            distance = sum(((ours[key] - p) ** 2).sum().item() for key, p in model.trained()) ** 0.5
            moved = sum(((start[key] - p) ** 2).sum().item() for key, p in model.trained()) ** 0.5
        print(f"weights: moved by {moved:.4f}, {distance:.2e} apart")
        good &= distance < 0.005 * moved
    print("losses", *(f"{loss:.5f}" for loss in losses))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
