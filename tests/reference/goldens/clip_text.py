# SPDX-License-Identifier: MIT
"""Small CLIP text encoders: SD1.5's (quick_gelu, padded with the end token) and SDXL's second (gelu, projection)."""

import copy
import json

import torch
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from .common import randn, randomise, save, truth_of, weights_of

COMMON = {"vocab_size": 48, "hidden_size": 16, "intermediate_size": 40, "max_position_embeddings": 11,
          "bos_token_id": 46, "layer_norm_eps": 1e-5, "attention_dropout": 0.0, "projection_dim": 12}
MODELS = {
    # The checkpoints of SD1.5 say eos_token_id 2, which makes transformers take the first position of the largest id.
    "quick": (CLIPTextModel, {**COMMON, "num_hidden_layers": 3, "num_attention_heads": 2, "hidden_act": "quick_gelu",
                              "eos_token_id": 2, "pad_token_id": 47}),
    "gelu": (CLIPTextModelWithProjection, {**COMMON, "num_hidden_layers": 2, "num_attention_heads": 4,
                                           "hidden_act": "gelu", "eos_token_id": 47, "pad_token_id": 0}),
}
TOKENS = {"quick": [[46, 5, 9, 31, 9, 47, 47, 47, 47, 47, 47], [46, 47, 47, 47, 47, 47, 47, 47, 47, 47, 47],
                    [46, 1, 2, 3, 45, 44, 43, 42, 20, 21, 47]],
          "gelu": [[46, 5, 9, 31, 9, 47, 0, 0, 0, 0, 0], [46, 47, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                   [46, 1, 2, 3, 45, 44, 43, 42, 20, 21, 47]]}


def make_clip_text(directory):
    tensors, errors, configs = {}, {}, {}
    for index, (name, (kind, config)) in enumerate(MODELS.items()):
        # Eager attention would round the softmax to float32 inside the double model.
        model = randomise(kind(CLIPTextConfig(**config, attn_implementation="sdpa")), 4800 + 100 * index)
        tokens = torch.tensor(TOKENS[name])
        hidden = randn(4810 + index, *tokens.shape, config["hidden_size"])
        penultimate = randn(4820 + index, *tokens.shape, config["hidden_size"])
        projected = kind is CLIPTextModelWithProjection
        pooled = randn(4830 + index, len(tokens), config["projection_dim" if projected else "hidden_size"])

        def compute(dtype, model=model, tokens=tokens, cotangents=(hidden, penultimate, pooled), projected=projected):
            double = copy.deepcopy(model).to(dtype)
            out = double(tokens, output_hidden_states=True)
            values = {"last_hidden_state": out.last_hidden_state, "penultimate": out.hidden_states[-2],
                      "text_embeds" if projected else "pooled": out.text_embeds if projected else out.pooler_output}
            sum((value * g.to(dtype)).sum() for value, g in zip(values.values(), cotangents)).backward()
            result = {"out/" + key: value for key, value in values.items()}
            # The gradient of a key bias is zero in exact arithmetic (softmax ignores it): nothing to compare.
            result.update({"grad/" + key: p.grad for key, p in sorted(double.named_parameters())
                           if not key.endswith("k_proj.bias")})
            return result

        truth, errors[name] = truth_of(compute)
        truth.update(weights_of(model))
        truth.update({"in/input_ids": tokens, "in/cotangent/last_hidden_state": hidden,
                      "in/cotangent/penultimate": penultimate,
                      "in/cotangent/" + ("text_embeds" if projected else "pooled"): pooled})
        tensors.update({f"{name}/{key}": value for key, value in truth.items()})
        stored = {key: value for key, value in model.config.to_diff_dict().items() if not key.startswith("_")}
        stored.update({"architectures": [kind.__name__], "layer_norm_eps": 1e-5})
        stored.pop("transformers_version", None)
        configs["config_" + name] = json.dumps(dict(sorted({**stored, **config}.items())), default=str)
    save(directory / "clip_text.safetensors", tensors, fp32_error=errors, **configs)
