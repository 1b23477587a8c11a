"""Qwen3-VL-Embedding (Li et al. 2026, arXiv 2601.04720): cosine of a video's embedding and its prompt's, a metric of text alignment.

Qwen3-VL reads a chat: the instruction as system message, the video or the prompt as the user's, then the assistant's opening. The last
token's last hidden state, at length 1, is the embedding (2048 numbers). Cosines are -1..1; papers report about .67-.69 for good videos.
Published: `Qwen/Qwen3-VL-Embedding-2B`, Apache-2.0: a transformers folder (`config.json`, `model.safetensors`, a tokenizer's files).

As the official repository's `Qwen3VLEmbedder` does with a video file: 1 frame a second (4..64, an even number), each 128-768 tokens of
32 x 32 pixels, a time before each pair of frames, the same default instruction for videos and prompts. The paper appends <|endoftext|>, the
repository leaves that to the published tokenizer, and so does this. Frames are rounded to bytes but not compressed; all is float32.
Not verified: any number of the published weights, and what sentence-transformers or transformers' own video processor would give, which
samples, resizes and (since transformers 5) frames the video with tokens in other ways.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bpgo.rewards.video_align import VIDEO, fit, patchify

INSTRUCTION, MEAN, STD = "Represent the user's input.", 0.5, 0.5
CHAT = "<|im_start|>system\n{instruction}<|im_end|>\n<|im_start|>user\n{content}<|im_end|>\n<|im_start|>assistant\n"


def frame_indices(count: int, fps: float) -> Tensor:
    """Which of `count` frames at `fps` a second are seen: one a second, 4..64, an even number. Raises ValueError for fewer than 2."""
    if count < 2:
        raise ValueError(
            f"Qwen3-VL-Embedding sees pairs of frames and this video has {count}: give it at least 2"
        )
    number = min(max(count / fps, 4), 64, count) // 2 * 2
    return torch.linspace(0, count - 1, int(number)).round().long()


def describe(indices: Tensor, fps: float, tokens: int) -> str:
    """What stands for a video in the chat: for each pair of frames its mean time, and `tokens` places for what is seen."""
    pairs = (indices.double() / fps).view(-1, 2).mean(1).tolist()
    return "".join(
        f"<{time:.1f} seconds><|vision_start|>{VIDEO * tokens}<|vision_end|>" for time in pairs
    )


def read_model(path: str | Path):
    """`(model, tokenizer)` of a folder or hub id, in float32. Raises ValueError for another model, and for weights that are not whole."""
    from transformers import AutoConfig, AutoTokenizer, Qwen3VLModel

    if Path(path).is_file():
        raise ValueError(
            f"{path} is a file: give its folder, with config.json and a tokenizer, or a hub id"
        )
    if (
        kind := AutoConfig.from_pretrained(path).model_type
    ) != "qwen3_vl":  # transformers would make a Qwen3-VL of its own sizes
        raise ValueError(
            f"{path} holds a {kind}, no qwen3_vl: give Qwen/Qwen3-VL-Embedding-2B, or a folder of it"
        )
    model, report = Qwen3VLModel.from_pretrained(
        path, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
    )
    if wrong := sorted(report["missing_keys"] | {name for name, *_ in report["mismatched_keys"]}):
        raise ValueError(
            f"{path} holds no whole Qwen3VLModel: {len(wrong)} of its tensors are missing or misshapen, such as {wrong[0]}"
        )
    tokenizer, video = AutoTokenizer.from_pretrained(path), model.config.video_token_id
    if len(tokenizer) > model.config.text_config.vocab_size or tokenizer(VIDEO)["input_ids"][
        :1
    ] != [video]:
        raise ValueError(
            f"the tokenizer of {path} does not read {VIDEO} as token {video}: download the model's own"
        )
    return model.eval().requires_grad_(False), tokenizer


def load(path: str | Path, instruction: str = INSTRUCTION, fps: float = 16.0):
    """`(model, reward)` of a folder or hub id: `reward(pixels (B, F, 3, H, W) in [0, 1], prompts) -> (B,)` float32 cosines.

    instruction: for the prompts (the videos' is always INSTRUCTION). fps: frames a second of the videos (16: Wan's).
    Raises ValueError for another model and for weights that are not whole, OSError for missing files.
    """
    model, tokenizer = read_model(path)
    vision = model.config.vision_config
    side = vision.patch_size * vision.spatial_merge_size

    def embed(instruction: str, contents: list[str], **seen: Tensor) -> Tensor:
        texts = [CHAT.format(instruction=instruction, content=content) for content in contents]
        read = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").to(
            model.device
        )
        if seen:
            seen["mm_token_type_ids"] = (read["input_ids"] == model.config.video_token_id).int() * 2
        states = model(
            input_ids=read["input_ids"],
            attention_mask=read["attention_mask"],
            use_cache=False,
            **seen,
        ).last_hidden_state
        last = read["attention_mask"].sum(1) - 1
        return normalize(states[torch.arange(len(texts), device=last.device), last], dim=-1)

    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        if pixels.ndim != 5 or pixels.shape[2] != 3:
            raise ValueError(
                f"qwen3_vl_embedding takes videos (batch, frames, 3, height, width) in [0, 1], not {tuple(pixels.shape)}"
            )
        if any(VIDEO in prompt for prompt in prompts):
            raise ValueError(f"a prompt holds {VIDEO}, which stands for a video: leave it out")
        indices = frame_indices(pixels.shape[1], fps)
        frames = fit(
            pixels[:, indices].to(model.device), side, 128 * side * side, 768 * side * side
        )
        patches, grid = patchify((frames - MEAN) / STD, vision.patch_size)
        content = describe(indices, fps, int(grid[0, 1:].prod()) // 4)
        videos = embed(
            INSTRUCTION, [content] * len(pixels), pixel_values_videos=patches, video_grid_thw=grid
        )
        return (videos * embed(instruction, prompts)).sum(-1)

    return model, torch.no_grad()(score)
