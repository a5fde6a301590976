# SPDX-License-Identifier: MIT
"""Compares a short run of train_dpo with the same training written with diffusers, transformers, peft and torch.optim.

  python tests/reference/check_train_dpo.py --train-dpo build/release/examples/train_dpo/train_dpo

One pair of pictures; both start from the LoRA that the program exports after a step at next to no rate, and draw the same
timesteps and Philox noise. Fails where a loss, a gradient norm or a trained weight differs by more than it does by
rounding. With --family sd15, sd21 or sdxl, --model FOLDER and --merges FILE it does so at full size with random weights
(see full_size.py), and prints the program's largest memory. With --dtype bfloat16 the program computes in 16 bits and
PyTorch in float32, and only the losses are compared.
"""

import argparse
import gc
import json
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

import full_size
import philox
from check_lpo_iteration import check_lora
from check_train_lrm import CAPTION, TINY, check, draw_pictures

SEED, BETA, DECAY, EMPTY = 5, 5000.0, 1e-2, 0.5
OPERATION_CHOICES, OPERATION_NOISE, OPERATION_POSTERIOR = 0x4002, 0x4003, 0x4004


class Twin:
    def __init__(self, model, family, lora, cache, resolution, rate):
        posterior = load_file(cache / "posteriors-000000.safetensors")
        self.mean, self.deviation = (posterior[key].float().permute(0, 3, 1, 2) for key in ("mean", "deviation"))
        self.encode(model, family)
        self.time_ids = torch.tensor([[resolution, resolution, 0, 0, resolution, resolution]] * 2, dtype=torch.float32)
        self.xl = family == "sdxl"
        self.policy = full_size.load(model, "unet").requires_grad_(False)
        self.policy.load_lora_adapter(load_file(lora), prefix="unet", adapter_name="dpo")
        self.weights = [(name, p.requires_grad_(True)) for name, p in self.policy.named_parameters() if "lora" in name]
        self.parameters = [p for _, p in self.weights]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=rate, weight_decay=DECAY)
        scheduler = DDIMScheduler.from_pretrained(model / "scheduler")
        self.alpha_bar, self.velocity = scheduler.alphas_cumprod, scheduler.config.prediction_type == "v_prediction"

    @torch.no_grad()
    def encode(self, model, family):
        """States of the caption and of the empty prompt, and their pooled vectors."""
        states, self.pooled = [], None
        for part in full_size.PARTS["sd15" if family == "tiny" else family]:
            if not part.startswith("text_encoder"):
                continue
            tokenizer = CLIPTokenizer.from_pretrained(model / part.replace("text_encoder", "tokenizer"))
            tokens = tokenizer([CAPTION, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
            out = full_size.load(model, part)(tokens, output_hidden_states=True)
            states.append(out.hidden_states[-2] if family == "sdxl" else out.last_hidden_state)
            self.pooled = out.text_embeds if part == "text_encoder_2" else None
        self.states = torch.cat(states, dim=-1)

    def predict(self, x, timestep, row):
        added = {"text_embeds": self.pooled[[row, row]], "time_ids": self.time_ids} if self.xl else None
        return self.policy(x, timestep, self.states[[row, row]], added_cond_kwargs=added).sample

    def step(self, number):
        """One optimizer step on the pair: the line of the log."""
        choice = philox.Stream(SEED, OPERATION_CHOICES, number)
        timestep = choice.below(1000)
        row = 1 if choice.word() < EMPTY * 2 ** 32 else 0

        def drawn(operation, rows):
            values = philox.normals(SEED, operation, number, rows, *self.mean.permute(0, 2, 3, 1).shape[1:])
            return torch.tensor(values, dtype=torch.float32).permute(0, 3, 1, 2)
        clean = self.mean + self.deviation * drawn(OPERATION_POSTERIOR, 2)
        noise = drawn(OPERATION_NOISE, 1).expand_as(clean)
        signal, spread = self.alpha_bar[timestep].sqrt(), (1 - self.alpha_bar[timestep]).sqrt()
        noisy = signal * clean + spread * noise
        target = signal * noise - spread * clean if self.velocity else noise
        with torch.no_grad():
            self.policy.disable_lora()
            reference = ((self.predict(noisy, timestep, row) - target) ** 2).mean((1, 2, 3))
            self.policy.enable_lora()
        error = ((self.predict(noisy, timestep, row) - target) ** 2).mean((1, 2, 3))
        margin = (error[0] - error[1]) - (reference[0] - reference[1])
        loss = -torch.nn.functional.logsigmoid(-BETA / 2 * margin)
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in self.parameters]).item()
        self.optimizer.step()
        return {"train_loss": loss.item(), "grad_norm": norm}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train-dpo", type=pathlib.Path, required=True, help="the compiled program")
    parser.add_argument("--family", choices=["tiny", "sd15", "sd21", "sdxl"], default="tiny")
    parser.add_argument("--model", type=pathlib.Path, help="folder for models at full size")
    parser.add_argument("--merges", type=pathlib.Path, help="gzipped merges of CLIP's tokenizer, for full size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--resolution", type=int, help="pixels of a side")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tiny = options.family == "tiny"
    if not tiny and (options.model is None or options.merges is None):
        parser.error("full size needs --model and --merges")
    model = TINY if tiny else full_size.write_pipeline(options.model.resolve(), options.family, options.merges)
    resolution = options.resolution or (32 if tiny else 512)
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        draw_pictures(root, resolution)

        def run(name, steps, rate):
            command = [options.train_dpo.resolve(), "--pretrained_model_name_or_path", model, "--train_data_dir", root,
                       "--output_dir", root / name, "--cache_dir", root / "cache", "--max_train_steps", steps,
                       "--train_batch_size", 1, "--gradient_accumulation_steps", 1, "--beta_dpo", BETA,
                       "--proportion_empty_prompts", EMPTY, "--learning_rate", rate, "--lr_scheduler", "constant",
                       "--adam_weight_decay", DECAY, "--max_grad_norm", 0, "--resolution", resolution, "--seed", SEED,
                       "--dtype", options.dtype, "--checkpointing_steps", 0, "--threads", options.threads]
            start = time.monotonic()
            subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
            return time.monotonic() - start

        run("start", 1, 1e-30)  # as good as not at all
        seconds = run("trained", options.steps, options.rate)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2 ** 20
        print(f"train_dpo: {seconds:.1f} s for {options.steps} steps with reading and writing, largest memory {peak:.2f} "
              f"GiB, {options.threads} threads", flush=True)
        log = [json.loads(line) for line in (root / "trained" / "metrics.jsonl").read_text().splitlines()]
        start_file, trained_file = (root / name / "pytorch_lora_weights.safetensors" for name in ("start", "trained"))
        twin = Twin(model, options.family, start_file, root / "cache", resolution, options.rate)
        lines = [twin.step(i) for i in range(options.steps)]
        exact = options.dtype == "float32"
        print("losses", *(f"{line['train_loss']:.6f}" for line in log), "and", *(f"{line['train_loss']:.6f}" for line in lines))
        good = check("losses", [line["train_loss"] for line in log], [line["train_loss"] for line in lines],
                     1e-3 if exact else 5e-2)
        if exact:
            good &= check("gradient norms", [line["grad_norm"] for line in log], [line["grad_norm"] for line in lines], 5e-3)
            good &= check_lora(start_file, trained_file, twin, "dpo")
    gc.collect()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
