"""Rewards that are a cosine of CLIP embeddings: CLIPScore and, with the logit scale, PickScore (arXiv 2305.01569).

Any `CLIPModel` folder or hub id. CLIPScore is the plain cosine (about 0.2-0.3 for ViT-L/14); PickScore is `exp(logit_scale) * cosine`
(about 17-24).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..text import tokenize
from .preprocess import centre_crop

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def load(path, logit_scale: bool = False):
    """The reward of a CLIPModel: `(model, reward)`, `reward(pixels (B, 3, H, W) in [0, 1], prompts) -> (B,)` float32.

    logit_scale: multiply the cosine by the model's `exp(logit_scale)` (PickScore).
    """
    from transformers import AutoTokenizer, CLIPModel

    model, report = CLIPModel.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{path} holds no whole CLIPModel: {len(missing)} of its tensors are missing, such as {missing[0]}")
    model.eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(path)
    side, length = model.config.vision_config.image_size, model.config.text_config.max_position_embeddings
    scale = model.logit_scale.exp() if logit_scale else 1.0

    @torch.no_grad()
    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        device = model.device
        text = tokenize(tokenizer, prompts, length).to(device)
        out = model(**text, pixel_values=centre_crop(pixels.to(device), side, MEAN, STD))
        return scale * (out.image_embeds * out.text_embeds).sum(-1)

    return model, score
