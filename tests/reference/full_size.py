#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The real architectures at full size, with random weights: fp16 files as diffusers and transformers write them, run by
PyTorch in float32 and by lpo, compared, and lpo's loading, memory and speed measured (processor time of all threads,
which other programs on the machine disturb least). Not part of the tests: it needs the packages of requirements.txt, a
C++ compiler, 4 GB of disk and 12 GB of memory for SD1.5, 8 and 20 GB for SDXL.

    ~/lpo-reference/bin/python tests/reference/full_size.py FOLDER --family sd15 --storage float bfloat16
"""

import argparse
import gc
import gzip
import json
import os
import subprocess
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

UNETS = {
    "sd15": {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
    "sd21": {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True,
             "sample_size": 96},
    "sdxl": {"cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20), "use_linear_projection": True,
             "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
             "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
             "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
             "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
             "projection_class_embeddings_input_dim": 2816, "sample_size": 128},
}
VAE = {"block_out_channels": (128, 256, 512, 512), "down_block_types": ("DownEncoderBlock2D",) * 4,
       "up_block_types": ("UpDecoderBlock2D",) * 4, "layers_per_block": 2, "latent_channels": 4, "sample_size": 512}
TEXTS = {
    "clip_l": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
               "hidden_act": "quick_gelu", "projection_dim": 768},
    "clip_h": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16,
               "hidden_act": "gelu", "projection_dim": 512},
    "clip_bigg": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
                  "hidden_act": "gelu", "projection_dim": 1280},
}
PARTS = {"sd15": ("unet", "vae", "text_encoder"), "sd21": ("unet", "vae", "text_encoder"),
         "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2")}


def text_class(part):
    return CLIPTextModelWithProjection if part == "text_encoder_2" else CLIPTextModel


def build(family, part):
    """A model with the initialisation of its own library."""
    if part == "unet":
        return UNet2DConditionModel(**UNETS[family])
    if part == "vae":
        return AutoencoderKL(**VAE, scaling_factor=0.13025 if family == "sdxl" else 0.18215)
    which = {"sd21": "clip_h"}.get(family, "clip_bigg" if part == "text_encoder_2" else "clip_l")
    return text_class(part)(CLIPTextConfig(**TEXTS[which], eos_token_id=2))


def count_parameters():
    """Numbers of weights on the meta device, for tests/model."""
    with torch.device("meta"):
        for family, parts in PARTS.items():
            for part in parts:
                print(f"{family} {part}: {sum(p.numel() for p in build(family, part).parameters()):,}")


def write(folder, family, part, seed):
    if (folder / part / "config.json").exists():
        return
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.float16)  # half the memory while the weights are drawn
    try:
        build(family, part).half().save_pretrained(folder / part)
    finally:
        torch.set_default_dtype(torch.float32)


def write_tokenizer(folder, merges, pad_token):
    """vocab.json and merges.txt of CLIP from its gzipped list of merges; files that are there already stay."""
    if (folder / "vocab.json").exists():
        return
    from transformers.models.clip.tokenization_clip import bytes_to_unicode  # not in every version
    lines = gzip.open(merges, "rt", encoding="utf-8").read().split("\n")[1:49152 - 256 - 2 + 1]
    characters = list(bytes_to_unicode().values())
    words = characters + [character + "</w>" for character in characters] + ["".join(line.split()) for line in lines]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines, ""]), encoding="utf-8")
    CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad_token,
                  model_max_length=77).save_pretrained(folder)


def write_pipeline(folder, family, merges):
    """A whole pipeline at full size; parts that are in the folder already stay. Returns the folder."""
    folder = folder / family
    for seed, part in enumerate(PARTS[family]):
        write(folder, family, part, seed)
        gc.collect()
    index = {"_class_name": "StableDiffusionXLPipeline" if family == "sdxl" else "StableDiffusionPipeline"}
    for part in PARTS[family]:
        index[part] = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}.get(
            part, ["transformers", text_class(part).__name__])
    for part in PARTS[family]:
        if part.startswith("text_encoder"):
            name = part.replace("text_encoder", "tokenizer")
            write_tokenizer(folder / name, merges,
                            "!" if family == "sd21" or part == "text_encoder_2" else "<|endoftext|>")
            index[name] = ["transformers", "CLIPTokenizer"]
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1,
                  set_alpha_to_one=False, prediction_type="v_prediction" if family == "sd21" else "epsilon",
                  ).save_pretrained(folder / "scheduler")
    index["scheduler"] = ["diffusers", "DDIMScheduler"]
    absent = {"feature_extractor", "image_encoder"} | (set() if family == "sdxl" else {"safety_checker"})
    index.update({name: [None, None] for name in absent})
    index.update({"force_zeros_for_empty_prompt": True} if family == "sdxl" else {"requires_safety_checker": False})
    (folder / "model_index.json").write_text(json.dumps(index, indent=1))
    return folder


def inputs_of(family, part, side):
    generator = torch.Generator().manual_seed(1)
    randn = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    if part == "unet":
        width = UNETS[family]["cross_attention_dim"]
        latent = randn(1, 4, side, side)
        inputs = {"sample": latent.repeat(2, 1, 1, 1), "context": randn(2, 77, width)}
        if family == "sdxl":
            inputs.update({"text_embeds": randn(2, 1280), "time_ids": torch.tensor([[8.0 * side] * 2 + [0, 0]
                                                                                  + [8.0 * side] * 2] * 2)})
        return inputs
    if part == "vae":
        return {"image": randn(1, 3, 256, 256).clamp(-1, 1), "latent": randn(1, 4, 32, 32)}
    ids = torch.full((2, 77), 49407)
    ids[:, 0] = 49406
    ids[1, 1:20] = torch.randint(0, 49406, (19,), generator=generator)
    return {"input_ids": ids}


def load(folder, part):
    if part == "unet":
        return UNet2DConditionModel.from_pretrained(folder / part, torch_dtype=torch.float32)
    if part == "vae":
        return AutoencoderKL.from_pretrained(folder / part, torch_dtype=torch.float32)
    return text_class(part).from_pretrained(folder / part, dtype=torch.float32)


def run(model, part, inputs):
    if part == "unet":
        added = {key: inputs[key] for key in ("text_embeds", "time_ids") if key in inputs}
        return {"sample": model(inputs["sample"], 999, encoder_hidden_states=inputs["context"],
                                added_cond_kwargs=added or None).sample}
    if part == "vae":
        posterior = model.encode(inputs["image"]).latent_dist
        return {"mean": posterior.mean, "logvar": posterior.logvar, "decoded": model.decode(inputs["latent"]).sample}
    out = model(inputs["input_ids"], output_hidden_states=True)
    pooled = {"text_embeds": out.text_embeds} if part == "text_encoder_2" else {"pooled": out.pooler_output}
    return {"last_hidden_state": out.last_hidden_state, "penultimate": out.hidden_states[-2], **pooled}


@torch.no_grad()
def reference(folder, family, part, side):
    """Inputs, PyTorch's outputs and its processor time, kept beside the weights: `out/` in float32 with the weights of
    the file, `out_bfloat16/` in float32 with these weights rounded to bfloat16."""
    path = folder / f"reference_{part}.safetensors"
    if path.exists():
        return
    model = load(folder, part)
    inputs = inputs_of(family, part, side)
    start = time.process_time()
    outputs = run(model, part, inputs)
    seconds = time.process_time() - start
    for name, value in outputs.items():
        assert torch.isfinite(value).all(), f"{part}: {name} is not finite"
    for parameter in model.parameters():
        parameter.copy_(parameter.bfloat16())
    rounded = run(model, part, inputs)
    save_file({f"{kind}/{key}": value.contiguous()
               for kind, values in (("in", inputs), ("out", outputs), ("out_bfloat16", rounded))
               for key, value in values.items()}, str(path))
    path.with_suffix(".json").write_text(json.dumps({"seconds": seconds}))


@torch.no_grad()
def own_bfloat16_errors(family, parts, side, device):
    """What PyTorch itself loses in bfloat16, weights and activations, against its own float32 on the same device."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for seed, part in enumerate(parts):
        torch.manual_seed(seed)
        model = build(family, part).half().float().to(device)
        inputs = {key: value.to(device) for key, value in inputs_of(family, part, side).items()}
        truth = run(model, part, inputs)
        inputs = {key: value.bfloat16() if value.is_floating_point() and key != "time_ids" else value
                  for key, value in inputs.items()}
        rough = run(model.bfloat16(), part, inputs)
        for name, value in truth.items():
            error = (rough[name].float() - value).norm() / value.norm()
            print(f"{family} {part} {name}: {error:.1e}", flush=True)
        del model
        gc.collect()


def plain_read(path):
    """Processor seconds of reading the file into one buffer, from the page cache."""
    buffer = bytearray(1 << 22)
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
        best = min(best, time.process_time() - start)
    return best


def worst_error(numbers, prefix):
    """The largest of the numbers under `prefix` and which it is, or nothing."""
    errors = [(value, key[len(prefix):]) for key, value in numbers.items() if key.startswith(prefix)]
    return f"{max(errors)[0]:.1e} ({max(errors)[1]})" if errors else ""


def compile_program(folder, family, storage, compiler):
    """The program of a family and storage type; one that is newer than its sources is kept."""
    program = folder / f"full_size_{family}_{storage}"
    sources = [HERE / "full_size.cpp", *(ROOT / "include").glob("**/*.hpp")]
    if program.exists() and program.stat().st_mtime > max(source.stat().st_mtime for source in sources):
        return program
    command = [*compiler, "-std=c++20", "-O2", "-march=native", "-mtune=generic", f"-I{ROOT}/include",
               "-isystem", "/usr/include/eigen3", f"-DLPO_FULL_SIZE_FAMILY={family}",
               f"-DLPO_FULL_SIZE_STORAGE={storage}", str(HERE / "full_size.cpp"), "-o", str(program), "-lpthread"]
    subprocess.run(command, check=True)
    return program


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--family", choices=PARTS, default="sd15")
    parser.add_argument("--parts", nargs="*", help="unet, vae, text_encoder, text_encoder_2; all by default")
    parser.add_argument("--storage", nargs="*", default=["float", "bfloat16"], choices=["float", "bfloat16", "half"])
    parser.add_argument("--side", type=int, default=64, help="height and width of the UNet's latents")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compiler", default=os.environ.get("CXX", "g++"))
    parser.add_argument("--counts", action="store_true", help="only print the numbers of weights")
    parser.add_argument("--torch_bfloat16", metavar="DEVICE",
                        help="only print what PyTorch's own bfloat16 loses, on this device (\"cuda\")")
    arguments = parser.parse_args()
    if arguments.counts:
        return count_parameters()
    if arguments.torch_bfloat16:
        return own_bfloat16_errors(arguments.family, arguments.parts or PARTS[arguments.family], arguments.side,
                                   arguments.torch_bfloat16)
    if arguments.folder is None:
        parser.error("a folder for weights and results is needed")
    torch.set_num_threads(arguments.threads)
    folder = arguments.folder / arguments.family
    folder.mkdir(parents=True, exist_ok=True)
    parts = arguments.parts or PARTS[arguments.family]
    for seed, part in enumerate(parts):
        write(folder, arguments.family, part, seed)
        gc.collect()
        reference(folder, arguments.family, part, arguments.side)
        gc.collect()
        print(f"{part}: weights and reference are there", flush=True)
    print("| part | storage | largest error | with the same rounded weights | load / plain read | "
          "run / PyTorch fp32 | weights | activations | peak RSS | peak / (weights + activations) |\n"
          "|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for storage in arguments.storage:
        program = compile_program(folder, arguments.family, storage, arguments.compiler.split())
        for part in parts:
            weights = next((folder / part).glob("*.safetensors"))
            seconds = plain_read(weights)
            output = subprocess.run([str(program), str(folder), part, str(arguments.threads)], check=True,
                                    stdout=subprocess.PIPE, text=True).stdout
            number = {key: float(value) for key, value in (line.split() for line in output.splitlines())}
            torch_seconds = json.loads((folder / f"reference_{part}.json").read_text())["seconds"]
            megabytes = {key: number[key] / 1e6 for key in ("weights", "activations", "peak")}
            print(f"| {part} | {storage} | {worst_error(number, 'error/')} | "
                  f"{worst_error(number, 'error_bfloat16/')} | {number['load_seconds'] / seconds:.2f} | "
                  f"{number['run_seconds'] / torch_seconds:.2f} | "
                  f"{megabytes['weights']:.0f} MB | {megabytes['activations']:.0f} MB | {megabytes['peak']:.0f} MB | "
                  f"{megabytes['peak'] / (megabytes['weights'] + megabytes['activations']):.3f} |", flush=True)
            number["plain_read_seconds"] = seconds
            (folder / f"measured_{part}_{storage}.json").write_text(json.dumps(number, indent=1))


if __name__ == "__main__":
    main()
