"""VideoCLIP-XL (Wang et al. 2024, arXiv 2410.00741): cosine of one embedding of a whole video and one of its prompt.

A CLIP whose vision encoder attends over space and time at once (ViCLIP), with a text encoder of 248 positions (Long-CLIP). The reward
is the raw cosine, typically 0.2-0.3; upstream's demo prints 100 times that. The published weights are CC-BY-NC-SA-4.0.
Our folders hold `config.json`, `model.safetensors` and a tokenizer; the published layout is `VideoCLIP-XL.bin` alone.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import torch
from torch import Tensor, nn

from bpgo.files import read_pt
from bpgo.rewards.preprocess import stretch
from bpgo.tokenization import tokenize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, not CLIP's
WEIGHTS, TOKENIZER = (
    "VideoCLIP-XL.bin",
    "openai/clip-vit-large-patch14",
)  # its vocabulary is Long-CLIP's too
PUBLISHED = {
    "vision": dict(
        image_size=224,
        patch_size=14,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
    ),
    "text": dict(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=0,
    ),
    "projection_dim": 768,
    "frames": 8,
    "max_length": 248,
}
KEPT = 20  # Long-CLIP keeps CLIP's first 20 text positions and stretches the rest: two tables, each used in part
RENAMES = {  # OpenAI CLIP's names, one after the other
    r"^vision_model\.vision_encoder\.temporal_positional_embedding$": "temporal",
    r"^vision_model\.vision_encoder\.proj$": "vision.visual_projection.weight",
    r"^vision_model\.vision_encoder\.": "vision.vision_model.",
    r"^text_model\.text_projection$": "text.text_projection.weight",
    r"^text_model\.": "text.text_model.",
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


class VideoCLIP(nn.Module):
    """`model(frames, input_ids, attention_mask) -> (B,)` cosines. config: keys vision, text, projection_dim, frames, max_length.

    vision and text hold arguments of CLIPVisionConfig and CLIPTextConfig; frames is how many frames (T) of a video are seen.
    """

    def __init__(self, config: dict):
        from transformers import (
            CLIPTextConfig,
            CLIPTextModelWithProjection,
            CLIPVisionConfig,
            CLIPVisionModelWithProjection,
        )

        super().__init__()
        self.config, width = config, config["projection_dim"]
        text = CLIPTextConfig(
            **config["text"], max_position_embeddings=config["max_length"], projection_dim=width
        )
        vision = CLIPVisionConfig(**config["vision"], projection_dim=width)
        self.vision, self.text = (
            CLIPVisionModelWithProjection(vision),
            CLIPTextModelWithProjection(text),
        )
        self.temporal = nn.Parameter(torch.zeros(1, config["frames"], vision.hidden_size))

    def embed_video(self, frames: Tensor) -> Tensor:
        """frames (B, T, 3, S, S), as `preprocess` gives them -> (B, projection_dim) of length 1."""
        if frames.shape[1] != self.temporal.shape[1]:
            raise ValueError(
                f"this VideoCLIP sees {self.temporal.shape[1]} frames of a video, {frames.shape[1]} were given"
            )
        encoder, (batch, count) = self.vision.vision_model, frames.shape[:2]
        places = encoder.embeddings.position_embedding.weight
        patches = encoder.embeddings.patch_embedding(frames.flatten(0, 1)).unflatten(
            0, (batch, count)
        )
        patches = patches.flatten(3).permute(0, 3, 1, 2)  # (B, N, T, D), upstream's order of tokens
        tokens = (patches + places[1:, None] + self.temporal).flatten(1, 2)
        first = (encoder.embeddings.class_embedding + places[0]).expand(
            batch, 1, -1
        )  # one a video, at no moment of it
        seen = encoder.encoder(
            inputs_embeds=encoder.pre_layrnorm(torch.cat([first, tokens], dim=1))
        ).last_hidden_state
        return nn.functional.normalize(
            self.vision.visual_projection(encoder.post_layernorm(seen[:, 0])), dim=-1
        )

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids and attention_mask (B, L), padded at the right -> (B, projection_dim) of length 1."""
        return nn.functional.normalize(
            self.text(input_ids=input_ids, attention_mask=attention_mask).text_embeds, dim=-1
        )

    def forward(self, frames: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (self.embed_video(frames) * self.embed_text(input_ids, attention_mask)).sum(-1)


def preprocess(pixels: Tensor, frames: int, side: int) -> Tensor:
    """T = `frames` of a video's F, `step = F // T` apart from the first on (upstream's), each stretched to side x side.

    pixels: (B, F, 3, H, W) in [0, 1]. Returns (B, T, 3, side, side). Raises ValueError for another shape, and for F < T.
    """
    if pixels.ndim != 5 or pixels.shape[2] != 3:
        raise ValueError(
            f"video_clip_xl takes videos (batch, frames, 3, height, width) in [0, 1], not {tuple(pixels.shape)}"
        )
    if (count := pixels.shape[1]) < frames:
        raise ValueError(
            f"video_clip_xl sees {frames} frames of a video and these have {count}: sample at least {frames}"
        )
    chosen = pixels[:, :: count // frames][:, :frames]
    return stretch(chosen.flatten(0, 1), side, MEAN, STD).unflatten(0, chosen.shape[:2])


def read_published(file: Path) -> dict[str, Tensor]:
    """The tensors of VideoCLIP-XL.bin under VideoCLIP's names. Raises ValueError for a damaged file, and for one with code in it."""
    theirs = read_pt(file)
    ours, rest = {}, theirs.pop("text_model.positional_embedding_res", torch.empty(0))
    for name in theirs.keys() - {"vision_model.temp", "text_model.logit_scale"}:
        tensor, kept = theirs[name], name == "text_model.positional_embedding"
        for pattern, new in RENAMES.items():
            name = re.sub(pattern, new, name)
        if ".in_proj_" in name:
            ours |= {
                name.replace("in_proj_", f"{x}_proj."): part
                for x, part in zip("qkv", tensor.chunk(3), strict=True)
            }
        elif name.endswith("_projection.weight"):
            ours[name] = tensor.T  # theirs multiply from the right
        elif name.endswith("patch_embedding.weight"):
            ours[name] = tensor[:, :, 0]  # Conv3d of depth 1
        else:
            ours[name] = torch.cat([tensor[:KEPT], rest[KEPT:]]) if kept else tensor
    return ours


def load(path: str | Path):
    """`(model, reward)` of a folder, a .bin or a hub id: `reward(pixels (B, F, 3, H, W) in [0, 1], prompts) -> (B,)` float32 cosines.

    A hub id downloads VideoCLIP-XL.bin, and CLIP ViT-L/14's tokenizer. Raises ValueError for weights that are not whole.
    """
    from huggingface_hub import hf_hub_download
    from safetensors.torch import load_file
    from transformers import AutoTokenizer

    if isinstance(path, str) and not Path(path).exists():
        path = hf_hub_download(path, WEIGHTS)
    file = Path(path) if Path(path).is_file() else Path(path) / WEIGHTS
    folder = file.parent
    if file.exists():
        config, weights = PUBLISHED, read_published(file)
    else:
        config = json.loads((folder / "config.json").read_text())
        if missing := PUBLISHED.keys() - config.keys():
            raise ValueError(
                f"{path} is no video_clip_xl folder: its config.json lacks {', '.join(sorted(missing))}"
            )
        weights = load_file(folder / "model.safetensors")
    model = VideoCLIP(config)
    needed, found = (
        {(k, v.shape) for k, v in tensors.items()} for tensors in (model.state_dict(), weights)
    )
    if wrong := sorted({name for name, _ in needed ^ found}):
        raise ValueError(
            f"{path} holds no whole VideoCLIP: {len(wrong)} tensors are missing, unknown or misshapen, such as {wrong[0]}"
        )
    model.eval().requires_grad_(False).load_state_dict({k: v.float() for k, v in weights.items()})
    tokenizer = AutoTokenizer.from_pretrained(
        folder if any(folder.glob("tokenizer*")) else TOKENIZER
    )
    side, eos = model.config["vision"]["image_size"], model.text.config.eos_token_id
    if eos not in tokenizer("")["input_ids"]:
        raise ValueError(
            f"the tokenizer of {folder} ends no prompt with token {eos}, at which the text encoder is read"
        )

    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        frames = preprocess(pixels.to(model.temporal), model.config["frames"], side)
        text = tokenize(tokenizer, prompts, model.config["max_length"]).to(frames.device)
        longest = int(
            text["attention_mask"].sum(1).max()
        )  # the encoder is causal: padding changes nothing but the time
        return model(frames, text["input_ids"][:, :longest], text["attention_mask"][:, :longest])

    return model, torch.no_grad()(score)
