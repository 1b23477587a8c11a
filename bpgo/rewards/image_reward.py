"""ImageReward (Xu et al. 2023, arXiv 2304.05977): BLIP text encoder that attends to the picture, a linear head on [CLS].

`r = (head(text([CLS] | picture)) - mean) / std`; published mean 0.1672 and std 1.0333 put it on about -2..+2, good pictures near 1.
Folder layout: `config.json` (BLIP vision and text configurations, head widths, mean, std), `model.safetensors`, a BERT tokenizer.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from ..text import tokenize
from .preprocess import centre_crop

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ImageReward(nn.Module):
    """`model(pixels, input_ids, attention_mask) -> (B,)` scores. config: keys vision, text, head, mean, std."""

    def __init__(self, config: dict):
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        self.config = config
        vision = BlipVisionConfig(**{"layer_norm_eps": 1e-6} | config["vision"])
        text = BlipTextConfig(is_decoder=True, encoder_hidden_size=vision.hidden_size, **config["text"])
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        widths = [text.hidden_size, *config["head"]]
        self.head = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        picture = self.vision(pixels).last_hidden_state
        # is_decoder stays False in the call: cross-attention without a causal mask, as upstream scores
        text = self.text(input_ids, attention_mask=attention_mask, encoder_hidden_states=picture)
        return (self.head(text.last_hidden_state[:, 0])[:, 0] - self.config["mean"]) / self.config["std"]


def load(path: str | Path):
    """The reward of an ImageReward folder: `reward(pixels (B, 3, H, W) in [0, 1], prompts) -> (B,)` float32."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    path = Path(path)
    config = json.loads((path / "config.json").read_text())
    if missing := {"vision", "text", "head", "max_length", "mean", "std"} - config.keys():
        raise ValueError(f"{path} is no image_reward folder: its config.json lacks {', '.join(sorted(missing))}")
    model = ImageReward(config)
    model.load_state_dict({k: v.float() for k, v in load_file(path / "model.safetensors").items()})
    model.eval().requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(path)
    side = model.config["vision"]["image_size"]

    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        device = next(model.parameters()).device
        text = tokenize(tokenizer, prompts, model.config["max_length"]).to(device)
        return model(centre_crop(pixels.to(device), side, MEAN, STD), text["input_ids"], text["attention_mask"])

    return model, torch.no_grad()(score)
