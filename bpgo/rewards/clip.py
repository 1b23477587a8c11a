"""CLIPScore and PickScore: the cosine of the CLIP embeddings of an image and of its prompt.

Both read a folder or hub id of a transformers `CLIPModel`: `config.json`, `model.safetensors` (or
`pytorch_model.bin`, as older models are published) and the files of a tokenizer.

CLIPScore (Hessel et al. 2021, arXiv 2104.08718; CLIP: arXiv 2103.00020) is `cos(image, prompt)`,
without Hessel's `2.5 max(., 0)`. It is about 0.2-0.3 with the published
`openai/clip-vit-large-patch14`. OpenAI's CLIP is under the MIT licence.

PickScore (Kirstain et al. 2023, arXiv 2305.01569) is `exp(logit_scale) cos(image, prompt)`, about
17-24 with the published `yuvalkirstain/PickScore_v1`, a ViT-H-14. Some papers leave out the factor
of 100. Its code is under the MIT licence.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from bpgo.rewards.preprocess import centre_crop
from bpgo.rewards.weights import fill, read_pretrained, read_tensors
from bpgo.tokenization import tokenize

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
OLD, NEW = "pytorch_model.bin", "model.safetensors"


def load(path: str | Path = "openai/clip-vit-large-patch14"):
    """CLIPScore: `(model, reward)` of a folder or hub id.

    `reward(pixels (B, 3, H, W) in [0, 1], prompts) -> (B,)` float32 cosines. Raises ValueError for
    damaged or incomplete weights and for the tokenizer of another model, OSError for missing files.
    """
    return _load(path, logit_scale=False)


def load_pickscore(path: str | Path = "yuvalkirstain/PickScore_v1"):
    """PickScore: like `load`, with the cosine multiplied by the model's `exp(logit_scale)`."""
    return _load(path, logit_scale=True)


def _load(path: str | Path, logit_scale: bool):
    from transformers import AutoTokenizer

    model = read_model(path)
    tokenizer, text = AutoTokenizer.from_pretrained(path), model.config.text_config
    if len(tokenizer) != text.vocab_size:  # transformers makes an empty one if there are no files
        raise ValueError(
            f"the tokenizer of {path} has {len(tokenizer)} tokens, and the text encoder has "
            f"{text.vocab_size}: copy the tokenizer that belongs to the model"
        )
    side, length = model.config.vision_config.image_size, text.max_position_embeddings
    scale = model.logit_scale.exp() if logit_scale else 1.0

    @torch.no_grad()
    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        tokens = tokenize(tokenizer, prompts, length).to(model.device)
        images = centre_crop(pixels.to(model.device, torch.float32), side, MEAN, STD)
        out = model(**tokens, pixel_values=images)
        return scale * (out.image_embeds * out.text_embeds).sum(-1)

    return model, score


def read_model(path: str | Path):
    """The `CLIPModel` of a folder or hub id, in float32.

    Raises ValueError for a file and for damaged or incomplete weights.
    """
    from transformers import CLIPConfig, CLIPModel

    if Path(path).is_file():
        raise ValueError(
            f"{path} is a file: this reward takes a hub id, or a folder with config.json, "
            f"{NEW} or {OLD}, and a tokenizer"
        )
    old = Path(path) / OLD
    if not old.is_file() or (Path(path) / NEW).is_file():
        return read_pretrained(CLIPModel, path)
    # Read here, because the errors of transformers for a damaged file do not name it.
    weights = read_tensors(old)
    for name in [name for name in weights if name.endswith(".position_ids")]:
        del weights[name]  # older versions saved them
    model = CLIPModel(CLIPConfig.from_pretrained(path))
    fill(model, weights, old)
    return model
