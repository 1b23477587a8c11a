"""VideoReward of VideoAlign (Liu et al. 2025, arXiv 2501.13918): three scores of a video.

Qwen2-VL-2B reads the frames of a video, then a form that contains the prompt (FORM). A linear head
w reads the last hidden state h at the three special tokens of the form, one for each dimension d:
visual quality (VQ), motion quality (MQ) and text alignment (TA). The rewards are

    r_d = (w h_d - mean_d) / std_d

typically -2..+2, and overall VQ + MQ + TA, typically -4..+4. The model is causal and the prompt
follows the tokens of VQ and MQ, so only TA depends on it. Rotary positions are 0, 1, 2, ... over
frames and text alike, not Qwen2-VL's 3-D positions, because VideoAlign's forward does not pass
these on, so the text model counts.

`KwaiVGI/VideoReward` publishes `model_config.json` (settings, mean and std) and in
`checkpoint-11352/` a tokenizer folder and `model.pth`, a state dict of all of Qwen2-VL with its
LoRA still separate (rank 64, alpha 128). The sizes are those of Qwen2-VL-2B (PUBLISHED), unless
there is a Qwen2-VL `config.json` next to `model_config.json`. Licences: the code, and with it FORM,
is under MIT; the weights are said to be under Apache-2.0 (not verified). Upstream scores H.264
files in bfloat16; here the frames are rounded to bytes, as in a file, but not compressed, and
everything is float32.
"""

from __future__ import annotations

from functools import partial
from math import isfinite, sqrt
from numbers import Real
from pathlib import Path

import torch
from torch import Tensor, nn

from bpgo.rewards.clip import MEAN, STD
from bpgo.rewards.preprocess import check_videos, normalise
from bpgo.rewards.qwen_vl import VIDEO, check_rate, fit, patchify, refuse_special_tokens
from bpgo.rewards.video_align_form import CHAT, FORM
from bpgo.rewards.weights import (
    CONFIG,
    fill,
    found_in,
    read_config,
    read_tensors,
    read_tokenizer,
    reading,
    renamed,
    require,
)

HUB_ID = "KwaiVGI/VideoReward"
SETTINGS = "model_config.json"
DIMENSIONS = ("vq", "mq", "ta")  # in the order of the special tokens
SPECIAL = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
NORMS = {
    "VQ_mean": 3.6757,
    "VQ_std": 2.2476,
    "MQ_mean": 1.1646,
    "MQ_std": 1.3811,
    "TA_mean": 2.8105,
    "TA_std": 2.5121,
}
FIXED = {  # settings of model_config.json for which this module is written
    "prompt_template_type": "detailed_special",
    "sample_type": "uniform",
    "num_frames": None,
    "use_special_tokens": True,
}
PATCH = 14
SIDE = 2 * PATCH  # the sides of a frame are multiples of two patches
LOW, HIGH = 128 * 28 * 28, 448 * 448  # pixels of a frame
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
        depth=32, embed_dim=1280, hidden_size=1536, num_heads=16, mlp_ratio=4, patch_size=PATCH
    ),
}
RENAMES = {  # the published names to those of VideoReward, substitutions applied in order
    r"^base_model\.model\.": "",
    r"\.base_layer\.": ".",
    r"^visual\.": "backbone.visual.",
    r"^model\.": "backbone.language_model.",
}


class VideoReward(nn.Module):
    """`model(patches, grid, input_ids, attention_mask) -> (B, 3)` raw VQ, MQ and TA.

    config: of a Qwen2VLConfig. tokens: how many the text model embeds. outputs: of the head, 1 for
    all three dimensions or 3, one for each. video, special: the ids of VIDEO and of SPECIAL.
    """

    def __init__(self, config: dict, tokens: int, outputs: int, video: int, special: list[int]):
        from transformers import Qwen2VLConfig, Qwen2VLModel

        super().__init__()
        config = Qwen2VLConfig.from_dict(config)
        config.text_config.vocab_size = tokens
        for part in (config, config.text_config, config.vision_config):
            part.dtype = torch.float32  # a published config.json says bfloat16
        self.video, self.special = video, special
        self.backbone = Qwen2VLModel(config)
        self.rm_head = nn.Linear(config.text_config.hidden_size, outputs, bias=False)

    def forward(
        self, patches: Tensor, grid: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """Patches (N, 1176) and grid (B, 3), as `patchify` returns them, and token ids with mask.

        input_ids and attention_mask: (B, L), padded on the right.
        """
        text = self.backbone.language_model
        seen = self.backbone.visual(patches, grid_thw=grid).pooler_output
        is_video = (input_ids == self.video)[..., None]
        embedded = text.embed_tokens(input_ids).masked_scatter(is_video, seen)
        out = text(inputs_embeds=embedded, attention_mask=attention_mask, use_cache=False)
        is_special = torch.isin(input_ids, torch.tensor(self.special, device=input_ids.device))
        states = out.last_hidden_state[is_special].view(len(input_ids), 3, -1)
        values = self.rm_head(states)
        return values[..., 0] if values.shape[-1] == 1 else values.diagonal(dim1=1, dim2=2)


def load(path: str | Path = HUB_ID, *, fps: float = 16.0, rate: float | None = None):
    """The overall score: `(model, reward)` of a folder or hub id.

    `reward(pixels (B, F, 3, H, W) in [0, 1], prompts) -> (B,)` float32. fps: frames per second of
    the videos (Wan's: 16). rate: how many of them per second the model sees (`fps` in upstream's
    code). None: that of model_config.json, published as 2. A preset sets these under
    `reward.options`. Raises ValueError for incomplete weights or settings and for options that
    cannot be used, FileNotFoundError for missing files.
    """
    return _load(path, "overall", fps, rate)


def load_vq(path: str | Path = HUB_ID, *, fps: float = 16.0, rate: float | None = None):
    """Visual quality, loaded like `load`."""
    return _load(path, "vq", fps, rate)


def load_mq(path: str | Path = HUB_ID, *, fps: float = 16.0, rate: float | None = None):
    """Motion quality, loaded like `load`."""
    return _load(path, "mq", fps, rate)


def load_ta(path: str | Path = HUB_ID, *, fps: float = 16.0, rate: float | None = None):
    """Text alignment, loaded like `load`."""
    return _load(path, "ta", fps, rate)


def _load(path: str | Path, dimension: str, fps: float, rate: float | None):
    check_rate("fps", fps)
    if rate is not None:
        check_rate("rate", rate)
    folder = _folder(path)
    file = _newest_checkpoint(folder)
    require(folder, "video_align", (SETTINGS,))
    settings, norms, lora_scale = read_settings(folder / SETTINGS)
    weights = read_published(file, lora_scale)
    tokenizer = _read_tokenizer(file)
    video, *special = tokenizer.convert_tokens_to_ids([VIDEO, *SPECIAL])
    config_file = folder / CONFIG
    config = _read_sizes(config_file) if config_file.is_file() else PUBLISHED
    with reading(config_file, "a config of video_align"):
        model = VideoReward(config, len(tokenizer), settings.get("output_dim", 1), video, special)
    fill(model, weights, file)

    seen_rate = settings.get("fps", 2.0) if rate is None else rate
    high = settings.get("max_frame_pixels", HIGH)
    mean = torch.tensor([norms[f"{name.upper()}_mean"] for name in DIMENSIONS])
    std = torch.tensor([norms[f"{name.upper()}_std"] for name in DIMENSIONS])

    @torch.no_grad()
    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        check_videos(pixels, "video_align")
        refuse_special_tokens((VIDEO, *SPECIAL), prompts)
        chosen = pixels[:, frame_indices(pixels.shape[1], fps, seen_rate)]
        frames = normalise(fit(chosen.to(model.rm_head.weight), SIDE, LOW, high), MEAN, STD)
        patches, grid = patchify(frames, PATCH)
        seen = VIDEO * int(grid[0].prod() // 4)
        texts = []
        for prompt in prompts:
            texts.append(CHAT.format(video=seen, form=FORM.format(text_prompt=prompt)))
        tokens = tokenizer(texts, padding=True, padding_side="right", return_tensors="pt")
        tokens = tokens.to(frames.device)
        raw = model(patches, grid, tokens["input_ids"], tokens["attention_mask"])
        values = (raw - mean.to(frames)) / std.to(frames)
        return values.sum(1) if dimension == "overall" else values[:, DIMENSIONS.index(dimension)]

    score.check_prompts = partial(refuse_special_tokens, (VIDEO, *SPECIAL))
    return model, score


def frame_indices(count: int, fps: float, rate: float = 2.0) -> Tensor:
    """Which of `count` frames, at `fps` per second, are seen at `rate` per second.

    The number is even, and at least 4 if there are that many. Of 81 frames, 10 are seen at 16 per
    second and 6 at 24. Raises ValueError for fewer than 2 frames.
    """
    if count < 2:
        raise ValueError(
            f"VideoReward sees pairs of frames, but this video has {count}: give it at least 2"
        )
    number = min(max(count / fps * rate, 4), min(768, count) // 2 * 2)
    return torch.linspace(0, count - 1, round(number / 2) * 2).round().long()


# --------------------------------------------------------------------------- the published files


def read_published(file: Path, lora_scale: float) -> dict[str, Tensor]:
    """The tensors of model.pth under VideoReward's names, with each LoRA merged: `W + scale B A`.

    lora_scale: alpha / rank. Raises ValueError for a damaged file, for one that contains code
    (which is not run), and for an incomplete LoRA.
    """
    theirs = read_tensors(file)
    for name in [name for name in theirs if name.endswith(".base_layer.weight")]:
        weight = theirs[name]
        down = theirs.pop(name.replace("base_layer", "lora_A.default"), None)
        up = theirs.pop(name.replace("base_layer", "lora_B.default"), None)
        if not _is_lora_of(weight, down, up):
            raise ValueError(f"{file} has an incomplete LoRA of {name}: download it again")
        theirs[name] = weight.float() + lora_scale * (up.float() @ down.float())
    ours = {renamed(name, RENAMES): tensor for name, tensor in theirs.items()}
    ours.pop("lm_head.weight", None)
    return ours


def read_settings(file: Path) -> tuple[dict, dict, float]:
    """The settings, the mean and std of each dimension, and the LoRA's scale, of model_config.json.

    The settings are data_config and model_config together; the scale is alpha / rank. Raises
    ValueError for a file that is damaged, lacks a part, or has settings that are not supported
    here.
    """
    content = read_config(file, "video_align")
    try:
        settings = content["data_config"] | content["model_config"]
        lora = content["peft_lora_config"]
        rank = sqrt(lora["lora_r"]) if lora.get("use_rslora") else lora["lora_r"]
        scale = lora["lora_alpha"] / rank
        norms = NORMS | (content.get("inference_config") or {})
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:
        raise ValueError(
            f"{file} is damaged, or does not belong to a VideoReward ({error!r}): download it again"
        ) from error
    numbers = [scale, settings.get("fps", 2.0), settings.get("max_frame_pixels", HIGH)]
    numbers += [norms[name] for name in NORMS]
    if not all(isinstance(n, Real) and isfinite(n) for n in numbers):
        raise ValueError(f"{file} has settings that are not numbers: download it again")
    for key, value in FIXED.items():
        if settings.get(key, value) != value:
            raise ValueError(
                f"{file} has {key} {settings[key]!r}: video_align supports only {value!r}"
            )
    return settings, norms, scale


def _folder(path: str | Path) -> Path:
    from huggingface_hub import snapshot_download

    if isinstance(path, Path) or Path(path).exists():
        return Path(path)
    patterns = ["*config.json", "checkpoint-*/model.pth", "checkpoint-*/tokenizer/*"]
    return Path(snapshot_download(path, allow_patterns=patterns))


def _newest_checkpoint(folder: Path) -> Path:
    steps = {}
    for file in folder.glob("checkpoint-*/model.pth"):
        step = file.parent.name.removeprefix("checkpoint-")
        if step.isdecimal():
            steps[int(step)] = file
    if not steps:
        raise FileNotFoundError(
            f"{folder} has no checkpoint-<step>/model.pth, as {HUB_ID} has. {found_in(folder)}. "
            f"Give a folder with the published files, or that hub id"
        )
    return steps[max(steps)]


def _read_sizes(file: Path) -> dict:
    """A Qwen2-VL config.json."""
    config = read_config(file, "video_align")
    if config.get("model_type", "qwen2_vl") != "qwen2_vl":
        raise ValueError(
            f"{file} describes a {config['model_type']} model, not a qwen2_vl model: remove it, or "
            f"use the one of Qwen/Qwen2-VL-2B-Instruct"
        )
    return config


def _read_tokenizer(file: Path):
    """The tokenizer next to model.pth, with the special tokens."""
    folder = file.parent / "tokenizer"
    tokenizer = read_tokenizer(folder)
    # As upstream does. It changes nothing if the tokens are already there.
    tokenizer.add_tokens(list(SPECIAL), special_tokens=True)
    if tokenizer(VIDEO)["input_ids"][:1] != [tokenizer.convert_tokens_to_ids(VIDEO)]:
        raise ValueError(
            f"{folder} has no token {VIDEO}, so it is not a Qwen2-VL tokenizer: "
            f"download the one next to {file.name}"
        )
    return tokenizer


def _is_lora_of(weight: Tensor, down: Tensor | None, up: Tensor | None) -> bool:
    """Whether `down` (rank, in) and `up` (out, rank) fit a weight (out, in)."""
    if down is None or up is None or down.ndim != 2 or up.ndim != 2:
        return False
    return (len(up), *down.shape) == (len(weight), up.shape[1], weight.shape[-1])
