#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The PyTorch twin of bench/cuda/lpo_iteration_bench.cu: one LPO iteration at Stable Diffusion 1.5's full size with random
weights, the work as the method's authors run it (fp16 autocast; the LRM's text encoder at every step; two policy and two
reference passes per pair). `--lean` leaves out what lpo leaves out: texts once, one pass of each kind per pair, and lets cuDNN
choose on channels-last images. On the CPU (the twin of bench/model/lpo_iteration_bench.cpp) it computes in float32, or with
`--dtype bfloat16` as on the GPU, autocast and LoRA in float32 included; channels last in both cases, one prompt, 4 steps, all 4
pairs, one pair of a pass, and it times one iteration, the first.

    python bench/peers/lpo_torch.py [--lean] [--iterations N] [--micro PAIRS] [--device cpu --threads N --dtype bfloat16]
"""

import argparse
import copy
import math
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel

PROMPTS, STEPS, CANDIDATES, KEPT, GUIDANCE, VISUAL_GUIDANCE, BETA, CLIP = 5, 20, 4, 2, 5.0, 7.5, 500.0, 0.1
SIDE = 64  # of a latent
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")


DEVICE = "cuda"


def on_cpu():
    return DEVICE == "cpu"


def wait():
    if not on_cpu():
        torch.cuda.synchronize()


class LoraLinear(torch.nn.Module):
    """A frozen projection plus a low-rank update in float, scale 1, for machines without peft."""

    def __init__(self, base, rank):
        super().__init__()
        self.base = base
        self.down = torch.nn.Linear(base.in_features, rank, bias=False, device=DEVICE)
        self.up = torch.nn.Linear(rank, base.out_features, bias=False, device=DEVICE)
        torch.nn.init.normal_(self.down.weight, std=1 / rank)
        torch.nn.init.zeros_(self.up.weight)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def add_lora(unet, rank):
    try:
        from peft import LoraConfig
    except ImportError:
        for name, module in list(unet.named_modules()):
            if name.endswith(TARGETS) and isinstance(module, torch.nn.Linear):
                parent, _, last = name.rpartition(".")
                setattr(unet.get_submodule(parent), last, LoraLinear(module, rank))
        return "a hand-written LoRA"
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(TARGETS)))
    for p in unet.parameters():
        if p.requires_grad:
            p.data = p.data.float()
    return "peft's LoRA"


class ClipText(torch.nn.Module):
    """CLIP ViT-L/14's text encoder: transformers', or torch's layers of the same shapes."""

    def __init__(self):
        super().__init__()
        try:
            from transformers import CLIPTextConfig, CLIPTextModel

            self.model = CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12,
                                                      num_attention_heads=12, max_position_embeddings=77, projection_dim=768))
            self.source = "transformers' CLIP"
        except ImportError:
            self.model, self.source = None, "torch's transformer layers"
            self.words, self.places = torch.nn.Embedding(49408, 768), torch.nn.Parameter(torch.randn(77, 768) * 0.01)
            layer = torch.nn.TransformerEncoderLayer(768, 12, 3072, 0.0, F.gelu, batch_first=True, norm_first=True)
            self.layers, self.norm = torch.nn.TransformerEncoder(layer, 12, enable_nested_tensor=False), torch.nn.LayerNorm(768)

    def forward(self, ids):
        """Hidden states [n, 77, 768] and the pooled ones [n, 768]."""
        if self.model is not None:
            out = self.model(ids)
            return out.last_hidden_state, out.pooler_output
        x = self.words(ids) + self.places
        mask = torch.nn.Transformer.generate_square_subsequent_mask(77, device=ids.device, dtype=x.dtype)
        x = self.norm(self.layers(x, mask=mask, is_causal=True))
        return x, x[torch.arange(len(ids)), ids.argmax(-1)]


class RewardModel(torch.nn.Module):
    """Half a UNet that scores noisy latents: every level pooled, the guided middle, a cosine with the text."""

    def __init__(self):
        super().__init__()
        self.unet = make_unet()
        del self.unet.up_blocks, self.unet.conv_norm_out, self.unet.conv_out
        self.text = ClipText()
        self.visual, self.textual = torch.nn.Linear(320 + 640 + 1280 * 3, 768, bias=False), torch.nn.Linear(768, 768, bias=False)

    def score(self, latents, timestep, context, empty, pooled):
        n, unet = len(latents), self.unet
        x, context = torch.cat([latents, latents]), torch.cat([context, empty])
        emb = unet.time_embedding(unet.time_proj(torch.full((2 * n,), timestep, device=x.device)).to(x.dtype))
        h, levels = unet.conv_in(x), []
        for block in unet.down_blocks:
            if getattr(block, "has_cross_attention", False):
                h, skips = block(h, emb, encoder_hidden_states=context)
            else:
                h, skips = block(h, emb)
            levels.append(skips[1][:n].mean((2, 3)))
        mid = unet.mid_block(h, emb, encoder_hidden_states=context).mean((2, 3))
        mid = mid[n:] + VISUAL_GUIDANCE * (mid[:n] - mid[n:])
        visual = F.normalize(self.visual(torch.cat([*levels, mid], 1)).float(), dim=1)
        textual = F.normalize(self.textual(pooled).float(), dim=1)
        return math.exp(2.6592) * (visual * textual).sum(1)


def make_unet():
    return UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8, sample_size=64)


class Stages:
    """Seconds by part; waits for the device at each change."""

    def __init__(self):
        self.seconds, self.current = {}, None

    def enter(self, name):
        wait()
        now = time.perf_counter()
        if self.current is not None:
            self.seconds[self.current] = self.seconds.get(self.current, 0.0) + now - self.start
        self.current, self.start = name, now


class NoStages:
    def enter(self, name):
        pass


class Iteration:
    def __init__(self, options):
        torch.manual_seed(0)
        self.options = options
        with torch.device(DEVICE):
            self.policy, self.reward, self.text = make_unet(), RewardModel(), ClipText()
        self.dtype = getattr(torch, options.dtype) if on_cpu() else torch.float16
        self.policy = self.policy.to(self.dtype).requires_grad_(False)
        self.reward, self.text = self.reward.to(self.dtype).requires_grad_(False), self.text.to(self.dtype).requires_grad_(False)
        self.reference = copy.deepcopy(self.policy)
        self.lora = add_lora(self.policy, 16)
        if options.lean or on_cpu():
            for model in (self.policy, self.reference, self.reward):
                model.to(memory_format=torch.channels_last)
        self.weights = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=6e-5, weight_decay=1e-4)
        self.scaler = torch.amp.GradScaler(DEVICE, enabled=not on_cpu())
        abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
        self.chain = []
        for i in range(STEPS):
            t = 1000 // STEPS * (STEPS - 1 - i) + 1
            now, then = abar[t].item(), abar[max(0, t - 1000 // STEPS)].item()
            sigma = math.sqrt((1 - then) / (1 - now) * (1 - now / then))
            c = math.sqrt(1 - then - sigma**2) - math.sqrt(then * (1 - now) / now)
            self.chain.append((t, math.sqrt(then / now), c, sigma))

    def predict(self, unet, latents, timesteps, context, autocast):
        """Guided prediction; `context` holds the empty prompt's rows first."""
        with torch.autocast(DEVICE, self.dtype, enabled=autocast and self.dtype != torch.float32):
            both = unet(torch.cat([latents, latents]), torch.cat([timesteps, timesteps]), context).sample
        empty, conditional = (both.float() if autocast else both).chunk(2)
        return empty + GUIDANCE * (conditional - empty)

    @torch.no_grad()
    def roll_out(self, stages):
        stages.enter("text")
        ids = torch.randint(0, 49000, (PROMPTS, 77), device=DEVICE)
        nothing = torch.full((1, 77), 49407, device=DEVICE)
        context = torch.cat([self.text(nothing)[0].expand(PROMPTS, -1, -1), self.text(ids)[0]])
        reward_text = self.encode_for_reward(ids, nothing) if self.options.lean else None
        x, pairs = torch.randn(PROMPTS, 4, SIDE, SIDE, device=DEVICE, dtype=self.dtype), []
        for t, a, c, sigma in self.chain:
            stages.enter("denoising")
            prediction = self.predict(self.policy, x, torch.full((PROMPTS,), t, device=DEVICE), context, True)
            mean = a * x.float() + c * prediction
            noise = torch.randn(CANDIDATES, *x.shape, device=DEVICE, dtype=self.dtype)
            candidates = (mean + sigma * noise).to(self.dtype)
            if reward_text is None:
                stages.enter("text")
            text = reward_text or self.encode_for_reward(ids, nothing)
            stages.enter("scoring")
            scores = self.reward.score(candidates.flatten(0, 1), t, *text).view(CANDIDATES, PROMPTS)
            gap = torch.tanh((scores.max(0).values - scores.min(0).values) / 2)
            best, worst, rows = scores.argmax(0), scores.argmin(0), torch.arange(PROMPTS, device=DEVICE)
            for b in gap.topk(KEPT).indices.tolist():  # in place of a threshold, which random weights would not meet
                pairs.append((t, a, c, sigma, x[b], candidates[best[b], b], candidates[worst[b], b], context[b], context[PROMPTS + b]))
            x = candidates[torch.randint(0, CANDIDATES, (PROMPTS,), device=DEVICE), rows]
        return pairs

    def encode_for_reward(self, ids, nothing):
        """Context, that of the empty prompt, and pooled text, a row per candidate."""
        if not self.options.lean:
            context, pooled = self.reward.text(ids.repeat(CANDIDATES, 1))
            return context, self.reward.text(nothing.repeat(CANDIDATES * PROMPTS, 1))[0], pooled
        context, pooled = self.reward.text(ids)
        empty = self.reward.text(nothing)[0].expand(CANDIDATES * PROMPTS, -1, -1)
        return context.repeat(CANDIDATES, 1, 1), empty, pooled.repeat(CANDIDATES, 1)

    def train(self, pairs, stages):
        order = torch.randperm(len(pairs)).tolist()
        for begin in range(0, len(order), 10):
            picked = [pairs[i] for i in order[begin : begin + 10]]
            for first in range(0, len(picked), self.options.micro):
                part = picked[first : first + self.options.micro]
                self.add_gradients(part, len(part) / len(picked), stages)
            stages.enter("optimizer")
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.weights, float("inf"))  # the norm is logged
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad()

    def add_gradients(self, part, share, stages):
        t = torch.tensor([p[0] for p in part], device=DEVICE)
        a, c, sigma = (torch.tensor([p[i] for p in part], device=DEVICE).view(-1, 1, 1, 1) for i in (1, 2, 3))
        x, win, lose, empty, conditional = (torch.stack([p[i] for p in part]) for i in (4, 5, 6, 7, 8))
        context = torch.cat([empty, conditional])

        def log_probability(unet, following, autocast, prediction=None):
            if prediction is None:
                prediction = self.predict(unet, x, t, context, autocast)
            mean = a * x.float() + c * prediction.float()
            density = -((following.float() - mean) ** 2) / (2 * sigma**2) - torch.log(sigma) - math.log(math.sqrt(2 * math.pi))
            return density.mean((1, 2, 3)), prediction

        ratios, kept = [], {}
        for following in (win, lose):
            stages.enter("reference")
            with torch.no_grad():
                old, kept["reference"] = log_probability(self.reference, following, False, kept.get("reference"))
            stages.enter("policy")
            new, kept["policy"] = log_probability(self.policy, following, True, kept.get("policy"))
            if not self.options.lean:
                kept = {}
            ratios.append(torch.clamp(torch.exp(new - old), 1 - CLIP, 1 + CLIP))
        loss = -F.logsigmoid(BETA * (torch.log(ratios[0]) - torch.log(ratios[1]))).mean()
        self.scaler.scale(loss * share).backward()

    def run(self, stages):
        pairs = self.roll_out(stages)
        self.train(pairs, stages)
        stages.enter(None)
        return len(pairs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lean", action="store_true", help="only the work that lpo does, channels last, cuDNN's choice by timing")
    parser.add_argument("--iterations", type=int,
                        help="timed iterations after one that is not (3); on the CPU all but the first, or that alone (1)")
    parser.add_argument("--micro", type=int, help="pairs of one forward and backward (a GPU: 10, the CPU: 1)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--threads", type=int, default=2, help="on the CPU")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="on the CPU; a GPU takes float16")
    options = parser.parse_args()
    global DEVICE, PROMPTS, STEPS, KEPT
    DEVICE = options.device
    if on_cpu():
        PROMPTS, STEPS, KEPT = 1, 4, 1
        torch.set_num_threads(options.threads)
    options.micro = options.micro or (1 if on_cpu() else 10)
    options.iterations = options.iterations or (1 if on_cpu() else 3)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = options.lean
    iteration = Iteration(options)
    machine = f"{options.threads} threads, {options.dtype}" if on_cpu() else torch.cuda.get_device_name()
    print(torch.__version__, machine, iteration.lora, iteration.text.source, "lean" if options.lean else "as released", flush=True)
    while not on_cpu():
        try:
            iteration.run(NoStages())
            break
        except torch.OutOfMemoryError:
            iteration.optimizer.zero_grad()
            torch.cuda.empty_cache()
            options.micro //= 2
            print("out of memory: pairs of one pass now", options.micro, flush=True)
    times = []
    # Waiting between stages costs a GPU time, so its parts are those of one more iteration, which does not count. The CPU
    # waits for nothing and takes minutes: there each iteration is both.
    for i in range(options.iterations if on_cpu() else options.iterations + 1):
        stages = Stages() if on_cpu() or i == options.iterations else NoStages()
        wait()
        start = time.perf_counter()
        pairs = iteration.run(stages)
        wait()
        if i < options.iterations:
            times.append(time.perf_counter() - start)
    if on_cpu() and len(times) > 1:
        del times[0]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 if on_cpu() else torch.cuda.max_memory_allocated() / 2**30
    parts = "  ".join(f"{name} {seconds:.3f}" for name, seconds in stages.seconds.items() if name)
    print(f"lpo iteration {statistics.median(times):.3f} s (of {[round(t, 3) for t in times]}), {pairs} pairs, micro {options.micro}, "
          f"peak {peak:.1f} GiB\n  parts, with waits: {parts}", flush=True)


if __name__ == "__main__":
    main()
