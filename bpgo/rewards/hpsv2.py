"""HPSv2 and HPSv2.1 (Wu et al. 2023, arXiv 2306.09341): a CLIP ViT-H-14 tuned on which of two pictures people chose.

`r = cos(picture, prompt)`, without the logit scale; upstream's tables show 100 r. Its averages over 22 generators are 0.145-0.313 for
v2.1 and 0.236-0.279 for v2.0. Code and weights are under Apache-2.0.
Published: `xswu/HPSv2`, `HPS_v2.1_compressed.pt` and `HPS_v2_compressed.pt`, which hold `{"state_dict": ...}` under open_clip's names; its
tokenizer is that of `laion/CLIP-ViT-H-14-laion2B-s32B-b79K`. (Upstream's cleans prompts with ftfy first; odd unicode alone differs.)
"""

from __future__ import annotations

import re
from math import isqrt
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from bpgo.rewards.clip import MEAN, STD, fill, read_tensors
from bpgo.tokenization import tokenize

FILES = {"v2.1": "HPS_v2.1_compressed.pt", "v2.0": "HPS_v2_compressed.pt"}
TOKENIZER = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
HEADS = 16  # of both encoders: the one number of ViT-H-14 that no tensor shows
RENAMES = {  # open_clip's names, one after the other
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


def preprocess(pixels: Tensor, side: int) -> Tensor:
    """Longest side to `side` pixels, black at both sides of the other, then normalised. Returns (B, 3, side, side).

    pixels: (B, 3, H, W) in [0, 1]. Upstream resizes float tensors, so nothing is clamped after the bicubic; antialiased, as torchvision
    does since 0.17 (earlier versions did not: .001-.003 a pixel). Raises ValueError for another shape, such as videos.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(
            f"this reward takes pictures (batch, 3, height, width) in [0, 1], not {tuple(pixels.shape)}"
        )
    if (longest := max(pixels.shape[-2:])) != side:
        size = [round(n * (side / longest)) for n in pixels.shape[-2:]]
        pixels = interpolate(pixels, size=size, mode="bicubic", antialias=True)
    down, right = (side - n for n in pixels.shape[-2:])
    pixels = pad(pixels, (right // 2, right - right // 2, down // 2, down - down // 2))
    return (pixels - pixels.new_tensor(MEAN)[:, None, None]) / pixels.new_tensor(STD)[:, None, None]


def rename(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """An open_clip state dict under the names, and in the shapes, of transformers' CLIPModel."""
    ours = {}
    for name, tensor in theirs.items():
        for pattern, new in RENAMES.items():
            name = re.sub(pattern, new, name)
        if ".in_proj_" in name:
            ours |= {
                name.replace("in_proj_", f"{x}_proj."): part
                for x, part in zip("qkv", tensor.chunk(3), strict=True)
            }
        else:
            ours[name] = (
                tensor.T if name.endswith("_projection.weight") else tensor
            )  # theirs multiply from the right
    return ours


def configuration(weights: dict[str, Tensor]):
    """The CLIPConfig of renamed weights, read off their shapes. Raises KeyError for a missing tensor."""
    from transformers import CLIPConfig

    def encoder(prefix: str) -> dict:
        layers = {
            name.split(".")[3] for name in weights if name.startswith(f"{prefix}.encoder.layers.")
        }
        inner, width = weights[f"{prefix}.encoder.layers.0.mlp.fc1.weight"].shape
        return dict(
            hidden_size=width,
            intermediate_size=inner,
            num_hidden_layers=len(layers),
            num_attention_heads=HEADS,
            hidden_act="gelu",
        )

    patch = weights["vision_model.embeddings.patch_embedding.weight"].shape[-1]
    side = patch * isqrt(len(weights["vision_model.embeddings.position_embedding.weight"]) - 1)
    words, length = (
        len(weights[f"text_model.embeddings.{x}_embedding.weight"]) for x in ("token", "position")
    )
    return CLIPConfig(
        vision_config=encoder("vision_model") | dict(image_size=side, patch_size=patch),
        text_config=encoder("text_model")
        | dict(
            vocab_size=words,
            max_position_embeddings=length,
            bos_token_id=words - 2,
            eos_token_id=words - 1,
            pad_token_id=0,
        ),
        projection_dim=len(weights["text_projection.weight"]),
    )


def load(path: str | Path, version: str = "v2.1"):
    """`(model, reward)` of a folder, a .pt or a hub id: `reward(pixels (B, 3, H, W) in [0, 1], prompts) -> (B,)` float32 cosines.

    version: v2.1 or v2.0, which file of a folder or hub id is read. A hub id downloads it, and ViT-H-14's tokenizer; a folder may hold a
    tokenizer. Raises ValueError for a file that is damaged or not whole and for another tokenizer, FileNotFoundError for a missing file.
    """
    from huggingface_hub import hf_hub_download
    from transformers import AutoTokenizer, CLIPModel

    if isinstance(path, str) and not Path(path).exists():
        path = hf_hub_download(path, FILES[version])
    file = Path(path) if Path(path).is_file() else Path(path) / FILES[version]
    if not file.is_file():
        raise FileNotFoundError(
            f"{path} has no {FILES[version]}: give the folder that holds it, the file itself, or a hub id"
        )
    folder, weights = file.parent, rename(read_tensors(file, "state_dict"))
    try:
        config = configuration(weights)
    except KeyError as error:
        raise ValueError(f"{file} holds no whole HPSv2 model: {error.args[0]} is missing") from None
    model = CLIPModel(config)
    fill(model, weights, file)
    tokenizer = AutoTokenizer.from_pretrained(
        folder if any(folder.glob("tokenizer*")) else TOKENIZER
    )
    text, side = model.config.text_config, model.config.vision_config.image_size
    if (len(tokenizer), tokenizer.eos_token_id) != (
        text.vocab_size,
        text.eos_token_id,
    ):  # the text is read at the highest id
        raise ValueError(
            f"the tokenizer of {folder} ends no prompt with the last of {text.vocab_size} tokens: use that of {TOKENIZER}"
        )

    @torch.no_grad()
    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        # upstream pads prompts with zeros; what stands after the end token changes nothing, since the encoder is causal
        read = tokenize(tokenizer, prompts, text.max_position_embeddings).to(model.device)
        out = model(**read, pixel_values=preprocess(pixels.to(model.device, torch.float32), side))
        return (out.image_embeds * out.text_embeds).sum(-1)

    return model, score
