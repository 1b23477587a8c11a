"""HPSv2 and HPSv2.1 (Wu et al. 2023, arXiv 2306.09341): a CLIP ViT-H-14 tuned on human preferences.

The reward is `cos(image, prompt)`, without the logit scale; upstream's tables show 100 times that.
Its averages over 22 generators are 0.145-0.313 for v2.1 and 0.236-0.279 for v2.0. Code and weights
are under Apache-2.0.

`xswu/HPSv2` publishes `HPS_v2.1_compressed.pt` and `HPS_v2_compressed.pt`, which hold
`{"state_dict": ...}` under open_clip's names. The tokenizer is that of
`laion/CLIP-ViT-H-14-laion2B-s32B-b79K`. Prompts are cleaned first (`as_clip`), as by open_clip's
tokenizer, of which upstream has a copy.
"""

from __future__ import annotations

from functools import partial
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from bpgo.rewards.clip import MEAN, STD
from bpgo.rewards.preprocess import check_images, normalise
from bpgo.rewards.weights import (
    fill,
    read_tensors,
    read_tokenizer_of,
    reading,
    renamed,
    require,
    split_attention,
)
from bpgo.tokenization import as_clip, refuse_unknown_words, tokenize

PUBLISHED = "xswu/HPSv2"
V2_1, V2_0 = "HPS_v2.1_compressed.pt", "HPS_v2_compressed.pt"
TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
HEADS = 16  # of both encoders: the only number of ViT-H-14 that the shapes do not show
RENAMES = {  # open_clip's names to those of transformers, substitutions applied in order
    r"^visual\.proj$": "visual_projection.weight",
    r"^text_projection$": "text_projection.weight",
    r"^visual\.": "vision_model.",
    r"^(?=token_|positional_|transformer\.|ln_final)": "text_model.",
    r"\bpositional_embedding$": "embeddings.position_embedding.weight",
    r"\bclass_embedding$": "embeddings.class_embedding",
    r"\btoken_embedding\.": "embeddings.token_embedding.",
    r"\bconv1\.": "embeddings.patch_embedding.",
    r"\bln_pre\.": "pre_layrnorm.",
    r"\bln_post\.": "post_layernorm.",
    r"\bln_final\.": "final_layer_norm.",
    r"\btransformer\.resblocks\.": "encoder.layers.",
    r"\battn\.": "self_attn.",
    r"\bln_([12])\.": r"layer_norm\1.",
    r"\bmlp\.c_fc\.": "mlp.fc1.",
    r"\bmlp\.c_proj\.": "mlp.fc2.",
}


def load(path: str | Path = PUBLISHED):
    """HPSv2.1: `(model, reward)` of a folder, a .pt file or a hub id.

    `reward(pixels (B, 3, H, W) in [0, 1], prompts) -> (B,)` float32 cosines. A hub id downloads the
    published file, and the tokenizer of ViT-H-14; a folder may hold a tokenizer. Raises ValueError
    for a damaged or incomplete file and for another tokenizer, FileNotFoundError for a missing
    file.
    """
    return _load(path, V2_1)


def load_v2_0(path: str | Path = PUBLISHED):
    """HPSv2, version 2.0, loaded like `load`."""
    return _load(path, V2_0)


def _load(path: str | Path, published: str):
    from huggingface_hub import hf_hub_download
    from transformers import CLIPModel

    if isinstance(path, str) and not Path(path).exists():
        path = hf_hub_download(path, published)
    file = Path(path) if Path(path).is_file() else Path(path) / published
    folder = file.parent
    require(folder, "hpsv2", (file.name,), instead="or the file itself, or a hub id")
    tensors = read_tensors(file, "state_dict")
    with reading(file, "a complete HPSv2 model"):
        weights = rename(tensors)
        model = CLIPModel(configuration(weights))
    fill(model, weights, file)

    tokenizer = read_tokenizer_of(folder, TOKENIZER)
    text, side = model.config.text_config, model.config.vision_config.image_size
    if (len(tokenizer), tokenizer.eos_token_id) != (text.vocab_size, text.eos_token_id):
        # The text encoder is read at the token with the highest id.
        raise ValueError(
            f"the tokenizer of {folder} does not end prompts with the last of {text.vocab_size} "
            f"tokens: use the tokenizer of {TOKENIZER}"
        )

    @torch.no_grad()
    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        # Upstream pads with zeros. The encoder is causal, so what follows the end changes nothing.
        length = text.max_position_embeddings
        tokens = tokenize(tokenizer, prompts, length, as_clip).to(model.device)
        images = preprocess(pixels.to(model.device, torch.float32), side)
        out = model(**tokens, pixel_values=images)
        return (out.image_embeds * out.text_embeds).sum(-1)

    score.check_prompts = partial(refuse_unknown_words, tokenizer, clean=as_clip)
    return model, score


def preprocess(pixels: Tensor, side: int) -> Tensor:
    """Resize the longer side to `side` pixels, pad the other with black, and normalise.

    pixels: (B, 3, H, W) in [0, 1]. Returns (B, 3, side, side). Upstream resizes float tensors, so
    the bicubic is not clamped; it is antialiased, as in torchvision since 0.17 (earlier versions
    were not, which differs by .001-.003 per pixel). Raises ValueError for another shape, such as
    videos.
    """
    check_images(pixels)
    longest = max(pixels.shape[-2:])
    if longest != side:
        size = [round(n * (side / longest)) for n in pixels.shape[-2:]]
        pixels = interpolate(pixels, size=size, mode="bicubic", antialias=True)
    down, right = (side - n for n in pixels.shape[-2:])
    pixels = pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2))
    return normalise(pixels, MEAN, STD)


def rename(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """An open_clip state dict under the names, and in the shapes, of transformers' CLIPModel."""
    ours = {}
    for their_name, tensor in theirs.items():
        name = renamed(their_name, RENAMES)
        if ".in_proj_" in name:
            ours |= split_attention(name, tensor)
        elif name.endswith("_projection.weight"):
            ours[name] = tensor.mT  # open_clip multiplies from the right
        else:
            ours[name] = tensor
    return ours


def configuration(weights: dict[str, Tensor]):
    """The CLIPConfig that fits renamed weights. Raises KeyError for a missing tensor."""
    from transformers import CLIPConfig

    vision, text = _encoder(weights, "vision_model"), _encoder(weights, "text_model")
    patch = weights["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    patches = len(weights["vision_model.embeddings.position_embedding.weight"]) - 1
    tokens = len(weights["text_model.embeddings.token_embedding.weight"])
    length = len(weights["text_model.embeddings.position_embedding.weight"])
    vision |= dict(image_size=patch * isqrt(patches), patch_size=patch)
    text |= dict(vocab_size=tokens, max_position_embeddings=length)
    text |= dict(bos_token_id=tokens - 2, eos_token_id=tokens - 1, pad_token_id=0)
    return CLIPConfig(
        vision_config=vision,
        text_config=text,
        projection_dim=len(weights["text_projection.weight"]),
    )


def _encoder(weights: dict[str, Tensor], prefix: str) -> dict:
    """The sizes of one encoder's layers."""
    layers = f"{prefix}.encoder.layers."
    inner, width = weights[f"{layers}0.mlp.fc1.weight"].shape
    return dict(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=len({n.split(".")[3] for n in weights if n.startswith(layers)}),
        num_attention_heads=HEADS,
        hidden_act="gelu",
    )
