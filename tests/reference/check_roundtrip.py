#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Model folders and LoRA files between lpo and diffusers, both ways, on the golden models. Not part of the tests: it
needs the packages of requirements.txt and a C++ compiler.

    ~/lpo-reference/bin/python tests/reference/check_roundtrip.py
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(HERE))
from goldens import clip_text, lora as loras, unets, vae as vaes  # noqa: E402
from goldens.common import randomise, relative_error  # noqa: E402

failures = 0


def expect(name, error, tolerance=1e-5):
    global failures
    good = error <= tolerance
    failures += not good
    print(f"  {'ok ' if good else 'BAD'}  {name}: {error:.2e}")


def same_setting(a, b):
    """A list of equal numbers means the same as the number."""
    if isinstance(a, (list, tuple)) and not isinstance(b, (list, tuple)):
        b = [b] * len(a)
    return list(a) == list(b) if isinstance(a, (list, tuple)) else a == b


def golden(name):
    return load_file(str(ROOT / "tests" / "golden" / f"{name}.safetensors"))


def run_unet(unet, tensors):
    added = None
    if "in/text_embeds" in tensors:
        added = {"text_embeds": tensors["in/text_embeds"], "time_ids": tensors["in/time_ids"]}
    with torch.no_grad():
        return unet(tensors["in/sample"], tensors["in/timestep"], encoder_hidden_states=tensors["in/context"],
                    added_cond_kwargs=added, return_dict=False)[0]


def check_written(folder):
    print("lpo wrote, diffusers reads:")
    for directory, family in (("unet", "sd15"), ("unet_sd21", "sd21"), ("unet_sdxl", "sdxl")):
        unet, info = UNet2DConditionModel.from_pretrained(folder / directory, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
        tensors = golden(f"unet_{family}")
        expect(f"unet_{family}", relative_error(run_unet(unet, tensors), tensors["out/sample"]))
        expected, _ = unets.make(family)
        differing = [key for key, value in expected.config.items()
                     if not key.startswith("_") and not same_setting(value, unet.config.get(key))]
        print(f"       config differs in {differing or 'nothing'}")
    half = UNet2DConditionModel.from_pretrained(folder / "unet", variant="fp16")
    tensors = golden("unet_sd15")
    expect("unet_sd15 fp16", relative_error(run_unet(half.float(), tensors), tensors["out/sample"]), 5e-3)
    vae, tensors = AutoencoderKL.from_pretrained(folder / "vae"), golden("vae")
    assert vae.config.scaling_factor == 0.25, vae.config.scaling_factor
    with torch.no_grad():
        expect("vae encoder", relative_error(vae.encode(tensors["in/image"]).latent_dist.mean, tensors["out/mean"]))
        expect("vae decoder", relative_error(vae.decode(tensors["in/latent"]).sample, tensors["out/decoded"]))
    tensors = golden("clip_text")
    for directory, kind, name in (("text_encoder", CLIPTextModel, "quick"),
                                  ("text_encoder_2", CLIPTextModelWithProjection, "gelu")):
        with torch.no_grad():
            out = kind.from_pretrained(folder / directory)(tensors[f"{name}/in/input_ids"])
        key, value = ("pooled", out.pooler_output) if name == "quick" else ("text_embeds", out.text_embeds)
        expect(directory, relative_error(out.last_hidden_state, tensors[f"{name}/out/last_hidden_state"]))
        expect(f"{directory} {key}", relative_error(value, tensors[f"{name}/out/{key}"]))
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    assert scheduler.config.beta_schedule == "scaled_linear" and scheduler.config.steps_offset == 1
    index = json.loads((folder / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"], index
    truth, inputs = golden("unet_sd15_lora"), golden("unet_sd15")
    for name in ("diffusers", "old", "kohya"):
        pipeline = StableDiffusionPipeline(
            unet=UNet2DConditionModel.from_pretrained(folder / "unet"), vae=vae, scheduler=scheduler,
            text_encoder=CLIPTextModel.from_pretrained(folder / "text_encoder"), tokenizer=None, safety_checker=None,
            feature_extractor=None, requires_safety_checker=False)
        pipeline.load_lora_weights(str(folder), weight_name=f"lora_{name}.safetensors")
        expect(f"LoRA {name}", relative_error(run_unet(pipeline.unet, inputs), truth["out/sample"]))


def check_reward_folder(folder):
    """The UNet and the state_dict as the authors' code loads them, against those that lpo read."""
    original = ROOT / "tests" / "golden" / "lrm_folder_sd15"
    expected = UNet2DConditionModel.from_pretrained(original / "unet").state_dict()
    found = UNet2DConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False).state_dict()
    head = ("conv_in", "time_embedding", "down_blocks", "mid_block")
    expect("lrm unet", max(relative_error(found[key].float(), value.float()) for key, value in expected.items()
                           if key.startswith(head)), 0)
    expected = torch.load(original / "state_dict.pt", weights_only=True)
    found = torch.load(folder / "state_dict.pt", weights_only=True)
    for name in ("visual_projection", "text_projection"):
        layer = torch.nn.Linear(*reversed(expected[name]["weight"].shape), bias=False, dtype=torch.bfloat16)
        layer.load_state_dict(found[name])
        expect("lrm " + name, relative_error(layer.weight.float(), expected[name]["weight"].float()), 0)
    assert type(found["logit_scale"]) is float and found["logit_scale"] == expected["logit_scale"], found
    assert torch.equal(load_file(folder / "head.safetensors")["visual_projection.weight"],
                       expected["visual_projection"]["weight"])


def adapters_of(pipeline):
    """(component, module): (down, up, scale) of all adapters that diffusers made."""
    name_of = "default_0"
    return {(part, name): (module.lora_A[name_of].weight, module.lora_B[name_of].weight, module.scaling[name_of])
            for part in ("unet", "text_encoder") for name, module in getattr(pipeline, part).named_modules()
            if hasattr(module, "scaling") and name_of in module.scaling}


def check_lora_of_both(folder):
    """Files with adapters of UNet (rank 4, alpha 2) and text encoder (rank 2, alpha 3)."""
    unet, encoder = unets.make("sd15")[0], loras.text_encoder()
    truth = load_file(str(folder / "both_diffusers.safetensors"))
    for form in ("diffusers", "kohya", "diffusers_old"):
        pipeline = loras.pipeline_of(unet, encoder)
        pipeline.load_lora_weights(str(folder), weight_name=f"both_{form}.safetensors")
        found = adapters_of(pipeline)
        assert len(found) * 2 == len(truth), (len(found), len(truth))
        worst, scales = 0.0, set()
        for (part, name), (down, up, scale) in found.items():
            key = f"{part}.{name}"
            expected = 0.5 if part == "unet" else 1.5
            if form == "diffusers_old":  # has no alpha
                up, scale = up / expected, scale * expected
            worst = max(worst, relative_error(down, truth[key + ".lora_A.weight"]),
                        relative_error(up, truth[key + ".lora_B.weight"]), abs(scale - expected))
            scales.add((part, scale))
        expect(f"LoRA {form} of both parts, tensors and scales {sorted(scales)}", worst, 1e-6)


def check_converted(folder):
    """kohya's file of the goldens, converted and merged by lpo, against what diffusers makes of the original."""
    unet, encoder = unets.make("sd15")[0], loras.text_encoder()
    truth = golden("lora_kohya")
    inputs, ids = golden("unet_sd15"), torch.tensor(clip_text.TOKENS["quick"])

    def compare(name, pipeline):
        with torch.no_grad():
            expect(f"{name}, UNet", relative_error(run_unet(pipeline.unet, inputs), truth["out/sample"]))
            expect(f"{name}, text encoder",
                   relative_error(pipeline.text_encoder(ids).last_hidden_state, truth["out/last_hidden_state"]))

    # Not diffusers_old: with the three ranks of this file, diffusers takes the first one as alpha of all adapters.
    for form in ("kohya", "diffusers", "folded"):
        pipeline = loras.pipeline_of(unet, encoder)
        pipeline.load_lora_weights(str(folder), weight_name=f"to_{form}.safetensors")
        compare(f"converted to {form}", pipeline)
    pipeline.unet = UNet2DConditionModel.from_pretrained(folder / "merged" / "unet")
    pipeline.text_encoder = CLIPTextModel.from_pretrained(folder / "merged" / "text_encoder")
    compare("merged by lpo", pipeline)
    fused = loras.pipeline_of(unet, encoder)
    fused.load_lora_weights(str(folder), weight_name="kohya.safetensors")
    fused.fuse_lora()
    fused.unload_lora_weights()
    for part in ("unet", "text_encoder"):
        merged, expected = getattr(pipeline, part).state_dict(), getattr(fused, part).state_dict()
        assert merged.keys() == expected.keys()
        expect(f"weights of {part} against fuse_lora",
               max(relative_error(merged[key].float(), value.float()) for key, value in expected.items()), 1e-6)


def write_with_diffusers(folder):
    base, _ = unets.make("sd15")
    base.save_pretrained(folder / "unet_sd15", max_shard_size="100KB")
    assert len(list((folder / "unet_sd15").glob("*.safetensors"))) > 1
    base.half().save_pretrained(folder / "unet_sd15", variant="fp16")
    for family in ("sd21", "sdxl"):
        unets.make(family)[0].save_pretrained(folder / f"unet_{family}")
    randomise(AutoencoderKL(**vaes.CONFIG), 700).save_pretrained(folder / "vae")
    for index, (name, directory) in enumerate((("quick", "text_encoder"), ("gelu", "text_encoder_2"))):
        kind, config = clip_text.MODELS[name]
        randomise(kind(clip_text.CLIPTextConfig(**config)), 4800 + 100 * index).save_pretrained(folder / directory)
    DDIMScheduler(prediction_type="v_prediction", steps_offset=1, clip_sample=False).save_pretrained(folder / "scheduler")
    base, _ = unets.make("sd15")
    lora = unets.add_lora(base, rank=4, scale_b=0.2, seed=1540)
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=unets.get_peft_model_state_dict(lora))


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program = folder / "roundtrip"
        subprocess.run([os.environ.get("CXX", "c++"), "-std=c++20", "-O1", f"-I{ROOT / 'include'}", f"-I{ROOT / 'tests'}",
                        f"-I{ROOT / 'examples'}",
                        f'-DLPO_TEST_GOLDEN_DIR="{ROOT / "tests" / "golden"}"', str(HERE / "roundtrip.cpp"), "-o",
                        str(program)], check=True)
        (folder / "lpo").mkdir()
        subprocess.run([program, "write", folder / "lpo"], check=True)
        check_written(folder / "lpo")
        check_reward_folder(folder / "lpo" / "lrm")
        check_lora_of_both(folder / "lpo")
        print("lpo converts and merges, diffusers reads:")
        (folder / "lora" / "base").mkdir(parents=True)
        unets.make("sd15")[0].save_pretrained(folder / "lora" / "base" / "unet")
        loras.text_encoder().save_pretrained(folder / "lora" / "base" / "text_encoder")
        save_file({key.removeprefix("kohya/"): value for key, value in golden("lora_kohya").items()
                   if key.startswith("kohya/")}, str(folder / "lora" / "kohya.safetensors"))
        subprocess.run([program, "convert", folder / "lora"], check=True)
        check_converted(folder / "lora")
        (folder / "diffusers").mkdir()
        write_with_diffusers(folder / "diffusers")
        print("diffusers wrote, lpo reads:")
        sys.stdout.flush()
        subprocess.run([program, "read", folder / "diffusers"], check=True)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
