"""Rewards that are a cosine of CLIP embeddings: CLIPScore and, with the logit scale, PickScore. Any `CLIPModel` folder or hub id.

CLIPScore (Hessel et al. 2021, arXiv 2104.08718; CLIP: arXiv 2103.00020), in its plain form: `r = cos(picture, prompt)`, without Hessel's
2.5 max(., 0). About 0.2-0.3 with the published `openai/clip-vit-large-patch14`. OpenAI's CLIP is under the MIT licence.
PickScore (Kirstain et al. 2023, arXiv 2305.01569): `r = exp(logit_scale) cos(picture, prompt)`, about 17-24 with the published
`yuvalkirstain/PickScore_v1`, a ViT-H-14; some papers leave the factor of 100 out. Its code is under the MIT licence.
Files: `config.json`, `model.safetensors` or, as older ones are published, `pytorch_model.bin`, and the tokenizer's.
"""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from torch import Tensor, nn

from bpgo.files import read_pt
from bpgo.rewards.preprocess import centre_crop
from bpgo.tokenization import tokenize

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
OLD, NEW = "pytorch_model.bin", "model.safetensors"


def read_tensors(file: Path, within: str | None = None) -> dict[str, Tensor]:
    """The tensors that a published .pt or .bin names at its top, or in its dictionary `within`, on the CPU.

    Raises ValueError if the file is damaged, holds code (which is not run), or has no such dictionary.
    """
    try:
        content = read_pt(file)
    except (
        LookupError,
        AssertionError,
        AttributeError,
        struct.error,
    ) as error:  # of torch's unpickler, on bytes it never wrote
        raise ValueError(
            f"{file} is damaged, or not a file of tensors: download it again"
        ) from error
    if within is not None:
        content = content.get(within)
        if not isinstance(content, dict):
            raise ValueError(
                f"{file} has no {within!r} with tensors in it: is it the published file? Download it again"
            )
    return {name: tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}


def fill(model: nn.Module, weights: dict[str, Tensor], source: str | Path) -> None:
    """Load the weights, as float32, for inference. Raises ValueError, naming one, if any is missing, unknown or misshapen."""
    needed, found = (
        {(name, tensor.shape) for name, tensor in tensors.items()}
        for tensors in (model.state_dict(), weights)
    )
    if wrong := sorted({name for name, _ in needed ^ found}):
        kind, count = type(model).__name__, len(wrong)
        raise ValueError(
            f"{source} holds no whole {kind}: {count} of its tensors are missing, unknown or misshapen, such as {wrong[0]}"
        )
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()})
    model.eval().requires_grad_(False)


def read_model(path: str | Path):
    """The CLIPModel of a folder or hub id, in float32. Raises ValueError for weights that are damaged or not whole."""
    from transformers import CLIPConfig, CLIPModel

    if Path(path).is_file():
        raise ValueError(
            f"{path} is a file: this reward takes a hub id, or a folder with config.json, {NEW} or {OLD}, and a tokenizer"
        )
    old = Path(path) / OLD
    if (
        old.is_file() and not (Path(path) / NEW).is_file()
    ):  # what transformers raises for a damaged one names no file
        model = CLIPModel(CLIPConfig.from_pretrained(path))
        fill(
            model,
            {
                name: tensor
                for name, tensor in read_tensors(old).items()
                if not name.endswith(".position_ids")
            },
            old,
        )
        return model
    model, report = CLIPModel.from_pretrained(
        path, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
    )
    if wrong := sorted(report["missing_keys"] | {name for name, *_ in report["mismatched_keys"]}):
        raise ValueError(
            f"{path} holds no whole CLIPModel: {len(wrong)} of its tensors are missing or misshapen, such as {wrong[0]}"
        )
    return model.eval().requires_grad_(False)


def load(path: str | Path, logit_scale: bool = False):
    """The reward of a CLIPModel: `(model, reward)`, `reward(pixels (B, 3, H, W) in [0, 1], prompts) -> (B,)` float32.

    logit_scale: multiply the cosine by the model's `exp(logit_scale)` (PickScore).
    Raises ValueError for weights that are damaged or not whole and for another model's tokenizer, OSError for missing files.
    """
    from transformers import AutoTokenizer

    model = read_model(path)
    tokenizer, text = AutoTokenizer.from_pretrained(path), model.config.text_config
    if (
        len(tokenizer) != text.vocab_size
    ):  # transformers makes an empty tokenizer where there are no files of one
        raise ValueError(
            f"{path} has a tokenizer of {len(tokenizer)} tokens for a text encoder of {text.vocab_size}: copy the model's own"
        )
    side, length = model.config.vision_config.image_size, text.max_position_embeddings
    scale = model.logit_scale.exp() if logit_scale else 1.0

    @torch.no_grad()
    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        read = tokenize(tokenizer, prompts, length).to(model.device)
        out = model(
            **read,
            pixel_values=centre_crop(pixels.to(model.device, torch.float32), side, MEAN, STD),
        )
        return scale * (out.image_embeds * out.text_embeds).sum(-1)

    return model, score
