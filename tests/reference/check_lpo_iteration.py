# SPDX-License-Identifier: MIT
"""Compares whole iterations of train_lpo with the same written with diffusers, peft and torch.optim.

  python tests/reference/check_lpo_iteration.py --train-lpo build/release/examples/train_lpo/train_lpo

Both start from the LoRA that the program exports before its first iteration, draw the same Philox noise, score every
candidate, keep every pair, and take one optimizer step an iteration. Fails where a reward, a loss, a gradient norm or a
trained weight differs by more than it does by rounding. With --family sd15 or sd21, --model FOLDER and --merges FILE
it does so at full size with random weights (see full_size.py), one prompt, and prints the program's largest memory.
"""

import argparse
import gc
import json
import math
import pathlib
import resource
import subprocess
import sys
import tempfile
import time

import numpy as np
import torch
from diffusers import DDIMScheduler
from safetensors.torch import load_file
from transformers import CLIPTokenizer

import check_score
import full_size
import philox

PROMPTS = ["a red circle to the left of a blue square", "a green triangle"]
SEED, GUIDANCE, VISUAL_GUIDANCE, CANDIDATES, BETA, CLIP, DECAY = 11, 5.0, 7.5, 4, 500.0, 0.1, 1e-4
OPERATION_LATENTS, OPERATION_CANDIDATES, OPERATION_CONTINUATION, OPERATION_PROMPTS = 0x1001, 0x1003, 0x1004, 0x3001


class Chain:
    """The Gaussian steps of DDIM with eta 1: mean a x + c eps, deviation sigma."""

    def __init__(self, model, steps):
        scheduler = DDIMScheduler.from_pretrained(model / "scheduler")
        scheduler.set_timesteps(steps)
        self.steps = []
        for t in scheduler.timesteps.tolist():
            before = t - scheduler.config.num_train_timesteps // steps
            now = scheduler.alphas_cumprod[t].double()
            then = (scheduler.alphas_cumprod[before] if before >= 0 else scheduler.final_alpha_cumprod).double()
            variance = (1 - then) / (1 - now) * (1 - now / then)
            slope = (1 - then - variance).sqrt() - (then * (1 - now) / now).sqrt()
            self.steps.append((t, (then / now).sqrt().item(), slope.item(), variance.sqrt().item()))


class Reward:
    """Scores of noisy latents by the down and middle blocks of the base UNet and random projections."""

    def __init__(self, model, state):
        self.unet, self.state, self.levels, self.middle = full_size.load(model, "unet"), state, [], []
        del self.unet.up_blocks[:]
        for block in self.unet.down_blocks:
            block.register_forward_hook(lambda _, __, out: self.levels.append(out[1]))
        self.unet.mid_block.register_forward_hook(lambda _, __, out: self.middle.append(out))
        self.unet.conv_norm_out = self.unet.conv_out = torch.nn.Identity()

    @torch.no_grad()
    def scores(self, latents, timestep, states, pooled, rows):
        self.levels.clear(), self.middle.clear()
        n, last = len(latents), self.unet.config.layers_per_block - 1
        self.unet(latents.repeat(2, 1, 1, 1), timestep, states[rows + [-1] * n])
        middle = self.middle[0].mean((2, 3))
        features = torch.cat([*(out[last][:n].mean((2, 3)) for out in self.levels),
                              middle[n:] + VISUAL_GUIDANCE * (middle[:n] - middle[n:])], dim=1)
        visual = features @ self.state["visual_projection"]["weight"].T
        query = pooled[rows] @ self.state["text_projection"]["weight"].T
        cosine = torch.nn.functional.cosine_similarity(visual, query, dim=1)
        return cosine * math.exp(self.state["logit_scale"])


class Twin:
    def __init__(self, model, state, lora, options):
        self.states, self.pooled = (x.detach() for x in check_score.encode_prompts(model, options.family))
        # encode_prompts knows PROMPTS of its own: the same here, then the empty one.
        self.reward = Reward(model, state)
        self.policy = full_size.load(model, "unet").requires_grad_(False)
        self.policy.load_lora_adapter(load_file(lora), prefix="unet", adapter_name="lpo")
        self.weights = [(name, p.requires_grad_(True)) for name, p in self.policy.named_parameters() if "lora" in name]
        self.optimizer = torch.optim.AdamW([p for _, p in self.weights], lr=options.rate, weight_decay=DECAY)
        self.chain = Chain(model, options.steps).steps
        self.options = options

    def predict(self, x, timestep, rows):
        n = len(x)
        both = self.policy(x.repeat(2, 1, 1, 1), timestep, self.states[[-1] * n + rows]).sample
        return both[:n] + GUIDANCE * (both[n:] - both[:n])

    def noise(self, operation, step, count):
        side = self.options.side
        drawn = philox.normals(SEED, operation, step, count, side, side, 4)
        return torch.tensor(drawn, dtype=torch.float32).permute(0, 3, 1, 2).contiguous()

    def iterate(self, iteration):
        """One roll-out and one optimizer step: the line of the log."""
        prompts = philox.Stream(SEED, OPERATION_PROMPTS, iteration).shuffled(self.options.prompts)
        n, pairs, rewards = len(prompts), [], []
        x = self.noise(OPERATION_LATENTS, iteration, n)
        for i, (t, a, c, sigma) in enumerate(self.chain):
            counter = iteration * len(self.chain) + i
            with torch.no_grad():
                mean = a * x + c * self.predict(x, t, prompts)
            drawn = self.noise(OPERATION_CANDIDATES, counter, CANDIDATES * n)
            candidates = mean.repeat(CANDIDATES, 1, 1, 1) + sigma * drawn
            scores = self.reward.scores(candidates, t, self.states, self.pooled, prompts * CANDIDATES)
            rewards.append(scores)
            choice = philox.Stream(SEED, OPERATION_CONTINUATION, counter)
            for b in range(n):
                of_prompt = scores[b::n]
                win, lose = of_prompt.argmax().item(), of_prompt.argmin().item()
                pairs.append((i, prompts[b], x[b], candidates[win * n + b], candidates[lose * n + b]))
            x = torch.stack([candidates[choice.below(CANDIDATES) * n + b] for b in range(n)])

        self.optimizer.zero_grad()
        losses, ratios = [], []
        for i, prompt, x_t, win, lose in pairs:
            t, a, c, sigma = self.chain[i]
            x_t = x_t[None]
            with torch.no_grad():
                self.policy.disable_lora()
                reference = a * x_t + c * self.predict(x_t, t, [prompt])
                self.policy.enable_lora()
            mean = a * x_t + c * self.predict(x_t, t, [prompt])

            def ratio(sample):
                delta = ((mean - reference) * (2 * sample - mean - reference)).mean() / (2 * sigma ** 2)
                return delta.exp().clamp(1 - CLIP, 1 + CLIP)
            ratio_win, ratio_lose = ratio(win), ratio(lose)
            loss = -torch.nn.functional.logsigmoid(BETA * (ratio_win.log() - ratio_lose.log()))
            (loss / len(pairs)).backward()
            losses.append(loss.item()), ratios.append((ratio_win.item(), ratio_lose.item()))
        norm = torch.nn.utils.get_total_norm([p.grad for _, p in self.weights]).item()
        self.optimizer.step()
        rewards = torch.cat(rewards).double()
        return {"reward_mean": rewards.mean().item(), "reward_std": rewards.std().item(), "kept": len(pairs),
                "train_loss": float(np.mean(losses)), "train_ratio_win": float(np.mean([r[0] for r in ratios])),
                "train_ratio_lose": float(np.mean([r[1] for r in ratios])), "grad_norm": norm}


def check(what, found, expected, tolerance):
    found, expected = np.asarray(found, float), np.asarray(expected, float)
    difference = float(np.max(np.abs(found - expected) / np.maximum(1e-3, np.abs(expected))))
    print(f"{what:17} {' '.join(f'{v:.7g}' for v in found)}: relative difference {difference:.1e}, allowed {tolerance:.0e}")
    return difference <= tolerance


def check_lora(start_file, trained_file, twin, adapter):
    """Whether a trained LoRA is 50 times closer to the twin's `adapter` than either is to where both began."""
    theirs = {name.replace(f".{adapter}", ""): p.detach() for name, p in twin.weights}
    distance = moved = 0.0
    start, trained = load_file(start_file), load_file(trained_file)
    for name, value in trained.items():
        expected = theirs[name.removeprefix("unet.")]
        distance += ((value.float() - expected) ** 2).sum().item()
        moved += ((start[name].float() - expected) ** 2).sum().item()
    print(f"LoRA moved by {moved ** 0.5:.4f}, {distance ** 0.5:.2e} apart")
    return distance ** 0.5 < 0.02 * moved ** 0.5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-lpo", type=pathlib.Path, required=True, help="the compiled program")
    parser.add_argument("--family", choices=["tiny", "sd15", "sd21"], default="tiny")
    parser.add_argument("--model", type=pathlib.Path, help="folder for models at full size")
    parser.add_argument("--merges", type=pathlib.Path, help="gzipped merges of CLIP's tokenizer, for full size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--resolution", type=int, help="pixels of a side")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tiny = options.family == "tiny"
    if not tiny and (options.model is None or options.merges is None):
        parser.error("full size needs --model and --merges")
    options.prompts = 2 if tiny else 1
    model = check_score.TINY if tiny else full_size.write_pipeline(options.model.resolve(), options.family, options.merges)
    resolution = options.resolution or (32 if tiny else 512)
    levels = json.loads((model / "vae" / "config.json").read_text())["block_out_channels"]
    options.side = resolution // 2 ** (len(levels) - 1)
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        state = check_score.make_reward_model(root / "lrm", model, options.family)
        (root / "prompts.txt").write_text("\n".join(PROMPTS[:options.prompts]) + "\n")

        def run(name, iterations, rate, *more):
            command = [options.train_lpo.resolve(), "--pretrained_model_name_or_path", model, "--lrm", root / "lrm",
                       "--prompt_file", root / "prompts.txt", "--output_dir", root / name, "--max_train_iterations", iterations,
                       "--sample_batch_size", options.prompts, "--num_inference_steps", options.steps, "--num_candidates",
                       CANDIDATES, "--guidance_scale", GUIDANCE, "--lrm_guidance", VISUAL_GUIDANCE, "--threshold_mode", "const",
                       "--threshold_const", 0, "--beta", BETA, "--clip_range", CLIP, "--train_batch_size", 1,
                       "--gradient_accumulation_steps", options.prompts * options.steps, "--learning_rate", rate,
                       "--adam_weight_decay", DECAY, "--resolution", resolution, "--seed", SEED, "--threads", options.threads,
                       *more]
            start = time.monotonic()
            subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
            return time.monotonic() - start

        run("start", 1, 1e-30, "--divert_end_step", 1)  # as good as not at all
        seconds = run("trained", options.iterations, options.rate)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2 ** 20
        log = [json.loads(line) for line in (root / "trained" / "metrics.jsonl").read_text().splitlines()]
        start_file, trained_file = (root / name / "pytorch_lora_weights.safetensors" for name in ("start", "trained"))
        twin = Twin(model, state, start_file, options)
        begin = time.monotonic()
        lines = [twin.iterate(i) for i in range(options.iterations)]
        print(f"train_lpo {seconds:.1f} s with reading and writing, largest memory {peak:.2f} GiB; "
              f"PyTorch {time.monotonic() - begin:.1f} s for its iterations, {options.threads} threads")
        good = True
        for key, tolerance in (("reward_mean", 1e-4), ("reward_std", 1e-3), ("kept", 0), ("train_loss", 1e-3),
                               ("train_ratio_win", 1e-4), ("train_ratio_lose", 1e-4), ("grad_norm", 5e-3)):
            good &= check(key, [line[key] for line in log], [line[key] for line in lines], tolerance)
        good &= check_lora(start_file, trained_file, twin, "lpo")
    gc.collect()
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
