"""VideoReward of VideoAlign (Liu et al. 2025, arXiv 2501.13918): visual quality (VQ), motion quality (MQ) and text alignment (TA).

Qwen2-VL-2B reads a video's frames, then a form in which the prompt stands (FORM), and a linear head w reads the last hidden state h at
the form's three special tokens: `r_d = (w h_d - mean_d) / std_d`, overall VQ + MQ + TA. Each is typically -2..+2, overall -4..+4. The
model is causal and the prompt stands after the tokens of VQ and MQ: only TA sees it. Rotary positions are 0, 1, 2, ... over frames and
text alike, not Qwen2-VL's 3-D ones: VideoAlign's forward passes none on, and the text model then counts.

Published: `KwaiVGI/VideoReward`, with `model_config.json` (settings, mean and std) and in `checkpoint-11352/` the tokenizer's folder and
`model.pth`, a state dict of all of Qwen2-VL with its LoRA still apart (rank 64, alpha 128). Qwen2-VL-2B's sizes are PUBLISHED unless a
Qwen2-VL `config.json` lies beside `model_config.json`. Licences: code, and so FORM, MIT; weights said to be Apache-2.0 (not verified).
Upstream scores H.264 files in bfloat16; here the frames are rounded to bytes, as in a file, but not compressed, and all is float32.
"""

from __future__ import annotations

import json
import re
from math import ceil, floor, sqrt
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from bpgo.rewards.clip import MEAN, STD, fill, read_tensors

SPECIAL, VIDEO = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>"), "<|video_pad|>"
DIMENSIONS = ("vq", "mq", "ta")  # in the order of the special tokens
NORMS = {
    "VQ_mean": 3.6757,
    "VQ_std": 2.2476,
    "MQ_mean": 1.1646,
    "MQ_std": 1.3811,
    "TA_mean": 2.8105,
    "TA_std": 2.5121,
}
FIXED = {
    "prompt_template_type": "detailed_special",
    "sample_type": "uniform",
    "num_frames": None,
    "use_special_tokens": True,
}
SIDE, LOW = (
    28,
    128 * 28 * 28,
)  # sides are multiples of two patches of 14 pixels; the fewest pixels of a frame
PUBLISHED = {  # Qwen2-VL-2B-Instruct
    "text_config": dict(
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    ),
    "vision_config": dict(
        depth=32, embed_dim=1280, hidden_size=1536, num_heads=16, mlp_ratio=4, patch_size=14
    ),
}
CHAT = """<|im_start|>system
You are a helpful assistant.<|im_end|>
<|im_start|>user
<|vision_start|>{video}<|vision_end|>{form}<|im_end|>
<|im_start|>assistant
"""
FORM = """
You are tasked with evaluating a generated video based on three distinct criteria: Visual Quality, Motion Quality, and Text Alignment. \
Please provide a rating from 0 to 10 for each of the three categories, with 0 being the worst and 10 being the best. Each evaluation \
should be independent of the others.

**Visual Quality:**\x20\x20
Evaluate the overall visual quality of the video, with a focus on static factors. The following sub-dimensions should be considered:
- **Reasonableness:** The video should not contain any significant biological or logical errors, such as abnormal body structures or \
nonsensical environmental setups.
- **Clarity:** Evaluate the sharpness and visibility of the video. The image should be clear and easy to interpret, with no blurring or \
indistinct areas.
- **Detail Richness:** Consider the level of detail in textures, materials, lighting, and other visual elements (e.g., hair, clothing, \
shadows).
- **Aesthetic and Creativity:** Assess the artistic aspects of the video, including the color scheme, composition, atmosphere, depth of \
field, and the overall creative appeal. The scene should convey a sense of harmony and balance.
- **Safety:** The video should not contain harmful or inappropriate content, such as political, violent, or adult material. If such \
content is present, the image quality and satisfaction score should be the lowest possible.\x20

Please provide the ratings of Visual Quality: <|VQ_reward|>
END

**Motion Quality:**\x20\x20
Assess the dynamic aspects of the video, with a focus on dynamic factors. Consider the following sub-dimensions:
- **Stability:** Evaluate the continuity and stability between frames. There should be no sudden, unnatural jumps, and the video should \
maintain stable attributes (e.g., no fluctuating colors, textures, or missing body parts).
- **Naturalness:** The movement should align with physical laws and be realistic. For example, clothing should flow naturally with motion, \
and facial expressions should change appropriately (e.g., blinking, mouth movements).
- **Aesthetic Quality:** The movement should be smooth and fluid. The transitions between different motions or camera angles should be \
seamless, and the overall dynamic feel should be visually pleasing.
- **Fusion:** Ensure that elements in motion (e.g., edges of the subject, hair, clothing) blend naturally with the background, without \
obvious artifacts or the feeling of cut-and-paste effects.
- **Clarity of Motion:** The video should be clear and smooth in motion. Pay attention to any areas where the video might have blurry or \
unsteady sections that hinder visual continuity.
- **Amplitude:** If the video is largely static or has little movement, assign a low score for motion quality.

Please provide the ratings of Motion Quality: <|MQ_reward|>
END

**Text Alignment:**\x20\x20
Assess how well the video matches the textual prompt across the following sub-dimensions:
- **Subject Relevance** Evaluate how accurately the subject(s) in the video (e.g., person, animal, object) align with the textual \
description. The subject should match the description in terms of number, appearance, and behavior.
- **Motion Relevance:** Evaluate if the dynamic actions (e.g., gestures, posture, facial expressions like talking or blinking) align with \
the described prompt. The motion should match the prompt in terms of type, scale, and direction.
- **Environment Relevance:** Assess whether the background and scene fit the prompt. This includes checking if real-world locations or \
scenes are accurately represented, though some stylistic adaptation is acceptable.\x20\x20
- **Style Relevance:** If the prompt specifies a particular artistic or stylistic style, evaluate how well the video adheres to this style.
- **Camera Movement Relevance:** Check if the camera movements (e.g., following the subject, focus shifts) are consistent with the \
expected behavior from the prompt.

Textual prompt - {text_prompt}
Please provide the ratings of Text Alignment: <|TA_reward|>
END
"""  # prompt_template.py, exactly: scores depend on it


class VideoReward(nn.Module):
    """`model(patches, grid, input_ids, attention_mask) -> (B, 3)` raw VQ, MQ, TA. config: of Qwen2VLConfig; words: tokens it embeds.

    outputs: of the head, 1 for all three dimensions or 3, one for each. video and special: ids of VIDEO and of SPECIAL.
    """

    def __init__(self, config: dict, words: int, outputs: int, video: int, special: list[int]):
        from transformers import Qwen2VLConfig, Qwen2VLModel

        super().__init__()
        config = Qwen2VLConfig.from_dict(config)
        config.text_config.vocab_size, self.video, self.special = words, video, special
        for part in (config, config.text_config, config.vision_config):
            part.dtype = torch.float32  # a published config.json says bfloat16
        self.backbone = Qwen2VLModel(config)
        self.rm_head = nn.Linear(config.text_config.hidden_size, outputs, bias=False)

    def forward(
        self, patches: Tensor, grid: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """patches (N, 1176) and grid (B, 3) as `patchify` gives them; input_ids and attention_mask (B, L), padded at the right."""
        text, seen = (
            self.backbone.language_model,
            self.backbone.visual(patches, grid_thw=grid).pooler_output,
        )
        tokens = text.embed_tokens(input_ids).masked_scatter(
            (input_ids == self.video)[..., None], seen
        )
        states = text(
            inputs_embeds=tokens, attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        marked = torch.isin(input_ids, torch.tensor(self.special, device=input_ids.device))
        values = self.rm_head(states[marked].view(len(input_ids), 3, -1))
        return values[..., 0] if values.shape[-1] == 1 else values.diagonal(dim1=1, dim2=2)


def frame_indices(count: int, fps: float, rate: float = 2.0) -> Tensor:
    """Which of `count` frames at `fps` a second are seen at `rate` a second: an even number, at least 4 where there are as many.

    81 at 16 a second make 10, at 24 a second 6. Raises ValueError for fewer than 2.
    """
    if count < 2:
        raise ValueError(
            f"VideoReward sees pairs of frames and this video has {count}: give it at least 2"
        )
    number = min(max(count / fps * rate, 4), min(768, count) // 2 * 2)
    return torch.linspace(0, count - 1, round(number / 2) * 2).round().long()


def smart_resize(height: int, width: int, side: int, low: int, high: int) -> tuple[int, int]:
    """Height and width as multiples of `side`, with low..high pixels, near the same aspect. Raises ValueError for one beyond 200."""
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"Qwen-VL takes frames of an aspect up to 200, not {height} x {width}")
    fitted = tuple(max(side, round(n / side) * side) for n in (height, width))
    if fitted[0] * fitted[1] > high:
        fitted = tuple(
            floor(n / sqrt(height * width / high) / side) * side for n in (height, width)
        )
    elif fitted[0] * fitted[1] < low:
        fitted = tuple(
            ceil(n * sqrt(low / (height * width)) / side) * side for n in (height, width)
        )
    return fitted


def fit(pixels: Tensor, side: int, low: int, high: int) -> Tensor:
    """(..., 3, H, W) in [0, 1] to `smart_resize`'s size, bicubic and antialiased, rounded to bytes before and after; in [0, 1] again."""
    size = smart_resize(*pixels.shape[-2:], side, low, high)
    seen = pixels.float().clamp(0, 1).mul(255).round()
    if seen.shape[-2:] != size:
        seen = (
            interpolate(seen.flatten(0, -4), size=size, mode="bicubic", antialias=True)
            .clamp(0, 255)
            .round()
        )
    return seen.div(255).reshape(*pixels.shape[:-2], *size)


def patchify(frames: Tensor, patch: int) -> tuple[Tensor, Tensor]:
    """(B, T, 3, H, W), T even, to Qwen-VL's patches (B T/2 H/patch W/patch, 6 patch²) and their grid (B, 3): T/2, H/patch, W/patch."""
    batch, count, _, height, width = frames.shape
    time, down, right = count // 2, height // patch, width // patch
    # the four patches that become one token follow one another
    parts = frames.reshape(batch, time, 2, 3, down // 2, 2, patch, right // 2, 2, patch)
    patches = parts.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9).reshape(batch * time * down * right, -1)
    return patches, torch.tensor([[time, down, right]] * batch, device=frames.device)


def read_published(file: Path, scale: float) -> dict[str, Tensor]:
    """The tensors of model.pth under VideoReward's names, `W + scale B A` for each W with a LoRA. scale: alpha / rank.

    Raises ValueError for a damaged file, one with code in it (not run), and a LoRA that is not whole.
    """
    theirs, ours = read_tensors(file), {}
    for name in [name for name in theirs if name.endswith(".base_layer.weight")]:
        down, up = (
            theirs.pop(name.replace("base_layer", f"lora_{x}.default"), torch.empty(0, 0))
            for x in "AB"
        )
        if (
            down.ndim != 2
            or up.ndim != 2
            or (len(up), *down.shape) != (len(theirs[name]), up.shape[1], theirs[name].shape[-1])
        ):
            raise ValueError(f"{file} holds no whole LoRA of {name}: download it again")
        theirs[name] = theirs[name].float() + scale * (up.float() @ down.float())
    for name, tensor in theirs.items():
        name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        ours[
            re.sub(
                r"^model\.",
                "backbone.language_model.",
                re.sub(r"^visual\.", "backbone.visual.", name),
            )
        ] = tensor
    ours.pop("lm_head.weight", None)
    return ours


def read_settings(file: Path) -> tuple[dict, dict, float]:
    """Of model_config.json: its data_config with its model_config, its mean and std, and the LoRA's alpha / rank.

    Raises ValueError for a file that is damaged, lacks a part, or asks for what is not published and so not here.
    """
    try:
        whole = json.loads(file.read_text())
        settings, lora = whole["data_config"] | whole["model_config"], whole["peft_lora_config"]
        scale = lora["lora_alpha"] / (
            sqrt(lora["lora_r"]) if lora.get("use_rslora") else lora["lora_r"]
        )
        norms = NORMS | (whole.get("inference_config") or {})
    except (ValueError, TypeError, LookupError, ArithmeticError) as error:
        raise ValueError(
            f"{file} is damaged, or no VideoReward's: {error!r}. Download it again"
        ) from error
    if wrong := [key for key, value in FIXED.items() if settings.get(key, value) != value]:
        raise ValueError(
            f"{file} has {wrong[0]} {settings[wrong[0]]!r}: video_align scores only with {FIXED[wrong[0]]!r}"
        )
    return settings, norms, scale


def load(path: str | Path, dimension: str = "overall", fps: float = 16.0):
    """`(model, reward)` of a folder or hub id: `reward(pixels (B, F, 3, H, W) in [0, 1], prompts) -> (B,)` float32.

    dimension: overall, vq, mq or ta. fps: frames a second of the videos, which decides how many are seen (16: Wan's).
    Raises ValueError for weights or settings that are not whole, FileNotFoundError for missing ones.
    """
    from huggingface_hub import snapshot_download
    from transformers import AutoTokenizer

    if dimension not in ("overall", *DIMENSIONS):
        raise ValueError(
            f"video_align has no dimension {dimension!r}: give overall, {', '.join(DIMENSIONS)}"
        )
    if isinstance(path, str) and not Path(path).exists():
        path = snapshot_download(
            path,
            allow_patterns=["*config.json", "checkpoint-*/model.pth", "checkpoint-*/tokenizer/*"],
        )
    folder = Path(path)
    steps = [
        file for file in folder.glob("checkpoint-*/model.pth") if file.parent.name[11:].isdecimal()
    ]
    if not steps:
        raise FileNotFoundError(
            f"{folder} holds no checkpoint-<step>/model.pth, as KwaiVGI/VideoReward does: give that folder, or its id"
        )
    file = max(steps, key=lambda file: int(file.parent.name[11:]))
    settings, norms, scale = read_settings(folder / "model_config.json")
    weights, words = read_published(file, scale), file.parent / "tokenizer"
    if not any(words.glob("tokenizer*")):
        raise FileNotFoundError(f"{words} holds no tokenizer: download it beside {file.name}")
    tokenizer = AutoTokenizer.from_pretrained(words)
    tokenizer.add_tokens(
        list(SPECIAL), special_tokens=True
    )  # as upstream does; it changes nothing where they are in it
    video, *special = tokenizer.convert_tokens_to_ids([VIDEO, *SPECIAL])
    if tokenizer(VIDEO)["input_ids"][:1] != [video]:
        raise ValueError(
            f"{words} has no token {VIDEO}, so is no Qwen2-VL tokenizer: download the one beside {file.name}"
        )
    config = json.loads(own.read_text()) if (own := folder / "config.json").is_file() else PUBLISHED
    model = VideoReward(config, len(tokenizer), settings.get("output_dim", 1), video, special)
    fill(model, weights, file)
    rate, high = settings.get("fps", 2.0), settings.get("max_frame_pixels", 448 * 448)
    mean, std = (
        torch.tensor([norms[f"{name.upper()}_{part}"] for name in DIMENSIONS])
        for part in ("mean", "std")
    )

    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        if pixels.ndim != 5 or pixels.shape[2] != 3:
            raise ValueError(
                f"video_align takes videos (batch, frames, 3, height, width) in [0, 1], not {tuple(pixels.shape)}"
            )
        if taken := [
            token for token in (VIDEO, *SPECIAL) if any(token in prompt for prompt in prompts)
        ]:
            raise ValueError(
                f"a prompt holds {taken[0]}, at which VideoReward is read: leave it out"
            )
        frames = fit(
            pixels[:, frame_indices(pixels.shape[1], fps, rate)].to(model.rm_head.weight),
            SIDE,
            LOW,
            high,
        )
        frames = (frames - frames.new_tensor(MEAN)[:, None, None]) / frames.new_tensor(STD)[
            :, None, None
        ]
        patches, grid = patchify(frames, SIDE // 2)
        seen = VIDEO * int(grid[0].prod() // 4)
        texts = [
            CHAT.format(video=seen, form=FORM.format(text_prompt=prompt)) for prompt in prompts
        ]
        read = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt").to(
            frames.device
        )
        values = (
            model(patches, grid, read["input_ids"], read["attention_mask"]) - mean.to(frames)
        ) / std.to(frames)
        return values.sum(1) if dimension == "overall" else values[:, DIMENSIONS.index(dimension)]

    return model, torch.no_grad()(score)
