"""CLIPScore and PickScore: the cosine of the CLIP embeddings of an image and of its prompt.

Both read a folder or hub id of a transformers `CLIPModel`: `config.json`, `model.safetensors` (or
`pytorch_model.bin`, as older models are published) and the files of a tokenizer.

CLIPScore (Hessel et al. 2021, arXiv 2104.08718; CLIP: arXiv 2103.00020) is `cos(image, prompt)`,
without Hessel's `2.5 max(., 0)`. It is about 0.2-0.3 with the published
`openai/clip-vit-large-patch14`. Prompts are cleaned (`as_clip`) and the offset of the crop is
rounded as in OpenAI's package clip, which ImageReward's CLIPScore uses too; transformers'
CLIPProcessor does not clean and rounds down. OpenAI's CLIP is under the MIT licence.

PickScore (Kirstain et al. 2023, arXiv 2305.01569) is `exp(logit_scale) cos(image, prompt)`, about
17-24 with the published `yuvalkirstain/PickScore_v1`, a ViT-H-14. Some papers leave out the factor
of 100. Upstream uses transformers' CLIPProcessor, so prompts are not cleaned, and the offset of the
crop is rounded down. Its code is under the MIT licence.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from bpgo.rewards.preprocess import centre_crop, floored_half, rounded_half
from bpgo.rewards.weights import (
    CONFIG,
    INDEX,
    OLD,
    SAFE,
    TOKENIZERS,
    check_model_type,
    fill,
    read_pretrained,
    read_tensors,
    read_tokenizer,
    reading,
    require,
)
from bpgo.tokenization import as_clip, refuse_unknown_words, tokenize

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def load(path: str | Path = "openai/clip-vit-large-patch14"):
    """CLIPScore: `(model, reward)` of a folder or hub id.

    `reward(pixels (B, 3, H, W) in [0, 1], prompts) -> (B,)` float32 cosines. Raises ValueError for
    damaged or incomplete weights, for another model and for the tokenizer of another model, OSError
    for missing files.
    """
    model, tokenizer = _read(path, "clip")
    return model, _cosine(model, tokenizer, as_clip, rounded_half)


def load_pickscore(path: str | Path = "yuvalkirstain/PickScore_v1"):
    """PickScore: like `load`, with the cosine multiplied by the model's `exp(logit_scale)`."""
    model, tokenizer = _read(path, "pickscore")
    return model, _cosine(model, tokenizer, str, floored_half, model.logit_scale.exp())


def _cosine(
    model, tokenizer, clean: Callable[[str], str], half: Callable[[int], int], scale=1.0
) -> Callable:
    """The reward: a cosine times `scale`."""
    side = model.config.vision_config.image_size
    length = model.config.text_config.max_position_embeddings

    @torch.no_grad()
    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        tokens = tokenize(tokenizer, prompts, length, clean).to(model.device)
        images = centre_crop(pixels.to(model.device, torch.float32), side, MEAN, STD, half)
        out = model(**tokens, pixel_values=images)
        return scale * (out.image_embeds * out.text_embeds).sum(-1)

    score.check_prompts = partial(refuse_unknown_words, tokenizer, clean=clean)
    return score


def _read(path: str | Path, reward: str):
    """The model and the tokenizer."""
    model = read_model(path, reward)
    tokenizer, text = read_tokenizer(path), model.config.text_config
    if len(tokenizer) != text.vocab_size:
        raise ValueError(
            f"the tokenizer of {path} has {len(tokenizer)} tokens, and the text encoder has "
            f"{text.vocab_size}: copy the tokenizer that belongs to the model"
        )
    return model, tokenizer


def read_model(path: str | Path, reward: str = "clip"):
    """The `CLIPModel` of a folder or hub id, in float32.

    Raises ValueError for a file, for another model and for damaged or incomplete weights, OSError
    for missing files.
    """
    from transformers import CLIPConfig, CLIPModel

    folder = Path(path)
    if folder.exists() or isinstance(path, Path):
        require(folder, reward, (CONFIG,), (SAFE, INDEX, OLD), TOKENIZERS)
    if not (folder / OLD).is_file() or (folder / SAFE).is_file() or (folder / INDEX).is_file():
        return read_pretrained(CLIPModel, path, reward)
    # Read here, because the errors of transformers for a damaged file do not name it.
    weights = read_tensors(folder / OLD)
    for name in [name for name in weights if name.endswith(".position_ids")]:
        del weights[name]  # older versions saved them
    check_model_type(CLIPModel, folder, reward)
    with reading(folder / CONFIG, f"a config of {reward}"):
        model = CLIPModel(CLIPConfig.from_pretrained(folder))
    fill(model, weights, folder / OLD)
    return model
