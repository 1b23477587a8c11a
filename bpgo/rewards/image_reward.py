"""ImageReward (Xu et al. 2023, arXiv 2304.05977): a text encoder that attends to the image.

The reward is `(head([CLS] of BLIP's text encoder, given the image) - mean) / std`. The published
mean of 0.1672 and std of 1.0333 give about -2..+2, and near 1 for good images.

Our folders hold `config.json` (BLIP vision and text configurations, widths of the head, mean and
std), `model.safetensors` and a BERT tokenizer. `THUDM/ImageReward` publishes `ImageReward.pt`
(float32, 1.79 GB) and `med_config.json`, with the tokenizer of `bert-base-uncased`. Code and
weights are under Apache-2.0. As upstream, prompts are not cleaned, characters that BERT's tokenizer
does not know are read as [UNK], and the offset of the crop is rounded.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor, nn

from bpgo.rewards.clip import MEAN, STD
from bpgo.rewards.preprocess import centre_crop, rounded_half
from bpgo.rewards.weights import (
    SAFE,
    fill,
    read_config,
    read_folder,
    read_tensors,
    read_tokenizer_of,
    reading,
    renamed,
    require,
)
from bpgo.tokenization import refuse_unknown_words, tokenize

WEIGHTS, MED, TOKENIZER = "ImageReward.pt", "med_config.json", "bert-base-uncased"
PUBLISHED = {"max_length": 35, "mean": 0.16717362830052426, "std": 1.0333394966054072}
SETTINGS = ("head", "max_length", "mean", "std", "text", "vision")  # what a config.json must have
HEADS = 16  # of the vision encoder, a ViT-L: the shapes do not show it
LAYERS = (0, 2, 4, 6, 7)  # of the published head, those with weights; the others are dropout
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
RENAMES = {  # BLIP's names to those of ImageReward, substitutions applied in order
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
    """`model(pixels, input_ids, attention_mask) -> (B,)` scores.

    config: a dict with the keys vision, text, head, mean and std.
    """

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
        image = self.vision(pixels).last_hidden_state
        # is_decoder stays False in the call, which gives cross-attention without a causal mask, as
        # in upstream's scoring.
        text = self.text(input_ids, attention_mask=attention_mask, encoder_hidden_states=image)
        scores = self.head(text.last_hidden_state[:, 0])[:, 0]
        return (scores - self.config["mean"]) / self.config["std"]


def load(path: str | Path = "THUDM/ImageReward"):
    """`(model, reward)` of a folder, an ImageReward.pt or a hub id.

    `reward(pixels (B, 3, H, W) in [0, 1], prompts) -> (B,)` float32. A hub id downloads the two
    published files, and the tokenizer of BERT; a folder with the published files may hold a
    tokenizer. Raises ValueError for damaged or incomplete weights, for the files of another model
    and for another tokenizer, FileNotFoundError for missing files.
    """
    from huggingface_hub import hf_hub_download

    if isinstance(path, str) and not Path(path).exists():
        hub_id = path
        hf_hub_download(hub_id, MED)  # it is stored next to the weights
        path = hf_hub_download(hub_id, WEIGHTS)
    path = Path(path)
    if path.name == SAFE:
        path = path.parent
    if path.is_file() or (path / WEIGHTS).is_file():
        model, tokenizer = _read_published(path if path.is_file() else path / WEIGHTS)
    else:
        model, tokenizer = read_folder(
            path, "image_reward", ImageReward, SETTINGS, f"{WEIGHTS} and {MED}"
        )
    tokens = model.text.config.vocab_size
    if tokenizer.cls_token_id is None or len(tokenizer) > tokens:
        raise ValueError(
            f"{path} has a tokenizer of {len(tokenizer)} tokens that is not the one of this model, "
            f"a BERT tokenizer with a [CLS] token and at most {tokens} tokens: copy the tokenizer "
            f"that belongs to the model"
        )
    config, side = model.config, model.config["vision"]["image_size"]

    @torch.no_grad()
    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        device = next(model.parameters()).device
        tokens = tokenize(tokenizer, prompts, config["max_length"]).to(device)
        images = centre_crop(pixels.to(device, torch.float32), side, MEAN, STD, rounded_half)
        return model(images, tokens["input_ids"], tokens["attention_mask"])

    score.check_prompts = partial(refuse_unknown_words, tokenizer)
    return model, score


def rename(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The published state dict under ImageReward's names, without unused tensors."""
    ours = {}
    for name, tensor in theirs.items():
        if not name.startswith(UNUSED):
            ours[renamed(name, RENAMES)] = tensor
    return ours


def configuration(weights: dict[str, Tensor], med: dict) -> dict:
    """ImageReward's config from renamed weights and the text encoder's med_config.json.

    `encoder_width` (768) in med is not used, because upstream replaces it with the width of the
    vision encoder (1024). Raises KeyError for what is missing.
    """
    inner, width = weights["vision.encoder.layers.0.mlp.fc1.weight"].shape
    patch = weights["vision.embeddings.patch_embedding.weight"].shape[-1]
    patches = weights["vision.embeddings.position_embedding"].shape[1] - 1
    layers = {name.split(".")[3] for name in weights if name.startswith("vision.encoder.layers.")}
    vision = dict(
        image_size=patch * isqrt(patches),
        patch_size=patch,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=len(layers),
        num_attention_heads=HEADS,
    )
    head = [len(weights[f"head.{i}.weight"]) for i in range(len(LAYERS))]
    return PUBLISHED | {"vision": vision, "text": {key: med[key] for key in TEXT}, "head": head}


def _read_published(file: Path):
    """The model of an ImageReward.pt, and a tokenizer."""
    tensors = read_tensors(file)
    require(file.parent, "image_reward", (file.name,), (MED,))
    med = read_config(file.parent / MED, "image_reward", TEXT)
    with reading(f"{file}, with {MED},", "a complete ImageReward"):
        weights = rename(tensors)
        model = ImageReward(configuration(weights, med))
    fill(model, weights, file)
    return model, read_tokenizer_of(file.parent, TOKENIZER)
