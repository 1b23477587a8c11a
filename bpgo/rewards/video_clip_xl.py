"""VideoCLIP-XL (Wang et al. 2024, arXiv 2410.00741): cosine of a video's and a prompt's embedding.

It is a CLIP whose vision encoder attends over space and time at once (ViCLIP), with a text encoder
of 248 positions (Long-CLIP). Prompts are cleaned as in OpenAI's CLIP (`as_clip`). The reward is the
plain cosine, typically 0.2-0.3; upstream's demo prints 100 times that. The published weights are
under CC-BY-NC-SA-4.0.

Our folders hold `config.json`, `model.safetensors` and a tokenizer. `alibaba-pai/VideoCLIP-XL`
publishes `VideoCLIP-XL.bin` alone.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from bpgo.rewards.preprocess import check_videos, stretch
from bpgo.rewards.weights import (
    SAFE,
    fill,
    read_folder,
    read_tensors,
    read_tokenizer_of,
    reading,
    renamed,
    split_attention,
)
from bpgo.tokenization import as_clip, refuse_unknown_words, tokenize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, not CLIP's
WEIGHTS = "VideoCLIP-XL.bin"
TOKENIZER = "openai/clip-vit-large-patch14"  # Long-CLIP has the same vocabulary
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
KEPT = 20  # CLIP's first 20 text positions; Long-CLIP stretches the rest, in a second table
RENAMES = {  # the names of OpenAI's CLIP to those of VideoCLIP, substitutions applied in order
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
    """`model(frames, input_ids, attention_mask) -> (B,)` cosines.

    config: a dict. Its keys vision and text hold the arguments of CLIPVisionConfig and
    CLIPTextConfig; projection_dim is the width of the embeddings, frames the number of frames (T)
    that are seen of a video, and max_length the number of text positions.
    """

    def __init__(self, config: dict):
        from transformers import (
            CLIPTextConfig,
            CLIPTextModelWithProjection,
            CLIPVisionConfig,
            CLIPVisionModelWithProjection,
        )

        super().__init__()
        self.config = config
        width = config["projection_dim"]
        vision = CLIPVisionConfig(**config["vision"], projection_dim=width)
        text = CLIPTextConfig(
            **config["text"], max_position_embeddings=config["max_length"], projection_dim=width
        )
        self.vision = CLIPVisionModelWithProjection(vision)
        self.text = CLIPTextModelWithProjection(text)
        self.temporal = nn.Parameter(torch.zeros(1, config["frames"], vision.hidden_size))

    def embed_video(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, S, S), as `preprocess` returns them, to unit (B, projection_dim)."""
        if frames.shape[1] != self.temporal.shape[1]:
            raise ValueError(
                f"this VideoCLIP sees {self.temporal.shape[1]} frames of a video, not "
                f"{frames.shape[1]}: choose them with bpgo.rewards.video_clip_xl.preprocess"
            )
        encoder, (batch, count) = self.vision.vision_model, frames.shape[:2]
        positions = encoder.embeddings.position_embedding.weight
        patches = encoder.embeddings.patch_embedding(frames.flatten(0, 1))
        patches = patches.unflatten(0, (batch, count)).flatten(3)
        patches = patches.permute(0, 3, 1, 2)  # (B, N, T, D), upstream's order of tokens
        tokens = (patches + positions[1:, None] + self.temporal).flatten(1, 2)
        # There is one class token per video, without a temporal position.
        first = (encoder.embeddings.class_embedding + positions[0]).expand(batch, 1, -1)
        hidden = encoder.pre_layrnorm(torch.cat([first, tokens], dim=1))
        seen = encoder.encoder(inputs_embeds=hidden).last_hidden_state
        projected = self.vision.visual_projection(encoder.post_layernorm(seen[:, 0]))
        return nn.functional.normalize(projected, dim=-1)

    def embed_text(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask (B, L), padded on the right, to unit (B, projection_dim)."""
        out = self.text(input_ids=input_ids, attention_mask=attention_mask)
        return nn.functional.normalize(out.text_embeds, dim=-1)

    def forward(self, frames: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (self.embed_video(frames) * self.embed_text(input_ids, attention_mask)).sum(-1)


def load(path: str | Path = "alibaba-pai/VideoCLIP-XL"):
    """`(model, reward)` of a folder, a .bin file or a hub id.

    `reward(pixels (B, F, 3, H, W) in [0, 1], prompts) -> (B,)` float32 cosines. A hub id downloads
    VideoCLIP-XL.bin, and the tokenizer of CLIP ViT-L/14. Raises ValueError for damaged or
    incomplete weights and for another tokenizer, FileNotFoundError for missing files.
    """
    from huggingface_hub import hf_hub_download

    if isinstance(path, str) and not Path(path).exists():
        path = hf_hub_download(path, WEIGHTS)
    path = Path(path)
    if path.name == SAFE:
        path = path.parent
    if path.is_file() or (path / WEIGHTS).is_file():
        model, tokenizer = _read_published(path if path.is_file() else path / WEIGHTS)
    else:
        model, tokenizer = read_folder(path, "video_clip_xl", VideoCLIP, PUBLISHED, WEIGHTS)
    side, text = model.config["vision"]["image_size"], model.text.config
    end = text.eos_token_id
    if end not in tokenizer("")["input_ids"] or len(tokenizer) > text.vocab_size:
        raise ValueError(
            f"the tokenizer of {path} has {len(tokenizer)} tokens, and does not end prompts with "
            f"token {end} of {text.vocab_size}, at which the text encoder is read: copy the "
            f"tokenizer that belongs to the model"
        )

    @torch.no_grad()
    def score(pixels: Tensor, prompts: list[str]) -> Tensor:
        frames = preprocess(pixels.to(model.temporal), model.config["frames"], side)
        length = model.config["max_length"]
        text = tokenize(tokenizer, prompts, length, as_clip).to(frames.device)
        # The encoder is causal, so padding beyond the longest prompt would only cost time.
        longest = int(text["attention_mask"].sum(1).max())
        return model(frames, text["input_ids"][:, :longest], text["attention_mask"][:, :longest])

    score.check_prompts = partial(refuse_unknown_words, tokenizer, clean=as_clip)
    return model, score


def preprocess(pixels: Tensor, frames: int, side: int) -> Tensor:
    """Choose T = `frames` of a video's F frames, and stretch each to side x side.

    The frames are `step = F // T` apart, from the first on, as in upstream's code.
    pixels: (B, F, 3, H, W) in [0, 1]. Returns (B, T, 3, side, side). Raises ValueError for another
    shape and for F < T.
    """
    check_videos(pixels, "video_clip_xl")
    count = pixels.shape[1]
    if count < frames:
        raise ValueError(
            f"video_clip_xl sees {frames} frames of a video, but these have {count}: "
            f"sample at least {frames}"
        )
    chosen = pixels[:, :: count // frames][:, :frames]
    return stretch(chosen.flatten(0, 1), side, MEAN, STD).unflatten(0, chosen.shape[:2])


def rename(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of VideoCLIP-XL.bin under VideoCLIP's names, and in the shapes that it has."""
    theirs = dict(theirs)
    for unused in ("vision_model.temp", "text_model.logit_scale"):
        theirs.pop(unused, None)
    later_positions = theirs.pop("text_model.positional_embedding_res", torch.empty(0))
    ours = {}
    for their_name, tensor in theirs.items():
        name = renamed(their_name, RENAMES)
        if ".in_proj_" in name:
            ours |= split_attention(name, tensor)
        elif name.endswith("_projection.weight"):
            ours[name] = tensor.mT  # OpenAI's CLIP multiplies from the right
        elif name.endswith("patch_embedding.weight"):
            ours[name] = tensor[:, :, 0]  # a Conv3d of depth 1
        elif their_name == "text_model.positional_embedding":
            ours[name] = torch.cat([tensor[:KEPT], later_positions[KEPT:]])
        else:
            ours[name] = tensor
    return ours


def _read_published(file: Path):
    """The model of a VideoCLIP-XL.bin, and a tokenizer."""
    tensors = read_tensors(file)
    with reading(file, "a complete VideoCLIP"):
        weights = rename(tensors)
    model = VideoCLIP(PUBLISHED)
    fill(model, weights, file)
    return model, read_tokenizer_of(file.parent, TOKENIZER)
