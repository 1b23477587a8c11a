"""ImageReward (Xu et al. 2023, arXiv 2304.05977): BLIP text encoder that attends to the picture, a linear head on [CLS].

`r = (head(text([CLS] | picture)) - mean) / std`; published mean 0.1672 and std 1.0333 put it on about -2..+2, good pictures near 1.
Our folders: `config.json` (BLIP vision and text configurations, head widths, mean, std), `model.safetensors`, a BERT tokenizer.
Published: `THUDM/ImageReward`, `ImageReward.pt` (float32, 1.79 GB) and `med_config.json`, with the tokenizer of `bert-base-uncased`. Code
and weights are under Apache-2.0. Upstream resizes with PIL, to bytes, and rounds the crop's offset where ours is cut: at most one pixel.
"""

from __future__ import annotations

import json
import re
from itertools import pairwise
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from bpgo.rewards.clip import MEAN, STD, fill, read_tensors
from bpgo.rewards.preprocess import centre_crop
from bpgo.tokenization import tokenize

WEIGHTS, MED, TOKENIZER = "ImageReward.pt", "med_config.json", "bert-base-uncased"
PUBLISHED = {"max_length": 35, "mean": 0.16717362830052426, "std": 1.0333394966054072}
HEADS = 16  # of the vision encoder, a ViT-L: no tensor shows them
LAYERS = (0, 2, 4, 6, 7)  # of the published head that have weights; the others are dropout
TEXT = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "layer_norm_eps",
    "hidden_act",
    "pad_token_id",
)
UNUSED = ("blip.vision_proj.", "blip.text_proj.", "blip.text_encoder.embeddings.position_ids")
RENAMES = {  # BLIP's names, one after the other
    r"^blip\.text_encoder\.": "text.",
    r"^blip\.visual_encoder\.": "vision.",
    r"^vision\.cls_token$": "vision.embeddings.class_embedding",
    r"^vision\.pos_embed$": "vision.embeddings.position_embedding",
    r"^vision\.patch_embed\.proj\.": "vision.embeddings.patch_embedding.",
    r"^vision\.norm\.": "vision.post_layernorm.",
    r"^vision\.blocks\.": "vision.encoder.layers.",
    r"^(vision\..*)\.norm([12])\.": r"\1.layer_norm\2.",
    r"^(vision\..*)\.attn\.qkv\.": r"\1.self_attn.qkv.",
    r"^(vision\..*)\.attn\.proj\.": r"\1.self_attn.projection.",
} | {rf"^mlp\.layers\.{place}\.": f"head.{i}." for i, place in enumerate(LAYERS)}


class ImageReward(nn.Module):
    """`model(pixels, input_ids, attention_mask) -> (B,)` scores. config: keys vision, text, head, mean, std."""

    def __init__(self, config: dict):
        from transformers import BlipTextConfig, BlipTextModel, BlipVisionConfig, BlipVisionModel

        super().__init__()
        self.config = config
        vision = BlipVisionConfig(**{"layer_norm_eps": 1e-6} | config["vision"])
        text = BlipTextConfig(
            is_decoder=True, encoder_hidden_size=vision.hidden_size, **config["text"]
        )
        self.vision = BlipVisionModel(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        widths = [text.hidden_size, *config["head"]]
        self.head = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(widths)))

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        picture = self.vision(pixels).last_hidden_state
        # is_decoder stays False in the call: cross-attention without a causal mask, as upstream scores
        text = self.text(input_ids, attention_mask=attention_mask, encoder_hidden_states=picture)
        return (self.head(text.last_hidden_state[:, 0])[:, 0] - self.config["mean"]) / self.config[
            "std"
        ]


def rename(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict under ImageReward's names, without what its score never uses."""
    ours = {}
    for name, tensor in theirs.items():
        if not name.startswith(UNUSED):
            for pattern, new in RENAMES.items():
                name = re.sub(pattern, new, name)
            ours[name] = tensor
    return ours


def configuration(weights: dict[str, Tensor], med: dict) -> dict:
    """ImageReward's config from renamed weights and the text encoder's med_config.json. Raises KeyError for what is missing.

    med's `encoder_width` (768) is not read: upstream replaces it with the width of the vision encoder (1024).
    """
    inner, width = weights["vision.encoder.layers.0.mlp.fc1.weight"].shape
    patch = weights["vision.embeddings.patch_embedding.weight"].shape[-1]
    side = patch * isqrt(weights["vision.embeddings.position_embedding"].shape[1] - 1)
    layers = {name.split(".")[3] for name in weights if name.startswith("vision.encoder.layers.")}
    vision = dict(
        image_size=side,
        patch_size=patch,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=len(layers),
        num_attention_heads=HEADS,
    )
    head = [len(weights[f"head.{i}.weight"]) for i in range(len(LAYERS))]
    return PUBLISHED | {"vision": vision, "text": {key: med[key] for key in TEXT}, "head": head}


def load(path: str | Path):
    """`(model, reward)` of a folder, an ImageReward.pt or a hub id: `reward(pixels (B, 3, H, W) in [0, 1], prompts) -> (B,)` float32.

    A hub id downloads the two published files, and BERT's tokenizer; a folder of theirs may hold a tokenizer. Raises ValueError for weights
    that are damaged or not whole and for a config.json of something else, FileNotFoundError for missing files.
    """
    from huggingface_hub import hf_hub_download
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    if isinstance(path, str) and not Path(path).exists():
        _, path = (hf_hub_download(path, name) for name in (MED, WEIGHTS))
    file = Path(path) if Path(path).is_file() else Path(path) / WEIGHTS
    source = folder = file.parent
    if file.is_file():
        weights, source = (
            rename(read_tensors(file)),
            folder if any(folder.glob("tokenizer*")) else TOKENIZER,
        )
        try:
            config = configuration(weights, json.loads((folder / MED).read_text()))
        except KeyError as error:
            raise ValueError(
                f"{file}, with {MED}, holds no whole ImageReward: {error.args[0]} is missing"
            ) from None
    else:
        file = folder / "model.safetensors"
        config = json.loads((folder / "config.json").read_text())
        if missing := {"vision", "text", "head", "max_length", "mean", "std"} - config.keys():
            raise ValueError(
                f"{path} is no image_reward folder: its config.json lacks {', '.join(sorted(missing))}"
            )
        weights = load_file(file)
    model = ImageReward(config)
    fill(model, weights, file)
    tokenizer, side = AutoTokenizer.from_pretrained(source), config["vision"]["image_size"]

    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        device = next(model.parameters()).device
        text = tokenize(tokenizer, prompts, config["max_length"]).to(device)
        return model(
            centre_crop(pixels.to(device, torch.float32), side, MEAN, STD),
            text["input_ids"],
            text["attention_mask"],
        )

    return model, torch.no_grad()(score)
