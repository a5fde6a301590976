# SPDX-License-Identifier: MIT
"""SDXL's prompts at small widths: two text encoders, and where StableDiffusionXLPipeline ends with `unet_sdxl`."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from . import unets
from .common import randn, randomise, save, truth_of, weights_of

COMMON = {"vocab_size": 40, "max_position_embeddings": 7, "num_hidden_layers": 2, "num_attention_heads": 2,
          "bos_token_id": 38, "eos_token_id": 39, "attn_implementation": "sdpa"}
FIRST = {**COMMON, "hidden_size": 8, "intermediate_size": 20, "hidden_act": "quick_gelu", "pad_token_id": 39}
SECOND = {**COMMON, "hidden_size": 12, "intermediate_size": 24, "hidden_act": "gelu", "pad_token_id": 0,
          "projection_dim": 16}
# Per prompt the ids of the first tokenizer, which pads with the end token, then of the second, which pads with 0.
IDS = {"": [[38, 39, 39, 39, 39, 39, 39, 38, 39, 0, 0, 0, 0, 0], [38, 39, 39, 39, 39, 39, 39, 38, 39, 0, 0, 0, 0, 0]],
       "negative": [[38, 9, 39, 39, 39, 39, 39, 38, 9, 39, 0, 0, 0, 0]] * 2,
       "prompts": [[38, 5, 9, 31, 39, 39, 39, 38, 5, 9, 31, 39, 0, 0], [38, 1, 2, 3, 4, 5, 39, 38, 1, 2, 3, 4, 5, 39]]}
GUIDANCE, STEPS = 5.0, 3


def make_sdxl_prompts(directory):
    first = randomise(CLIPTextModel(CLIPTextConfig(**FIRST)), 7100)
    second = randomise(CLIPTextModelWithProjection(CLIPTextConfig(**SECOND)), 7200)

    def encode(name, dtype):
        ids = torch.tensor(IDS[name])
        one = first.to(dtype)(ids[:, :7], output_hidden_states=True)
        two = second.to(dtype)(ids[:, 7:], output_hidden_states=True)
        states = torch.cat([one.hidden_states[-2], two.hidden_states[-2]], dim=-1), two.text_embeds
        first.float(), second.float()
        return states

    def compute(dtype):
        with torch.no_grad():
            return {f"out/{part}/{name or 'empty'}": value for name in IDS
                    for part, value in zip(("context", "pooled"), encode(name, dtype))}

    truth, error = truth_of(compute)
    unet, _ = unets.make("sdxl")
    vae = AutoencoderKL(block_out_channels=[4] * 4, down_block_types=["DownEncoderBlock2D"] * 4,
                        up_block_types=["UpDecoderBlock2D"] * 4, norm_num_groups=4)
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                              set_alpha_to_one=False, steps_offset=1)
    pipeline = StableDiffusionXLPipeline(vae, first, second, None, None, unet, scheduler)
    pipeline.set_progress_bar_config(disable=True)
    latents = randn(7300, 2, 4, *unets.SIZES["sdxl"])
    truth["in/latents"] = latents
    context, pooled = truth["out/context/prompts"], truth["out/pooled/prompts"]
    size = {"height": 8 * unets.SIZES["sdxl"][0], "width": 8 * unets.SIZES["sdxl"][1], "original_size": (640, 512),
            "crops_coords_top_left": (16, 32), "target_size": (640, 512)}
    cases = {"zeros": (torch.zeros_like(context), torch.zeros_like(pooled), GUIDANCE),
             "negative": (truth["out/context/negative"], truth["out/pooled/negative"], GUIDANCE),
             "unguided": (torch.zeros_like(context), torch.zeros_like(pooled), 1.0)}
    for name, (empty_context, empty_pooled, guidance) in cases.items():
        truth["out/latents/" + name] = pipeline(
            prompt_embeds=context, negative_prompt_embeds=empty_context, pooled_prompt_embeds=pooled,
            negative_pooled_prompt_embeds=empty_pooled, guidance_scale=guidance, num_inference_steps=STEPS,
            latents=latents.clone(), output_type="latent", **size).images
    truth.update(weights_of(first, "text_encoder."))
    truth.update(weights_of(second, "text_encoder_2."))
    truth.update({"in/ids/" + (name or "empty"): torch.tensor(ids) for name, ids in IDS.items()})
    save(directory / "sdxl_prompts.safetensors", truth, fp32_error=error)
