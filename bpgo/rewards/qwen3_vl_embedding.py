"""Qwen3-VL-Embedding (Li et al. 2026, arXiv 2601.04720): a cosine for text alignment.

The metric is the cosine of the embeddings of a video and of its prompt. Qwen3-VL reads a chat: the
instruction as the system's message, the video or the prompt as the user's, and the opening of the
assistant's. The embedding (2048 numbers) is the last hidden state at the last token, scaled to norm
1. Cosines are -1..1; papers report about .67-.69 for good videos. `Qwen/Qwen3-VL-Embedding-2B` is a
transformers folder under Apache-2.0 (`config.json`, `model.safetensors`, the files of a tokenizer).

This follows what `Qwen3VLEmbedder` in the official repository does with a video file: 1 frame per
second (4..64, an even number), each of 128-768 tokens of 32 x 32 pixels, a timestamp before each
pair of frames, and the same default instruction for videos and prompts. The paper appends
<|endoftext|>; the repository leaves that to the published tokenizer, and so does this module.
Frames are rounded to bytes but not compressed, and everything is float32.

Not verified: any number from the published weights, and what sentence-transformers or transformers'
own video processor would give. Both sample and resize the video, and (since transformers 5)
frame it with tokens, in other ways.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bpgo.rewards.preprocess import check_videos
from bpgo.rewards.qwen_vl import VIDEO, check_rate, fit, patchify, refuse_special_tokens
from bpgo.rewards.weights import (
    CONFIG,
    INDEX,
    SAFE,
    TOKENIZERS,
    read_pretrained,
    read_tokenizer,
    require,
)

INSTRUCTION, MEAN, STD = "Represent the user's input.", 0.5, 0.5
CHAT = (
    "<|im_start|>system\n{instruction}<|im_end|>\n"
    "<|im_start|>user\n{content}<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def load(
    path: str | Path = "Qwen/Qwen3-VL-Embedding-2B",
    *,
    instruction: str = INSTRUCTION,
    fps: float = 16.0,
    rate: float = 1.0,
):
    """`(model, reward)` of a folder or hub id.

    `reward(pixels (B, F, 3, H, W) in [0, 1], prompts) -> (B,)` float32 cosines. instruction: for
    the prompts; that of the videos is always INSTRUCTION. fps: frames per second of the videos
    (Wan's: 16). rate: how many of them per second the model sees (`fps` in upstream's code). A
    preset sets these under `reward.options`. Raises ValueError for another model, for incomplete
    weights and for options that cannot be used, OSError for missing files.
    """
    check_rate("fps", fps)
    check_rate("rate", rate)
    model, tokenizer = read_model(path)
    vision = model.config.vision_config
    side = vision.patch_size * vision.spatial_merge_size
    fewest, most = 128 * side * side, 768 * side * side  # pixels of a frame

    def embed(instruction: str, contents: list[str], **seen: Tensor) -> Tensor:
        texts = [CHAT.format(instruction=instruction, content=content) for content in contents]
        tokens = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        ids = tokens["input_ids"].to(model.device)
        mask = tokens["attention_mask"].to(model.device)
        if seen:
            seen["mm_token_type_ids"] = (ids == model.config.video_token_id).int() * 2
        out = model(input_ids=ids, attention_mask=mask, use_cache=False, **seen)
        last = mask.sum(1) - 1
        rows = torch.arange(len(texts), device=last.device)
        return normalize(out.last_hidden_state[rows, last], dim=-1)

    @torch.no_grad()
    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        check_videos(pixels, "qwen3_vl_embedding")
        refuse_special_tokens((VIDEO,), prompts)
        indices = frame_indices(pixels.shape[1], fps, rate)
        frames = fit(pixels[:, indices].to(model.device), side, fewest, most)
        patches, grid = patchify((frames - MEAN) / STD, vision.patch_size)
        content = describe(indices, fps, int(grid[0, 1:].prod()) // 4)
        videos = embed(
            INSTRUCTION, [content] * len(pixels), pixel_values_videos=patches, video_grid_thw=grid
        )
        return (videos * embed(instruction, prompts)).sum(-1)

    score.check_prompts = partial(refuse_special_tokens, (VIDEO,))
    return model, score


def read_model(path: str | Path):
    """`(model, tokenizer)` of a folder or hub id, in float32.

    Raises ValueError for another model, for incomplete weights and for another tokenizer; OSError
    for missing files.
    """
    from transformers import Qwen3VLModel

    if Path(path).exists() or isinstance(path, Path):
        require(Path(path), "qwen3_vl_embedding", (CONFIG,), (SAFE, INDEX), TOKENIZERS)
    model = read_pretrained(Qwen3VLModel, path, "qwen3_vl_embedding")
    tokenizer, video = read_tokenizer(path), model.config.video_token_id
    fits = len(tokenizer) <= model.config.text_config.vocab_size
    if not fits or tokenizer(VIDEO)["input_ids"][:1] != [video]:
        raise ValueError(
            f"the tokenizer of {path} does not read {VIDEO} as token {video}: download the "
            f"tokenizer that belongs to the model"
        )
    return model, tokenizer


def frame_indices(count: int, fps: float, rate: float = 1.0) -> Tensor:
    """Which of `count` frames, at `fps` per second, the model sees at `rate` per second.

    It sees an even number of them, from 4 to 64. Raises ValueError for fewer than 2 frames.
    """
    if count < 2:
        raise ValueError(
            f"Qwen3-VL-Embedding sees pairs of frames, but this video has {count}: "
            f"give it at least 2"
        )
    number = min(max(count / fps * rate, 4), 64, count) // 2 * 2
    return torch.linspace(0, count - 1, int(number)).round().long()


def describe(indices: Tensor, fps: float, tokens: int) -> str:
    """The text of a video in the chat: the mean time and `tokens` of each pair of frames."""
    times = (indices.double() / fps).view(-1, 2).mean(1).tolist()
    parts = [f"<{t:.1f} seconds><|vision_start|>{VIDEO * tokens}<|vision_end|>" for t in times]
    return "".join(parts)
